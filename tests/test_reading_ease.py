"""tools/reading_ease.py: what is read, how it is counted, and what fails."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reading_ease", ROOT / "tools" / "reading_ease.py")
    assert spec
    assert spec.loader
    module = sys.modules["reading_ease"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()


def texts(source: str) -> list[str]:
    return [sentence.text for sentence in tool.python_sentences(source, "a.py")]


@pytest.mark.parametrize(
    ("word", "count"), [("cat", 1), ("again", 2), ("configuration", 5), ("Table", 2), ("don't", 1)]
)
def test_syllables(word: str, count: int) -> None:
    assert tool.syllables(word) == count


def test_ease_is_flesch_s_formula() -> None:
    (sentence,) = tool.sentences_of("The cat sat on the table.", "a.md", 1)
    assert (sentence.words, sentence.syllables) == (6, 7)
    assert sentence.ease == pytest.approx(206.835 - 1.015 * 6 - 84.6 * 7 / 6, abs=0.05)  # one decimal is kept


def test_names_lengthen_a_sentence_but_have_no_syllables() -> None:
    (sentence,) = tool.sentences_of("Set `data.lanes` or run_dir to 64 for BERT.", "a.md", 1)
    assert (sentence.words, sentence.plain_words, sentence.syllables) == (8, 4, 4)  # Set, or, to, for


def test_hyphenated_words_are_one_word() -> None:
    (sentence,) = tool.sentences_of("A step-by-step list.", "a.md", 1)
    assert (sentence.words, sentence.syllables) == (3, 5)


def test_a_full_stop_inside_an_abbreviation_or_a_number_ends_nothing() -> None:
    parts = [
        one.text for one in tool.sentences_of("See You et al. The rate is 0.5 here, e.g. In B. Next one!", "a.md", 1)
    ]
    assert parts == ["See You et al. The rate is 0.5 here, e.g. In B.", "Next one!"]


def test_docstrings_of_all_kinds_with_their_lines() -> None:
    source = '''"""Of the module.

Second paragraph of it.
"""
LIMIT = 3
"""Of the constant."""
class A:
    """Of the class."""
    x: int = 0
    """Of the field."""
    def f(self):
        """Of the method. And more.

        Raises:
            UserError: if it is wrong.

            indented = code
        """
'''
    found = {sentence.text: sentence.line for sentence in tool.python_sentences(source, "a.py")}
    assert found == {
        "Of the module.": 1,
        "Second paragraph of it.": 3,
        "Of the constant.": 6,
        "Of the class.": 8,
        "Of the field.": 10,
        "Of the method.": 12,
        "And more.": 12,
        "UserError: if it is wrong.": 15,
    }


def test_comments_below_each_other_are_one_text_and_labels_are_left_out() -> None:
    source = """# The first line of a comment
# ends on the second one.
x = 1  # a label
y = 2  # this comment is long enough to count
z = 3  # type: ignore[this is not prose at all]
"""
    assert texts(source) == [
        "The first line of a comment ends on the second one.",
        "this comment is long enough to count",
    ]


def test_messages_are_read_with_a_name_for_each_placeholder() -> None:
    source = """raise ValueError(f"{path}: this folder holds no index: "
    f"run {'a' if b else 'c'} on it")
say("too short")
PATTERN = "^[a-z]+ (x|y) {2} [0-9] [a-f] $ % &"
wrong.append("the rate is above one: lower it")
"""
    assert texts(source) == ["~: this folder holds no index: run ~ on it", "the rate is above one: lower it"]


def test_pages_without_code_tables_headings_and_targets_of_links() -> None:
    page = """---
title: front matter is not prose
---
# A heading is not prose

Read [the guide](https://example.org/a/very/long/address) first,
then go.

```sh
make this is not prose
```
| a table | is not prose |
|---|---|
- The first item
  has two lines.
- The second is **bold**.
"""
    found = [(sentence.text, sentence.line) for sentence in tool.page_sentences(page, "a.md")]
    assert found == [
        ("Read the guide first, then go.", 6),
        ("The first item has two lines.", 14),
        ("The second is bold.", 16),
    ]


def _score(sentences: list[str], name: str = "all code") -> object:
    return tool.scored(name, [one for text in sentences for one in tool.sentences_of(text, "a.py", 1)])


def test_floors() -> None:
    floors = {"whole": 60, "package": 50, "page": 60, "long_sentences": 1}
    plain = _score(["The cat sat on the table."])
    hard = _score(["Configuration necessitates consideration."])
    long = _score(["so it is " * 12] * 2)
    assert tool.faults([plain], [plain], plain, floors) == []
    assert len(tool.faults([hard], [hard], plain, floors)) == 2
    assert "below the floor of 60" in tool.faults([], [], hard, floors)[0]
    assert "2 sentences have more than 35 words, and 1 are allowed" in tool.faults([], [], long, floors)[0]
    assert "a sentence has 36 words" in tool.faults([], [long], plain, floors)[0]


def test_phrases() -> None:
    sentences = list(tool.sentences_of("It goes on. We went on. Stop.", "a.py", 1))
    assert tool.phrase_faults(sentences, {r"\b(goes|went) on\b": 2}) == []
    (fault,) = tool.phrase_faults(sentences, {r"\b(goes|went) on\b": 1})
    assert fault.startswith("2 sentences have")


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.md").write_text("A short one. So it is " + "so it is " * 11 + "\n")
    assert tool.main([str(tmp_path / "page.md"), "--json", "--worst", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["scores"][0]["long_sentences"] == 1
    assert said["longest"][0]["words"] == 36
    assert tool.main([str(tmp_path / "page.md"), "--check"]) == 1
    assert "more than 35: split it" in capsys.readouterr().err
    (tmp_path / "phrase.md").write_text("The run goes on.\n")
    assert tool.main([str(tmp_path / "phrase.md"), "--check"]) == 1
    assert "1 sentences have" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="does not exist"):
        tool.main([str(tmp_path / "none.md")])


def test_the_words_of_this_project_are_above_the_floors(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--check"]) == 0, capsys.readouterr().err
