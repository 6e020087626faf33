"""A report on the text of a corpus: counts, lengths, scripts. `maskloom shards` prints it and keeps it as `report.json`.

Everything is a sum over documents, or a maximum. So parts of a corpus can be counted apart and added. Scripts are those of the
letters, by the ranges of Unicode's blocks. In a big corpus they are counted for one document in `SAMPLED_ONE_IN`, chosen by its
hash: counting must cost little beside writing.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from maskloom.progress import size

K = TypeVar("K", bound=Hashable)

WHOLE_BYTES = 64 << 20  # up to this much text, the scripts of all documents are counted
SAMPLED_ONE_IN = 16
HELD_CHARACTERS = 1 << 20  # letters are counted in pieces of about this size
BAR_WIDTH = 30
SCRIPTS = {
    "Latin": "41-2af 1d00-1dbf 1e00-1eff 2c60-2c7f a720-a7ff ab30-ab6f ff21-ff5a",
    "Greek": "370-3ff 1f00-1fff",
    "Cyrillic": "400-52f 1c80-1c8f a640-a69f",
    "Armenian": "530-58f",
    "Hebrew": "590-5ff fb1d-fb4f",
    "Arabic": "600-6ff 750-77f 870-8ff fb50-fdff fe70-feff",
    "Devanagari": "900-97f a8e0-a8ff",
    "Bengali": "980-9ff",
    "Gurmukhi": "a00-a7f",
    "Gujarati": "a80-aff",
    "Odia": "b00-b7f",
    "Tamil": "b80-bff",
    "Telugu": "c00-c7f",
    "Kannada": "c80-cff",
    "Malayalam": "d00-d7f",
    "Sinhala": "d80-dff",
    "Thai": "e00-e7f",
    "Lao": "e80-eff",
    "Tibetan": "f00-fff",
    "Burmese": "1000-109f a9e0-a9ff aa60-aa7f",
    "Georgian": "10a0-10ff 1c90-1cbf 2d00-2d2f",
    "Ethiopic": "1200-139f 2d80-2ddf ab00-ab2f",
    "Khmer": "1780-17ff",
    "Mongolian": "1800-18af",
    "Hiragana": "3040-309f",
    "Katakana": "30a0-30ff 31f0-31ff ff66-ff9f",
    "Hangul": "1100-11ff 3130-318f a960-a97f ac00-d7ff",
    "Han": "2e80-2fdf 3005-3007 3400-4dbf 4e00-9fff f900-faff 20000-323af",
}
NAMES = (*SCRIPTS, "other")
END_OF_LETTERS = 0x323B0


@dataclass
class Report:
    """Counts of documents as they were read. Sizes are bytes of UTF-8, without white space at the ends.

    Attributes:
        documents: those with text.
        empty: those without.
        split: documents that were cut because they are long.
        pieces: what all documents were cut into.
        duplicates: pieces with the text of another piece.
        dropped: whether duplicates were dropped.
        lengths: documents by the power of two that their size is at least: {1024: n} for 1024 to 2047 bytes.
        longest_bytes, longest: size and place of the longest document.
        letters: by script, of one document in `sampled_one_in`.
    """

    documents: int = 0
    bytes: int = 0
    empty: int = 0
    split: int = 0
    pieces: int = 0
    duplicates: int = 0
    dropped: bool = False
    lengths: dict[int, int] = field(default_factory=dict)
    longest_bytes: int = 0
    longest: str = ""
    letters: dict[str, int] = field(default_factory=dict)
    sampled_one_in: int = 1

    def __add__(self, other: Report) -> Report:
        longest = max(self, other, key=lambda report: report.longest_bytes)  # the first, if they are equal
        return Report(
            self.documents + other.documents,
            self.bytes + other.bytes,
            self.empty + other.empty,
            self.split + other.split,
            self.pieces + other.pieces,
            self.duplicates + other.duplicates,
            self.dropped or other.dropped,
            _sum(self.lengths, other.lengths),
            longest.longest_bytes,
            longest.longest,
            _sum(self.letters, other.letters),
            max(self.sampled_one_in, other.sampled_one_in),
        )

    def to_json(self) -> dict[str, object]:
        """Plain values, in the same order however the corpus was counted."""
        letters = {name: self.letters[name] for name in NAMES if name in self.letters}
        lengths = {str(size): self.lengths[size] for size in sorted(self.lengths)}
        return asdict(self) | {"lengths": lengths, "letters": letters}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Report:
        return Report(**values | {"lengths": {int(size): count for size, count in values["lengths"].items()}})

    def lines(self) -> Iterator[str]:
        """The report as text for people."""
        yield (
            f"{self.documents:,} documents read, {size(self.bytes)}; {self.empty:,} empty documents left out, "
            f"{self.split:,} long documents split, {self.duplicates:,} exact duplicates "
            f"{'dropped' if self.dropped else 'kept'}"
        )
        if not self.documents:
            return
        yield f"longest document: {size(self.longest_bytes)} ({self.longest})"
        yield "documents by size:"
        most = max(self.lengths.values())
        for power in range(min(self.lengths).bit_length() - 1, max(self.lengths).bit_length()):
            count = self.lengths.get(1 << power, 0)
            bar = "#" * round(BAR_WIDTH * count / most)
            yield f"  {size(1 << power):>9} to {size(2 << power):>9} {count / self.documents:7.2%} {bar}".rstrip()
        letters = sum(self.letters.values())
        if letters:
            shares = sorted(self.letters.items(), key=lambda item: -item[1])
            which = "" if self.sampled_one_in == 1 else f" in one document of {self.sampled_one_in}"
            listed = ", ".join(f"{name} {count / letters:.2%}" for name, count in shares if count > letters / 20_000)
            yield f"letters by script{which}: {listed}"


class TextCounter:
    """Counts documents one by one into a `Report`.

    Args:
        sampled_one_in: see `Report`.
    """

    def __init__(self, sampled_one_in: int) -> None:
        self.report = Report(sampled_one_in=sampled_one_in)
        self._lengths = np.zeros(64, dtype=np.int64)
        self._letters = np.zeros(len(NAMES) + 1, dtype=np.int64)
        self._held: list[str] = []
        self._held_characters = 0

    def add(self, text: str, size: int, text_hash: int) -> bool:
        """Count a document of `size` bytes. Returns whether it is the longest so far; then set `report.longest`."""
        report = self.report
        report.documents += 1
        report.bytes += size
        self._lengths[size.bit_length() - 1] += 1
        if text_hash % report.sampled_one_in == 0:
            self._held.append(text)
            self._held_characters += len(text)
            if self._held_characters >= HELD_CHARACTERS:
                self._count_letters()
        if size > report.longest_bytes:
            report.longest_bytes = size
            return True
        return False

    def done(self) -> Report:
        """The report of all documents that were added."""
        self._count_letters()
        self.report.lengths = {1 << place: int(count) for place, count in enumerate(self._lengths) if count}
        counts = zip(NAMES, self._letters[1:], strict=True)
        self.report.letters = {name: int(count) for name, count in counts if count}
        return self.report

    def _count_letters(self) -> None:
        self._letters += script_counts("".join(self._held))
        self._held, self._held_characters = [], 0


def script_counts(text: str) -> NDArray[np.int64]:
    """Number of characters that are not letters, then of the letters of each of `NAMES`; int64 [1 + names]."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    kinds = _kinds().take(points, mode="clip")
    rare = kinds[kinds > 1]  # letters that are not Latin: most text has few, and `bincount` is what is slow here
    counts = np.bincount(rare, minlength=len(NAMES) + 1).astype(np.int64)
    counts[1] = np.count_nonzero(kinds) - len(rare)
    counts[0] = len(kinds) - len(rare) - counts[1]
    return counts


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """For every code point 0 if it is not a letter, else 1 + its script's place in `NAMES`."""
    kinds = np.full(END_OF_LETTERS + 1, len(NAMES), dtype=np.uint8)
    for place, ranges in enumerate(SCRIPTS.values(), start=1):
        for pair in ranges.split():
            first, last = (int(number, 16) for number in pair.split("-"))
            kinds[first : last + 1] = place
    is_letter = np.fromiter((chr(point).isalpha() for point in range(END_OF_LETTERS)), bool, END_OF_LETTERS)
    return np.where(np.append(is_letter, False), kinds, 0).astype(np.uint8)


def _sum(one: Mapping[K, int], other: Mapping[K, int]) -> dict[K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in [*one, *(key for key in other if key not in one)]}
