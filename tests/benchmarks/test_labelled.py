"""Labelled texts from small files in the packages' formats: the label is not in the text, and sides share nothing."""

from __future__ import annotations

from pathlib import Path

from .scripts import load

labelled = load("labelled")

NOUNS = """\
  1 A licence of some lines.
00000001 03 n 01 thing 0 001 @ 00000000 n 0000 | a separate entity; "it is a thing"
00000002 20 n 02 Oak_tree 0 oak 1 000 | a tree that bears acorns; has lobed leaves; "a great oak"; "oaks"
"""

ENTRIES = r"""
00-database-short
   A dictionary of tests

Antedate \An"te*date`\ ([a^]n`t[-e]*d[=a]t`), v. t. [imp. & p.
   p. {Antedated}; [perhaps] p. pr. {Antedating}.]
   1. To date before the {true} time. -- An"te*da`tion, n.
      [1913 Webster]

            Who rose the day to antedate.  --Pope.
      [1913 Webster]

   2. To precede in time.

   Syn: predate
        [WordNet 1.5]

caf['e] \ca*f['e]"\, n.; pl. Caf['e]s. [F.]
   (Cookery) A coffeehouse. [Obs.]
   [1913 Webster]

Charr \Charr\, Char \Char\, n. pl.
   Fishes. {Ph[oe]nix}.

Quick \Quick\, a. & adv.
   Swift.

Wound \Wound\,
   imp. of {Wind}.
"""


def test_definitions_of_nouns() -> None:
    assert list(labelled.wordnet(NOUNS.splitlines())) == [
        ("a separate entity", "Tops", "thing"),
        ("a tree that bears acorns; has lobed leaves", "plant", "oak_tree"),
    ]


def test_entries_of_the_dictionary() -> None:
    entries = list(labelled.gcide_entries(ENTRIES.splitlines()))
    assert [(entry.word, entry.part) for entry in entries] == [
        ("Antedate", "v. t."),
        ("café", "n."),
        ("Charr", "n. pl."),
        ("Quick", ""),  # two parts of speech
        ("Wound", ""),
    ]
    assert list(labelled.gcide(entries)) == [
        ("To date before the true time.", "transitive verb", "antedate"),
        ("A coffeehouse. [Obs.]", "noun", "café"),
        ("Fishes. Phœnix.", "noun", "charr"),
    ]
    first = 'Antedate\n1. To date before the true time. -- An"te*da`tion, n.\nWho rose the day to antedate. --Pope.'
    assert next(labelled.gcide_text(entries)) == f"{first}\n2. To precede in time."


def test_docstrings_do_not_name_their_package(tmp_path: Path) -> None:
    """The two packages with most source are labels, and their names are removed from each other's text, too."""
    for package, size in (("alpha", 30), ("beta", 20), ("gamma", 0)):
        (tmp_path / package / "_vendor").mkdir(parents=True)
        body = (
            f"The function of {package} and the alphabet is like that of beta.x: it returns the value of the river. "
            * 3
        )
        code = f'"""{body}"""\n' + "x = 1\n" * size
        (tmp_path / package / "__init__.py").write_text(code)
        (tmp_path / package / "_vendor" / "other.py").write_text(code.replace("river", "vendor"))
    labelled.PACKAGES = 2
    found = list(labelled.docstrings(tmp_path))
    assert [(example.label, example.group) for example in found] == [
        ("alpha", "alpha/__init__.py"),
        ("beta", "beta/__init__.py"),
    ]
    assert all(example.text.startswith("The function of and the is like that of .x: it returns") for example in found)


def test_sides_share_no_group_and_no_text() -> None:
    examples = [
        labelled.Labelled(f"a text of number {number // 2}", "x", f"group {number % 40}") for number in range(400)
    ]
    examples += [labelled.Labelled("too short", "x", "group 0")]
    train, test = labelled.split(examples, 100, 1000)
    assert len(train) == 100
    assert 0 < len(test) < 100
    assert not {example.group for example in train} & {example.group for example in test}
    texts = [example.text for example in [*train, *test]]
    assert len(set(texts)) == len(texts)
    assert all(len(text.split()) == 5 for text in texts)


def test_what_it_writes_is_read(tmp_path: Path) -> None:
    from maskloom.tasks.labelled import read_examples

    file = tmp_path / "train.jsonl"
    labelled._write(file, [{"text": "a\u2028b", "label": "x"}, {"text": "c", "label": "y"}])
    assert read_examples(file).texts == ["a\u2028b", "c"]
