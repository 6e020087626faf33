from __future__ import annotations

import json
import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.index.corpus import text_hash
from maskloom.data.writing import report as module
from maskloom.data.writing.report import NAMES, SCRIPTS, Report, TextCounter, script_counts

WORDS = {
    "Latin": "the quick brown fox jumps, fünf große Äpfel; Việt",
    "Greek": "γρήγορη αλεπού ἄνθρωπος",
    "Cyrillic": "быстрая лисица їжак",
    "Hebrew": "שועל חום",
    "Arabic": "الثعلب البني پڑھنا",
    "Devanagari": "लोमड़ी",
    "Thai": "สุนัข",
    "Hangul": "빠른 갈색 여우",
    "Hiragana": "すばやい",
    "Katakana": "キツネ",
    "Han": "敏捷的棕色狐狸 𠀀",
    "Georgian": "სწრაფი",
    "Armenian": "արագ",
    "Ethiopic": "ፈጣን",
    "other": "ᏣᎳᎩ",  # Cherokee has no row of its own
}


def tally(texts: list[str], sampled_one_in: int = 1) -> Report:
    counted = TextCounter(sampled_one_in)
    for place, text in enumerate(texts):
        if counted.add(text, len(text.encode()), text_hash(text)):
            counted.report.longest = f"document {place}"
    return counted.done()


@pytest.mark.parametrize(("script", "text"), WORDS.items())
def test_letters_are_counted_by_their_script(script: str, text: str) -> None:
    counts = dict(zip(("none", *NAMES), script_counts(text + " 123 ,.!?\n€😀").tolist(), strict=True))
    letters = sum(letter.isalpha() for letter in text)
    assert counts[script] == letters > 0
    assert sum(counts.values()) - counts["none"] == letters


def test_ranges_agree_with_the_names_of_letters() -> None:
    """Of a script's letters in the basic plane, nearly all are counted for it, and nearly nothing else is."""
    named = {"Han": "CJK", "Burmese": "MYANMAR", "Odia": "ORIYA"}
    scripts_of: dict[str, list[str]] = {}
    for point in range(0x10000):
        if chr(point).isalpha():
            scripts_of.setdefault(unicodedata.name(chr(point)).split()[0], []).append(chr(point))
    everything = script_counts("".join(chr(point) for point in range(0xD800)))
    for place, script in enumerate(SCRIPTS, start=1):
        letters = scripts_of[named.get(script, script.upper())]
        found = script_counts("".join(letters))[place]
        assert found >= 0.9 * len(letters), script
        assert everything[place] <= 1.1 * len(letters) + 40, script


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_every_character_is_counted_once(text: str) -> None:
    counts = script_counts(text)
    assert counts.sum() == len(text)
    assert counts[0] == sum(not letter.isalpha() for letter in text)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=50), max_size=30), st.integers(0, 30))
def test_parts_add_up_to_the_whole(texts: list[str], cut: int) -> None:
    whole = tally(texts)
    added = tally(texts[:cut]) + tally(texts[cut:])
    assert added.to_json() | {"longest": ""} == whole.to_json() | {"longest": ""}
    assert Report() + whole == whole
    assert Report.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert sum(whole.lengths.values()) == whole.documents == len(texts)
    for size, count in whole.lengths.items():
        assert count == sum(size <= len(text.encode()) < 2 * size for text in texts)


def test_the_longest_is_the_first_of_equals() -> None:
    assert tally(["a", "bbb", "ccc", "dd"]).longest == "document 1"
    assert (tally(["aa"]) + tally(["b", "cc"])).longest == "document 0"


def test_held_letters_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = list(WORDS.values()) * 3
    whole = tally(texts)
    monkeypatch.setattr(module, "HELD_CHARACTERS", 10)
    assert tally(texts) == whole


def test_a_sample_of_documents_has_about_the_shares_of_all() -> None:
    """4000 documents, a quarter of them Greek: of about 250 sampled ones, 5 standard deviations are 0.14."""
    rng = random.Random(5)
    texts = [f"{'αβγδ' if number % 4 == 0 else 'abcd'} {rng.random()}" for number in range(4000)]
    sampled = tally(texts, 16)
    letters = sum(sampled.letters.values())
    assert abs(letters / 4 - 250) < 5 * 250**0.5
    assert abs(sampled.letters["Greek"] / letters - 0.25) < 0.14
    assert "letters by script in one document of 16: Latin 7" in "\n".join(sampled.lines())


def test_the_text_for_people() -> None:
    report = tally(["a" * 1500, "b" * 1100, "γ" * 20, "x"])
    report.empty, report.split, report.duplicates = 2, 1, 3
    assert list(report.lines()) == [
        "4 documents read, 2.6 KiB; 2 empty documents left out, 1 long documents split, 3 exact duplicates kept",
        "longest document: 1.5 KiB (document 0)",
        "documents by size:",
        "        1 B to       2 B  25.00% ###############",
        "        2 B to       4 B   0.00%",
        "        4 B to       8 B   0.00%",
        "        8 B to      16 B   0.00%",
        "       16 B to      32 B   0.00%",
        "       32 B to      64 B  25.00% ###############",
        "       64 B to     128 B   0.00%",
        "      128 B to     256 B   0.00%",
        "      256 B to     512 B   0.00%",
        "      512 B to   1.0 KiB   0.00%",
        "    1.0 KiB to   2.0 KiB  50.00% ##############################",
        "letters by script: Latin 99.24%, Greek 0.76%",
    ]
    report.dropped = True
    assert next(report.lines()).endswith("3 exact duplicates dropped")
    assert next(Report(empty=2).lines()).startswith("0 documents read, 0 B; 2 empty")
