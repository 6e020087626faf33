"""`step/report.py`: the page and its plots from a result file."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from step.report import COMMAND, with_rows, write

from .results import case, curves, learning, modern


@pytest.fixture
def page(tmp_path: Path) -> str:
    readme = tmp_path / "README.md"
    readme.write_text(
        f"| a | b | c | d |\n|---|---|---|---|\n| data | 1 | 2 | `x` |\n| old | 1 | 2 | {COMMAND} |\n| end |\n"
    )
    cases = {"base-128": case(), "modernbert-128": modern()}
    write([{"device": "cpu", "cases": cases, "learning": learning(), "curves": curves()}], tmp_path, readme)
    return (tmp_path / "benchmarks-step.md").read_text()


def test_the_page_says_what_was_measured(page: str) -> None:
    assert "## A CPU, 2 cores" in page
    assert "**3 (2-4)x**" in page  # in the table of ratios
    assert "**11,316 rows/s are 100 %**" in " ".join(page.split())
    assert "Graphs were compiled while the clock ran, of hf-sdpa" in page
    assert "Did not run: `hf-eager`: turn: out of memory" in page
    assert "commit 0123456789ab, `python benchmarks/step.py --only step`, load 0.5" in " ".join(page.split())
    assert "torch 2.11.0" in page
    assert all(len(line) <= 120 for line in page.splitlines() if not line.startswith("|"))


def test_a_peer_that_pads_is_compared_by_what_it_fills(page: str) -> None:
    text = " ".join(page.split())
    assert "`hf-sparse-lines` fills 50.0% of its slots, so that packing alone would be worth 2x. " in text
    assert "maskloom's best is 4x, which is 2 times that." in text


def test_the_curves_are_compared(page: str) -> None:
    assert "**modernbert**, 30% of the tokens predicted:" in page
    assert "| 20   | 5.11 (5.01-5.21) | 5.1 (5-5.2) " in page
    assert "+0.0100, +0.0100" in page
    assert "- **curves of modernbert**: 2026-01-02T03:04 UTC" in page


def test_the_plots_are_there(page: str, tmp_path: Path) -> None:
    shown = [line[line.index("(") + 1 : -1] for line in page.splitlines() if line.startswith("![")]
    assert shown == [f"benchmarks-step-{what}-cpu.svg" for what in ("rates", "parts", "loss")]
    for name in shown:
        tree = ElementTree.fromstring((tmp_path / name).read_text())
        assert "hf-sdpa" in {element.text for element in tree.iter()}


def test_rates_and_memory_stand_in_a_table(page: str) -> None:
    cells = [cell.strip() for line in page.splitlines() if line.startswith("| BERT-base") for cell in line.split("|")]
    # 960 text tokens in 0.4 s; over the peer three times, in the median of the rounds.
    assert "2,400 tokens/s, 50 MiB (`compile`)" in cells
    assert "1,200 tokens/s, 200 MiB: 3 times slower" in cells
    modern = next(line for line in page.splitlines() if line.startswith("| ModernBERT") and "tokens/s, " in line)
    assert "| 480 tokens/s, 2 MiB (sparse head): 2 times slower" in modern
    assert "| to a held-out loss of 7.50 (12 x 768) | 2.2 s" in " ".join(page.split())


def test_the_rows_of_the_readme_are_replaced(page: str, tmp_path: Path) -> None:
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines[:3] == ["| a | b | c | d |", "|---|---|---|---|", "| data | 1 | 2 | `x` |"]
    assert lines[-1] == "| end |"
    assert [line.split(" | ")[1:3] for line in lines[3:5]] == [
        ["2,400 tokens/s, 50 MiB", "Hugging Face: 1,200 tokens/s, 200 MiB: 3 times slower"],
        ["960 tokens/s, 1 MiB", "Hugging Face: 480 tokens/s, 2 MiB (sparse head): 2 times slower"],
    ]
    assert lines[5].startswith("| training to a held-out loss of 7.50 (12 x 768) | 2.2 s | Hugging Face: ")
    assert all(line.endswith(f"| {COMMAND} |") for line in lines[3:6])
    assert len(lines) == 7


def test_a_readme_without_such_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="has no row"):
        with_rows("| a | b |", ["| c | d |"])
