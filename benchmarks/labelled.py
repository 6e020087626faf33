"""Labelled texts for `maskloom probe` and `maskloom finetune`, made of what Debian and Python have installed.

    apt-get install wordnet-base dict-gcide
    python benchmarks/labelled.py wordnet OUT       definitions of nouns; the label is their lexicographer class (26)
    python benchmarks/labelled.py gcide OUT         definitions of Webster's dictionary; the label is the part of speech (5)
    python benchmarks/labelled.py docstrings OUT    docstrings; the label is the package that they are from
    python benchmarks/labelled.py gcide-text OUT    that dictionary as plain text: a corpus for `maskloom shards`

Each writes a folder: OUT/train.jsonl and OUT/test.jsonl, or OUT/text.jsonl. The same input gives the same bytes.

The label is not in the text. Of the dictionaries only a definition is taken: without the word that it defines, its part of
speech and its inflections. From docstrings the names of the packages are removed. No text is there twice. What belongs
together is on one side: the definitions of a word, or the docstrings of a file.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from maskloom.data.hashing import make_key
from maskloom.data.sources.documentation import read_documentation
from maskloom.data.sources.source import Source
from maskloom.files import whole_folder

WORDNET = Path("/usr/share/wordnet/data.noun")
GCIDE = Path("/usr/share/dictd/gcide.dict.dz")  # of dictzip, which gzip reads
TEST_SHARE = 0.25
TRAIN, TEST = 6_000, 2_000  # examples at most
FEWEST_WORDS = 3  # of a definition

NOUNS = dict(
    enumerate(
        "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
        "person phenomenon plant possession process quantity relation shape state substance time".split(),
        start=3,
    )
)
"""Number of a lexicographer's file -> its name; lexnames(5WN)."""

PARTS = {
    "n.": "noun",
    "n. pl.": "noun",
    "prop. n.": "noun",
    "a.": "adjective",
    "adj.": "adjective",
    "adv.": "adverb",
    "v. t.": "transitive verb",
    "v. i.": "intransitive verb",
}
SPELLING = r" \\[^\\]*\\,?(?: \([^)]*\))?,? ?"  # between backslashes, as the word is said
HEAD = re.compile(rf"(?P<word>[^\\]+?){SPELLING}(?:[^\\.\[]+{SPELLING})*(?P<rest>.*)")
PART = re.compile(
    rf"({'|'.join(sorted(map(re.escape, PARTS), key=len, reverse=True))})(?!\s*(?:&|or\b|, [a-z&]))[\s,]*"
)
STARTS = re.compile(r"\S[^\\]* \\")  # a line with the head of an entry, or with the beginning of one
MARK = re.compile(r"\[(?:[^\[\]]*(?:Webster|WordNet|PJC|Century|Stormonth|RDH|AS)\b[^\[\]]*)\]")
ACCENTS = {
    "'": "\u0301",
    "`": "\u0300",
    '"': "\u0308",
    "^": "\u0302",
    "~": "\u0303",
    ",": "\u0327",
    "-": "\u0304",
    "=": "\u0304",
}
LIGATURES = {"[oe]": "œ", "[ae]": "æ", "[OE]": "Œ", "[AE]": "Æ"}

PACKAGES = 12
DOCSTRINGS_A_PACKAGE = 1_000


class Labelled(NamedTuple):
    """`group`: examples of one group are all on one side."""

    text: str
    label: str
    group: str


class Entry(NamedTuple):
    """An entry of the dictionary: its word, its part of speech (empty if it has none or several), its paragraphs."""

    word: str
    part: str
    paragraphs: list[str]


def wordnet(lines: Iterable[str]) -> Iterator[Labelled]:
    """The definitions in a `data.noun`, wndb(5WN), without the examples that follow them in quotes."""
    for line in lines:
        fields, bar, gloss = line.partition(" | ")
        if bar and line[0].isdigit():
            number, word = int(fields.split()[1]), fields.split()[4]
            yield Labelled(re.split(r';\s*"', gloss)[0].strip(), NOUNS[number], word.lower())


def gcide_entries(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries of the dictionary, marks of sources left out and notation turned into plain text."""
    found: list[str] = []
    for line in lines:
        if STARTS.match(line):
            if found:
                yield _entry(found)
            found = [line]
        elif found:
            found.append(line)
    if found:
        yield _entry(found)


def gcide(entries: Iterable[Entry]) -> Iterator[Labelled]:
    """The first definition of each entry, without the word, and its part of speech."""
    for word, part, paragraphs in entries:
        if part and paragraphs:
            text = re.sub(r"^(\([^)]*\) )?(1\. |\(a\) )?", "", paragraphs[0])
            text = text.partition(" -- ")[0]  # "-- Quick"ly, adv.": derived words, with their parts of speech
            yield Labelled(text, PARTS[part], word.lower())


def gcide_text(entries: Iterable[Entry]) -> Iterator[str]:
    """Entries as text: the word, and below it its definitions, quotations and notes."""
    for word, _, paragraphs in entries:
        if paragraphs:
            yield "\n".join([word, *paragraphs])


def docstrings(root: Path) -> Iterator[Labelled]:
    """Docstrings of the packages below `root` that have most source, as many of each at most."""
    files: dict[str, list[Path]] = {}
    for folder in root.iterdir():
        if (folder / "__init__.py").is_file():
            files[folder.name] = [file for file in folder.rglob("*.py") if "_vendor" not in file.parts]
    most = sorted(files, key=lambda name: (-sum(file.stat().st_size for file in files[name]), name))[:PACKAGES]
    names = re.compile(rf"\w*(?:{'|'.join(map(re.escape, most))})\w*", re.IGNORECASE)
    for package in most:
        found = _docstrings_of(files[package], root)
        for text, file in itertools.islice(found, DOCSTRINGS_A_PACKAGE):
            yield Labelled(" ".join(names.sub(" ", text).split()), package, file)


def _docstrings_of(files: Iterable[Path], root: Path) -> Iterator[tuple[str, str]]:
    """(text, name of the file), files in the order of a hash."""
    for name in sorted((str(file.relative_to(root)) for file in files), key=lambda name: make_key("docstrings", name)):
        path = str(root / name)
        for _, text in read_documentation(Source("documentation", path, 0, 0, "", files=(path,)), "text", "file"):
            yield text, name


def split(examples: Iterable[Labelled], train: int, test: int) -> tuple[list[Labelled], list[Labelled]]:
    """At most so many training and test examples, in the order of a hash. A text that was there before is left out."""
    unique: dict[str, Labelled] = {}
    for example in examples:
        unique.setdefault(" ".join(example.text.casefold().split()), example)
    kept = [example for example in unique.values() if len(example.text.split()) >= FEWEST_WORDS]
    kept.sort(key=lambda example: make_key("example", example.text))
    tested = [make_key("side", example.group) < TEST_SHARE * 2**64 for example in kept]
    return (
        [example for example, is_tested in zip(kept, tested, strict=True) if not is_tested][:train],
        [example for example, is_tested in zip(kept, tested, strict=True) if is_tested][:test],
    )


def _entry(lines: list[str]) -> Entry:
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in lines))]
    head = HEAD.fullmatch(paragraphs[0])
    if not head:
        return Entry(lines[0].partition(" \\")[0], "", [])
    rest = _plain(head["rest"])
    part = PART.match(rest)
    if part:
        rest = re.sub(r"^; pl\. [^\[]*(?=\[)", "", rest[part.end() :])
    while rest.startswith("["):  # etymology and inflections
        rest = _behind_bracket(rest)
    body = [rest, *(_plain(paragraph) for paragraph in paragraphs[1:] if not paragraph.startswith("Syn:"))]
    return Entry(_plain(head["word"]), part[1] if part else "", [paragraph for paragraph in body if paragraph])


def _behind_bracket(text: str) -> str:
    """What follows the bracket that a text begins with. Brackets may hold brackets."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return text[place + 1 :].lstrip(" ,;")
    return ""


def _plain(text: str) -> str:
    """Text without marks of sources and braces around references; letters in brackets become what they stand for."""
    text = MARK.sub("", text).replace("{", "").replace("}", "")
    for spelled, letter in LIGATURES.items():
        text = text.replace(spelled, letter)
    text = re.sub(r"\[(['`\"^~,=-])([A-Za-z])\]|\[([A-Za-z])(['`\"^~,=-])\]", _accented, text)
    return " ".join(text.split())


def _accented(found: re.Match[str]) -> str:
    accent, letter = (found[1], found[2]) if found[1] else (found[4], found[3])
    return unicodedata.normalize("NFC", letter + ACCENTS[accent])


def _read_gcide() -> Iterator[Entry]:
    with gzip.open(_installed(GCIDE, "dict-gcide"), "rt", encoding="cp1252", errors="replace") as lines:
        yield from gcide_entries(line.rstrip("\n") for line in lines)


def _read_wordnet() -> Iterator[Labelled]:
    with _installed(WORDNET, "wordnet-base").open(encoding="utf-8") as lines:
        yield from wordnet(lines)


def _installed(file: Path, package: str) -> Path:
    if not file.is_file():
        raise SystemExit(f"{file} is missing: apt-get install {package}")
    return file


def main() -> None:
    makers = {
        "wordnet": _read_wordnet,
        "gcide": lambda: gcide(_read_gcide()),
        "docstrings": lambda: docstrings(Path(sysconfig.get_paths()["purelib"])),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*makers, "gcide-text"])
    parser.add_argument("out", type=Path, help="folder to write, which must not exist yet")
    parser.add_argument("--train", type=int, default=TRAIN, help=f"training examples at most (default: {TRAIN})")
    parser.add_argument("--test", type=int, default=TEST, help=f"test examples at most (default: {TEST})")
    options = parser.parse_args()
    with whole_folder(options.out) as folder:
        if options.what == "gcide-text":
            texts = [{"text": text} for text in gcide_text(_read_gcide())]
            _write(folder / "text.jsonl", texts)
            print(f"{len(texts):,} entries, {sum(len(row['text']) for row in texts):,} characters")
            return
        for name, part in zip(
            ("train", "test"), split(makers[options.what](), options.train, options.test), strict=True
        ):
            _write(folder / f"{name}.jsonl", [{"text": each.text, "label": each.label} for each in part])
            counts = Counter(each.label for each in part).most_common()
            print(f"{name}: {len(part):,} examples; {', '.join(f'{label} {count:,}' for label, count in counts)}")


def _write(file: Path, rows: Iterable[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
