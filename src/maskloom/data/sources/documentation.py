"""The built-in corpus: the English documentation (docstrings) of the Python packages installed beside this one.

`ast` reads it. It needs no download, and it is real text of some size. `make pretrain` trains on it.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from maskloom.data.hashing import make_key
from maskloom.data.sources.source import Source, SourceKind, TextLayout, group_stamp
from maskloom.errors import UserError

DOCUMENTATION = "documentation:"
DOCUMENTATION_SOURCE_BYTES = 96 << 20  # of Python source
DOCUMENTATION_GROUP = 64  # files a source
PYTHON_BYTES_A_TEXT_BYTE = 8  # an estimate
SHORTEST_DOCSTRING = 200  # characters; shorter ones are mostly one-line remarks
COMMON_WORDS = frozenset("the of to a is in and for this be that with are if or as it by on an".split())


def documentation_sources(given: str, text_key: str, number: int) -> list[Source]:
    """Groups of installed Python files: a sample by the hash of their names, up to `DOCUMENTATION_SOURCE_BYTES`."""
    root = Path(sysconfig.get_paths()["purelib"])
    names = [str(file.relative_to(root)) for file in root.rglob("*.py")]
    # In the order of a hash, so that the sample is spread over all packages and is the same everywhere.
    chosen, sizes, total = [], [], 0
    for name in sorted(names, key=lambda name: (make_key(DOCUMENTATION, name), name)):
        if total >= DOCUMENTATION_SOURCE_BYTES:
            break
        chosen.append(str(root / name))
        sizes.append((root / name).stat().st_size)
        total += sizes[-1]
    if not chosen:
        raise UserError(f"{DOCUMENTATION} no Python file is installed in {root}")
    sources = []
    for place, start in enumerate(range(0, len(chosen), DOCUMENTATION_GROUP)):
        group, size = (
            tuple(chosen[start : start + DOCUMENTATION_GROUP]),
            sum(sizes[start : start + DOCUMENTATION_GROUP]),
        )
        estimate = size // PYTHON_BYTES_A_TEXT_BYTE
        sources.append(
            Source(
                "documentation",
                group[0],
                number + place,
                estimate,
                group_stamp(group),
                files=group,
                input_bytes=size,
            )
        )
    return sources


def read_documentation(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(ordinal, text) of the English docstrings of some length in a group of files."""
    ordinal = 0
    for file in source.files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old string escapes in other people's code
                tree = ast.parse(Path(file).read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # a template, or code for another Python: its documentation cannot be read
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= SHORTEST_DOCSTRING and _is_english(text):
                    yield ordinal, text
                    ordinal += 1


def _is_english(text: str) -> bool:
    """Mostly ASCII, mostly letters (no tables or drawings), and one word in fifteen is a very common English word."""
    words = text.lower().split()
    if 4 * sum(letter.isalpha() for letter in text) < 3 * sum(map(len, words)):
        return False
    return (
        text.count("\ufffd") == 0
        and len(text.encode()) < 1.02 * len(text)
        and (15 * sum(word in COMMON_WORDS for word in words) >= len(words))
    )


def is_documentation(given: str) -> bool:
    """Whether an INPUT is `documentation:`."""
    return given == DOCUMENTATION


DOCUMENTATION_KIND = SourceKind(
    "documentation",
    "the documentation of the installed packages",
    documentation_sources,
    read_documentation,
    takes=is_documentation,
    holds_copies=True,  # many packages carry copies of others
)
