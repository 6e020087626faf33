"""Reference pages, made from the code: every key of a configuration, every command, every metric.

A page of docs/ has a marker such as `<!-- reference: keys -->`. `filled` puts the tables in its place. So they are never out
of date. tools/site.py does it when the site is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MARKER = re.compile(r"^<!-- reference: (\w+) -->$", re.MULTILINE)

PARTS: dict[str, Callable[[], str]] = {}


def filled(markdown: str) -> str:
    """The page with each marker replaced."""
    return MARKER.sub(lambda marker: PARTS.get(marker[1], lambda: "")(), markdown)
