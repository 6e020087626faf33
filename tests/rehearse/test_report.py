"""`rehearse.report`: the page from results."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from rehearse import prediction, report

from .facts import facts, modern


@pytest.fixture
def results() -> dict[str, Any]:
    origin = dict.fromkeys(("date", "commit", "python", "torch", "triton", "transformers", "deepspeed"), "1.0")
    ours = {**facts(), "kernels": 40, "from": origin}
    plain = copy.deepcopy(ours)
    plain["layer"]["forward"]["triton_per_norm"]["issued"] *= 3
    alone = {name: value for name, value in ours.items() if name not in ("layer", "rest", "saved_bytes_a_layer")}
    windows = {**modern(), "kernels": 30, "from": origin}
    return {
        "compile": {
            **{name: {"plain": plain, "ours": ours} for name in report.WHOLE},
            report.MODERN: {"plain": windows, "ours": windows},
            "zero3": {"ours": alone},
        },
        "fused_adam": {"wheel": "w", "mib": 4.9, "seconds": 125, "cubins": ["adam.sm_90.cubin"], "from": origin},
        "unit": {"versions": {"torch": "2.11.0"}, "summary": "== 3 passed in 1s ==", "failed": [], "from": origin},
    }


def test_the_page_says_what_it_is(results: dict[str, Any]) -> None:
    page = report.page(results)
    assert "**Compiled, not measured" in page
    assert "3 passed in 1s." in page
    assert "adam.sm_90.cubin" in page
    assert all(len(line) <= 120 for line in page.splitlines() if not line.startswith("|"))


def test_its_tables_have_the_figures(results: dict[str, Any]) -> None:
    page = report.page(results)
    assert "| instructions a row, dropout + LayerNorm | at most 900 | 800 | 800 | 800 | 800 |  |" in page
    assert "| instructions a row, dropout + LayerNorm | 2,400 | 800 | 2,400 | 800 |" in page
    assert "| forward | `triton_poi_gelu` | 1 | 16.0 h |" in page
    for table in (part.splitlines() for part in page.split("\n\n") if part.startswith("|")):
        assert len({line.count("|") for line in table}) == 1


def test_a_modernbert_stands_beside_a_bert(results: dict[str, Any]) -> None:
    page = report.page(results)
    assert "| h bytes a token, layer forward | at most 28 | 27 | 34 |" in page
    assert "| instructions an element, rotation | at most 30 | 20 |  |" in page
    slow, fast = (rate * 128 for rate in prediction.rows_per_s(results["compile"][report.MODERN]["ours"]))
    assert f"**{slow:,.0f} to {fast:,.0f} tokens a second**" in " ".join(page.split())
    assert "It moves 27.0 h + 43.0 h = 70.0 h bytes a token." in " ".join(page.split())


def test_failed_tests_are_named(results: dict[str, Any]) -> None:
    results["unit"]["failed"] = ["FAILED tests/test_a.py::test_b"]
    assert report.page(results).endswith("\n- `FAILED tests/test_a.py::test_b`\n")


def test_lines_flow_but_points_and_paragraphs_stay() -> None:
    assert report.flowing("one\ntwo\n\n- three\n  four\n- five\n\nsix") == "one two\n\n- three four\n- five\n\nsix"


def test_what_is_missing_is_named(results: dict[str, Any]) -> None:
    assert report.missing(results) == []
    del results["unit"], results["compile"]["base-512"]["plain"], results["compile"][report.MODERN]["ours"]
    assert report.missing(results) == ["base-512 (plain)", f"{report.MODERN} (ours)", "unit"]
