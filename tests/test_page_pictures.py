"""The badges of README.md say what the files of the repository say."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tools import page_pictures

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", page_pictures.facts())
def test_a_badge_is_up_to_date_and_in_the_readme(name: str) -> None:
    left, right, colour = page_pictures.facts()[name]
    drawn = (ROOT / "docs" / "images" / f"{name}.svg").read_text()
    assert drawn == page_pictures.badge(left, right, colour), "run python tools/page_pictures.py"
    texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [left, right]
    assert f"(docs/images/{name}.svg)" in (ROOT / "README.md").read_text()
