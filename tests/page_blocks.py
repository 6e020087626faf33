"""The code blocks of the pages, and the commands that stand in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
RUNS = "<!-- runs -->"
"""Stands in the line above a block that tests run."""

BLOCK = re.compile(
    rf"(?P<runs>{RUNS}\n\s*)?^(?P<indent> *)(?P<fence>`{{3,}})(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
# What quotes hold stays. A comment begins with # at the start of a word.
COMMENT = re.compile(r"""('[^']*'|"(?:\\.|[^"\\])*"|\\.)|(?:^|(?<=\s))#[^\n]*""", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(\w+)\1([^\n]*)\n.*?^\s*\2$", re.MULTILINE | re.DOTALL)
SEPARATORS = ";&|()\n"
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
WORDS_BEFORE_COMMANDS = {"do", "then", "else", "if", "while", "until", "!", "{", "time", "exec", "sudo", "nohup", "env"}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, without their indent."""
    text = (ROOT / page).read_text()
    return [
        Block(
            page,
            text[: match.start("fence")].count("\n") + 1,
            match["language"],
            re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            match["runs"] is not None,
        )
        for match in BLOCK.finditer(text)
    ]


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a shell script, without comments, redirections, and assignments before it."""
    script = HERE_DOCUMENT.sub(r"\3\n", script.replace("\\\n", " "))
    script = COMMENT.sub(lambda match: match[1] or "", script)
    lexer = shlex.shlex(script, posix=True, punctuation_chars=f"{SEPARATORS}<>")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    is_target = False
    for token in [*lexer, "\n"]:
        if token and set(token) <= set(SEPARATORS) and not is_target:
            if command := _own(words):
                yield command
            words = []
        elif set(token) <= set("<>&"):
            is_target = True
            words = words[:-1] if words[-1:] in (["1"], ["2"]) else words
        elif is_target:
            is_target = False
        else:
            words.append(token)


def _own(words: list[str]) -> list[str]:
    while words and (words[0] in WORDS_BEFORE_COMMANDS or ASSIGNMENT.match(words[0])):
        words = words[1:]
    return words
