"""docs/security.md names a test for each risk: they exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_test_that_the_page_names_exists() -> None:
    page = (TESTS.parent / "docs" / "security.md").read_text()
    content, named = "", 0
    for file, test in re.findall(r"`((?:\w+/)*test_\w+\.py)?(?:::(\w+))?`", page):
        if file:
            content = (TESTS / file).read_text()
        if test:
            assert re.search(rf"^ *(def|class) {test}\b", content, re.MULTILINE), f"{file}::{test}"
        named += bool(file or test)
    assert named > 30


def test_every_risk_has_a_test() -> None:
    page = (TESTS.parent / "docs" / "security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    assert all(re.search(r"`[\w/]*test_\w+\.py", row.split(" | ")[-1]) for row in rows[1:])
