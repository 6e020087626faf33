"""Pre-tokens of byte-level BPE, found by a pattern of Python's `re`, so that their ids can be looked up.

The pattern has to be one of those below, to the letter. `re` does not have its classes of characters (`\\p{L}`), and other
libraries may follow a newer Unicode. So the tokenizers library is asked which characters it has in each class. Characters
beyond U+FFFF would make a class of `re` slow. While a text is cut, another character of the same class stands in for them.

A pre-token by itself has the ids that it has in a text. Two things are done in the order of the library:

- Added tokens are found first, the longest at each place. The text between them is cut by the pattern.
- NFC comes before the pattern. A text that it would change is not cut at all.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

from tokenizers import Regex, normalizers

from maskloom.tokenizers.pipeline import Tree, own_tokens, steps_of

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The patterns that are known here. In both, a pre-token has a blank only at its front, or is white space as a whole."""
CLASS = re.compile(r"\[[^\]]*\]|\\p\{[LN]\}|\\[sS]")
STANDS_IN = {r"\p{L}": "a", r"\p{N}": "0", r"\s": "\t"}
"""Class -> a character of it that the patterns do not name; "!" stands for characters of no class."""
BEYOND = re.compile("[\U00010000-\U0010ffff]")
JAMO = range(0x1160, 0x1200)  # vowels and last consonants, which join with what stands before them


@dataclass(frozen=True)
class PreTokens:
    """What cuts a text into pre-tokens, as `TokenizerKind.stretches` gives it. Picklable.

    Attributes:
        pattern: `GPT2` or `LLAMA3`.
        added: patterns of added tokens, each with one group around it. The second one is asked about the text between matches
            of the first.
        is_nfc: whether the tokenizer normalizes a text to NFC.
    """

    pattern: str
    added: tuple[re.Pattern[str], ...]
    is_nfc: bool

    def __call__(self, text: str) -> list[str]:
        if self.is_nfc and not is_nfc(text):
            return [text]
        return self._cut(text, self.added)

    def _cut(self, text: str, added: tuple[re.Pattern[str], ...]) -> list[str]:
        if not added:
            return self._by_pattern(text)
        found: list[str] = []
        for number, part in enumerate(added[0].split(text)):
            if number % 2:
                found.append(part)
            elif part:
                found += self._cut(part, added[1:])
        return found

    def _by_pattern(self, text: str) -> list[str]:
        pattern = compiled(self.pattern)
        if text.isascii() or not BEYOND.search(text):
            return pattern.findall(text)
        same = BEYOND.sub(lambda found: stand_in(found[0]), text)
        ends = [found.end() for found in pattern.finditer(same)]
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def pattern_of(tree: Tree) -> str | None:
    """The pattern of a definition's pre-tokens, if it is one of those that are known here."""
    steps = steps_of(tree.get("pre_tokenizer"), "pretokenizers")
    types = [step.get("type") for step in steps]
    if types == ["ByteLevel"]:
        return GPT2 if steps[0].get("use_regex", True) is True else None
    if types != ["Split", "ByteLevel"] or not isinstance(steps[0].get("pattern"), dict):
        return None
    split, last = steps
    is_plain = split.get("behavior") == "Isolated" and not split.get("invert") and last.get("use_regex") is False
    return next((known for known in (GPT2, LLAMA3) if is_plain and split["pattern"].get("Regex") == known), None)


def stretches(tree: Tree, roles: frozenset[str]) -> PreTokens | None:
    """A function that cuts any text into pre-tokens and added tokens; None if the pipeline has steps not known here."""
    pattern, own = pattern_of(tree), own_tokens(tree, roles)
    normalizer = [step.get("type") for step in steps_of(tree.get("normalizer"), "normalizers")]
    first = steps_of(tree.get("pre_tokenizer"), "pretokenizers")[0]
    is_changed_in_front = first.get("type") == "ByteLevel" and first.get("add_prefix_space", True)
    is_odd = any(
        any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word"))
        or not unicodedata.is_normalized("NFC", token["content"])
        for token in own
    )
    if pattern is None or normalizer not in ([], ["NFC"]) or is_changed_in_front or is_odd:
        return None
    added = []
    for is_late in (False, True):  # those that are looked for in normalized text come second
        contents = {str(token["content"]) for token in own if bool(token.get("normalized")) is is_late} - {""}
        if contents:
            longest_first = sorted(contents, key=lambda content: (-len(content), content))
            added.append(re.compile(f"({'|'.join(map(re.escape, longest_first))})"))
    return PreTokens(pattern, tuple(added), bool(normalizer))


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of the library for `re`, which has no `\\p`. It is for texts without characters beyond U+FFFF."""

    def spell(found: re.Match[str]) -> str:
        part = found[0]
        if part.startswith("["):
            return re.sub(r"\\p\{[LN]\}|\\s", lambda inner: characters_of(inner[0]), part)
        return f"[^{characters_of(part.lower())}]" if part == r"\S" else f"[{characters_of(part)}]"

    return re.compile(CLASS.sub(spell, pattern))


@functools.cache
def characters_of(name: str) -> str:
    """The characters up to U+FFFF that the library has in a class, as ranges of a class of `re`."""
    others = set(_without(name, "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)))
    members = [code for code in range(0x10000) if chr(code) not in others and not 0xD800 <= code < 0xE000]
    firsts = [code for before, code in zip([-2, *members], members, strict=False) if code != before + 1]
    lasts = [code for code, after in zip(members, [*members[1:], -2], strict=True) if after != code + 1]
    return "".join(rf"\u{first:04x}-\u{last:04x}" for first, last in zip(firsts, lasts, strict=True))


@functools.lru_cache(maxsize=1 << 16)
def stand_in(character: str) -> str:
    """A character of the same class."""
    return next((other for name, other in STANDS_IN.items() if not _without(name, character)), "!")


def _without(name: str, text: str) -> str:
    """A text without the characters of a class, as the library knows it."""
    return str(normalizers.Replace(Regex(name), "").normalize_str(text))


def is_nfc(text: str) -> bool:
    """Whether the library's NFC leaves a text as it is. It is asked only if some character of it may be changed."""
    if text.isascii() or not _may_change().search(text):
        return True
    return bool(normalizers.NFC().normalize_str(text) == text)


@functools.cache
def _may_change() -> re.Pattern[str]:
    """A pattern of characters that NFC may change or move: marks, those that join with another, and unknown ones."""
    joins = set(map(chr, JAMO))
    for code in range(0x10000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joins.add(chr(int(parts[1], 16)))
    found = [
        character
        for character in map(chr, range(0x80, 0x10000))
        if character in joins
        or unicodedata.combining(character)
        or unicodedata.category(character) == "Cn"
        or not unicodedata.is_normalized("NFC", character)
    ]
    return re.compile(f"[{''.join(found)}\U00010000-\U0010ffff]")
