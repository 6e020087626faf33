"""What docs/privacy.md says: which files hold text of the corpus, and which do not."""

from __future__ import annotations

import re
from pathlib import Path


def holders(folder: Path, documents: list[str]) -> set[str]:
    """The files below a folder in which words of a document stand in a row; names without their numbers."""
    rows = {
        " ".join(re.findall(r"[a-z]+|\d+", text.lower())[:4]).encode() for text in documents
    }  # each begins with a number
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            said = b" ".join(re.findall(rb"[a-z]+|\d+", path.read_bytes().lower()))
            if any(row in said for row in rows):
                found.add(re.sub(r"-\d+", "", path.relative_to(folder).as_posix()))
    return found


def test_only_shards_hold_text(corpus_dir: Path, documents: list[str]) -> None:
    assert holders(corpus_dir, documents) == {"train.tar", "validation.tar"}


def test_no_file_of_a_run_holds_a_document(trained_run: Path, documents: list[str]) -> None:
    assert len(list(trained_run.rglob("*"))) > 20
    assert holders(trained_run, documents) == set()
