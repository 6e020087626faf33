"""docs/metrics.md has every name of metrics.jsonl with its tag."""

from __future__ import annotations

import json
import re
from pathlib import Path

from maskloom import tags

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def rows() -> dict[str, str]:
    """Name in metrics.jsonl -> tag, as the page has them."""
    found = re.findall(r"^\| `?([\w-]+)`? \| `?([\w/-]+|the axis)`? \|", PAGE.read_text(), re.MULTILINE)
    return {name: tag for name, tag in found if name != "metrics"}


def test_each_tag_is_that_of_its_name() -> None:
    given = rows()
    assert given.pop("-") == tags.ATTEMPT
    assert given.pop("step") == "the axis"
    assert given == {name: tags.tag_of(name) or "-" for name in given}
    assert given.keys() >= tags.TAGS.keys() | tags.WITHOUT
    assert set(given.values()) >= set(tags.PINNED)


def test_the_page_has_all_that_a_run_writes(trained_run: Path) -> None:
    lines = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    written = {re.sub("^communication_bytes_.*", "communication_bytes_KIND", name) for line in lines for name in line}
    assert written <= rows().keys()
