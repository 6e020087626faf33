"""docs/troubleshooting.md quotes messages as the code has them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/troubleshooting.md"
VALUE = "\0"  # in the place of what a message fills in


def said(node: ast.AST) -> Iterator[str]:
    """The texts of a module, those that were written in several pieces as one."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from said(child)


@pytest.fixture(scope="module")
def texts() -> str:
    """All that maskloom and its scripts may say, a text a line."""
    modules = [ast.parse(path.read_text()) for path in (ROOT / "src/maskloom").rglob("*.py")]
    lines = [text.replace("\n", " ") for module in modules for text in said(module)]
    return "\n".join([*lines, *(ROOT / "launcher/slurm.sbatch").read_text().splitlines()])


def quoted() -> list[str]:
    """First cells of the tables of maskloom's own messages: each text in backticks, without examples in brackets."""
    messages = []
    for table in re.findall(r"^\| maskloom says .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE):
        for row in table.splitlines():
            messages += re.findall(r"`([^`]+)`", re.sub(r"\(as in [^)]*\)", "", row.split(" | ")[0]))
    return messages


def test_each_message_is_one_of_the_code(texts: str) -> None:
    messages = quoted()
    assert len(messages) >= 40
    # What a script of the shell fills in is a variable.
    patterns = {message: ".*".join(re.escape(part.strip(" ")) for part in message.split("…")) for message in messages}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, texts)] == []


def test_no_message_stands_twice() -> None:
    messages = quoted()
    assert len(messages) == len(set(messages))
