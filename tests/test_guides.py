"""docs/throughput.md and docs/how-it-works.md hold what tools/ makes: a table and pictures, of the code as it is."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagrams, micro_batch = _tool("diagrams"), _tool("micro_batch")


def test_the_table_of_micro_batches_is_up_to_date() -> None:
    page = (ROOT / "docs" / "throughput.md").read_text()
    assert f"\n{micro_batch.table()}\n" in page, "python tools/micro_batch.py prints the table"


@pytest.mark.parametrize("case", micro_batch.CASES, ids=lambda case: case.name)
def test_a_micro_batch_that_is_larger_would_not_fit(case: object) -> None:
    """At 40 GB and the longest row: the next size that is round needs more than what is left of 90 %."""
    seq_len = min(case.config.max_position_embeddings, 1024)  # type: ignore[attr-defined]
    rows = micro_batch.most_rows(case, 40, seq_len, 1, 1, checkpointing=False)
    free = 0.9 * 40e9 - micro_batch.bytes_a_rank(case, 1, 1)
    slot = micro_batch.bytes_a_slot(case)
    assert rows * seq_len * slot <= free < 1.5 * rows * seq_len * slot
    assert micro_batch.bytes_a_slot(case, checkpointing=True) < slot / 2


@pytest.mark.parametrize("draw", diagrams.PICTURES, ids=lambda draw: draw.__name__)
def test_the_pictures_are_up_to_date(draw: object) -> None:
    """Each shows what the code does now, has a panel behind it, and lies on a page that shows it."""
    name = draw.__name__  # type: ignore[attr-defined]
    svg = (ROOT / "docs" / "images" / f"{name}.svg").read_text()
    assert svg == draw().svg, "python tools/diagrams.py writes the pictures"  # type: ignore[operator]
    root = ET.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    panel = root.find("{http://www.w3.org/2000/svg}rect")
    assert panel is not None
    assert (float(panel.attrib["width"]), float(panel.attrib["height"])) == (width, height)
    assert width <= 900
    assert re.search(rf"!\[[^\]]+\]\(images/{name}\.svg\)", (ROOT / "docs" / "how-it-works.md").read_text())
