"""The sentences of the cloze test, and how they are looked for in a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from cloze.items import Item, found_in, normalised, read_items

from maskloom.errors import UserError

ITEM = Item("Open the [MASK], and read it.", "file")


def test_there_are_forty_different_sentences() -> None:
    items = read_items()
    assert len({normalised(item.whole) for item in items}) == 40
    assert all(len(item.word.split()) == 1 for item in items)


@pytest.mark.parametrize(
    ("document", "is_found"),
    [
        ("Before. Open the file, and read it. After.", True),
        ("OPEN the\n    `file` and read it", True),
        ("Open the files, and read it.", False),
        ("Reopen the file, and read it.", False),
        ("Open the file. Read it.", False),
    ],
)
def test_case_punctuation_and_line_ends_do_not_hide_a_sentence(document: str, is_found: bool) -> None:
    other = Item("Another [MASK].", "sentence")
    assert found_in([other, ITEM], [document]) == ({1} if is_found else set())


@pytest.mark.parametrize(
    "line", ["no mask\tword", "[MASK] and [MASK]\tword", "a [MASK]", "a [MASK]\t ", "a [MASK]\tb\tc"]
)
def test_a_line_of_another_form_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "sentences.tsv"
    file.write_text(f"a good [MASK]\tline\n{line}\n")
    with pytest.raises(UserError, match="line 2"):
        read_items(file)
