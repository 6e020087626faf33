"""Medians, ratios round by round, and the roofline against figures that were derived by hand."""

from __future__ import annotations

import pytest
from step.cases import CASES
from step.learning import Apart
from step.summary import (
    Spread,
    apart_table,
    best,
    case_table,
    figures,
    learning_table,
    limits,
    parts_table,
    ratio,
    shown,
    table,
)

from .results import case, learning

H200 = {"flops": 790e12, "bytes_per_s": 4.3e12}


def test_figures_are_medians_of_the_rounds() -> None:
    found = figures(case(), "maskloom-compile")
    assert found.tokens_per_s == Spread(960 / 0.4, 960 / 0.4, 960 / 0.2)
    assert found.rows_per_s == Spread(8 / 0.4, 8 / 0.4, 8 / 0.2)
    assert found.step_s == Spread(0.4, 0.2, 0.4)
    flops = 72 * 12 * 768**2 * 1000 + 12 * 12 * 768 * 128_000 + 6 * 150 * (768**2 + 768 * 30522)
    assert found.flops_per_s.median == pytest.approx(flops / 0.4)
    assert found.utilisation is None  # of a CPU
    assert (found.peak_bytes, found.start_s) == (50 << 20, 3.0)
    assert found.filled == pytest.approx(1000 / 1024)


def test_a_result_of_an_older_form_is_read() -> None:
    measured = case()
    turns = measured["systems"]["maskloom-compile"]["turns"]
    new = figures(measured, "maskloom-compile")
    for turn in turns:
        facts = {**turn["facts"]}
        (facts["squares"],) = facts.pop("pairs")
        turn["facts"] = facts
    assert figures(measured, "maskloom-compile") == new


def test_a_modernberts_window_and_narrow_layers_count() -> None:
    shape = next({**vars(case)} for case in CASES["cuda"] if case.name == "modernbert-base-1024")
    found = limits(shape, "bf16", H200)
    # 22 layers of four D^2 for the attention and three D * 1.5 D for the gated unit; eight layers see 1,024 slots, and 14 see
    # 64 to either side; three tenths of the slots are predicted.
    matrices, near = 22 * (4 + 4.5) * 768**2, 1024 * 129 - 64 * 65
    pairs = 8 * 1024**2 + 14 * near
    flops = 6 * matrices * 1024 + 12 * 768 * pairs + 6 * 0.3 * 1024 * (768**2 + 768 * 50368)
    assert found.row_flops == pytest.approx(flops, rel=1e-4)
    assert found.ceilings == {}  # its traffic is not that of a post-norm layer


def test_mfu_is_a_gpus_and_at_most_1() -> None:
    measured = case()
    measured["stamp"] = {**measured["stamp"], "gpu": "NVIDIA H200"}
    flops = 72 * 12 * 768**2 * 1000 + 12 * 12 * 768 * 128_000 + 6 * 150 * (768**2 + 768 * 30522)
    assert figures(measured, "maskloom-compile").utilisation == pytest.approx(flops / 0.4 / 790e12)
    assert f"| {flops / 0.4 / 790e12:.1%} " in case_table(measured)
    assert "%" not in case_table(case()).replace("97.7%", "")  # 1000 of 1024 slots are filled
    measured["limits"] = {**measured["limits"], "flops": flops}
    assert figures(measured, "maskloom-compile").utilisation is None


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratio(case(), "maskloom-compile", "hf-sdpa") == pytest.approx(Spread(3.0, 2.0, 4.0))
    assert ratio(case(), "maskloom-compile", "hf-eager") is None
    short = case()
    short["systems"]["hf-sdpa"]["turns"] = short["systems"]["hf-sdpa"]["turns"][:1]  # it failed later
    assert ratio(short, "maskloom-compile", "hf-sdpa") == pytest.approx(Spread(2.0, 2.0, 2.0))


def test_the_best_is_the_fastest_by_its_median() -> None:
    assert best(case(), "maskloom-") == "maskloom-compile"
    assert best(case(), "hf-") == "hf-sdpa"
    assert best(case(), "nobody") is None


@pytest.mark.parametrize(
    ("name", "rows_per_s", "ceilings"),
    [  # rows/s at 790 TFLOP/s; percentages by the same traffic over 4.3 TB/s
        ("base-128", 11316, (82, 74, 53)),
        ("base-512", 2625, (83, 75, 55)),
        ("large-128", 3285, (86, 78, 60)),
        ("large-512", 775, (86, 79, 61)),
    ],
)
def test_the_roofline_of_an_h200(name: str, rows_per_s: float, ceilings: tuple[int, ...]) -> None:
    shape = next({**vars(case), "vocab_size": 30522} for case in CASES["cuda"] if case.name == name)
    found = limits(shape, "bf16", H200)
    assert found.rows_per_s == pytest.approx(rows_per_s, rel=1e-3)
    assert tuple(round(100 * share) for share in found.ceilings.values()) == ceilings


def test_fp32_moves_twice_the_bytes() -> None:
    shape = {**vars(CASES["cuda"][0]), "vocab_size": 30522}
    half, full = (limits(shape, precision, H200).ceilings["fused"] for precision in ("bf16", "fp32"))
    assert 1 / full - 1 == pytest.approx(2 * (1 / half - 1))


def test_numbers_are_shown_with_three_digits_and_their_range() -> None:
    assert shown(Spread(1234.5, 1200.0, 1260.4)) == "1,234 (1,200-1,260)"
    assert shown(Spread(2.5, 2.5, 2.5)) == "2.5"
    assert shown(Spread(0.25, 0.2, 0.3), 1000) == "250.0 (200.0-300.0)"


def test_tables_hold_every_system() -> None:
    lines = case_table(case()).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`maskloom-eager`", "`maskloom-compile`", "`hf-sdpa`"]
    assert len({len(line) for line in lines}) == 1  # aligned
    assert "3 (2-4)x" in lines[-1]
    parts = parts_table(case())
    assert parts is not None
    assert "matrix products" in parts
    assert parts.count("100.0 (12%)") == 3 * 8
    bare = case()
    for measured in bare["systems"].values():
        del measured["profile"]
    assert parts_table(bare) is None


def test_time_to_a_loss_is_a_median_over_seeds() -> None:
    # Half way down from 9 to 6: 1.5 and 3 seconds; 3 and 6.
    lines = learning_table(learning()).splitlines()
    assert lines[2].split("|")[2].strip() == "2.25 (1.5-3)"
    assert lines[3].split("|")[2].strip() == "4.5 (3-6)"
    assert "2 of 2" in lines[2]
    assert "0 of 2" in learning_table(learning(), target=5.0).splitlines()[2]


def test_curves_that_lie_apart_are_shown_by_seed() -> None:
    lines = apart_table([Apart(0, (9.0, 9.1), (9.0, 9.1)), Apart(10, (5.0, 5.4), (4.9, 5.5))], every=2).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[0] for row in cells] == ["0", "10"]  # the last one always
    assert cells[1][1:] == ["5.2 (5-5.4)", "5.2 (4.9-5.5)", "+0.0000", "+0.1000, -0.1000", "0.3606"]


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "22"]]) == "| a | b  |\n| - | -- |\n| 1 | 22 |"
