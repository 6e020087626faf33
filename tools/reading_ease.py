"""How easy the words of this project are to read, by package and page.

    python tools/reading_ease.py                     the table for src/maskloom and the pages that pyproject.toml names
    python tools/reading_ease.py --worst 20          also the longest and the hardest sentences and the odd phrases, 20 of each
    python tools/reading_ease.py --check             exit code 1 below a floor of [tool.reading_ease] in pyproject.toml
    python tools/reading_ease.py src/maskloom/data README.md --json

The measure is Flesch's reading ease (Flesch, 1948, "A new readability yardstick"):

    206.835 - 1.015 * words / sentences - 84.6 * syllables / words

Plain English is about 60 to 70, a page for engineers about 50, a contract about 30. pyphen counts the syllables.

What is read:
- docstrings, also those below a field or a constant;
- comments of five words or more;
- messages: strings and f-strings of five words or more, such as those of `raise`, `say` and `help=`;
- the paragraphs and list items of Markdown pages.

What is left out: code blocks, pictures of text, tables, headings, the targets of links, front matter.

A name is a word of its sentence but has no syllables. So a sentence full of names is long, but not hard because of them. Names
are code in backticks, the `{...}` of an f-string, numbers, acronyms and all else that is not a plain English word.

Short words can still be hard to follow. So --check also counts turns of phrase for which the field has a plainer word: resume
for "go on", skip for "pass over". [tool.reading_ease.phrases] lists them, each with the most that code and pages
together may have.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import io
import json
import re
import sys
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyphen

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "maskloom"
LONGEST_WORDS = 35
LEAST_WORDS = 5
"""Comments and messages below this are labels, not sentences."""
LEAST_PLAIN_SHARE = 0.5
"""Messages with a smaller share of plain words are code, such as a format or a shell script."""
LEAST_HARD_WORDS = 8
"""The hardest sentences are looked for among those of at least so many words."""

NAME = "\ufffc"
"""Stands for a piece of code inside a text. It is one character, is not a letter, and occurs nowhere else."""
PLAIN_WORD = re.compile(r"[A-Za-z]?[a-z]+(?:['’][a-z]+)?|[AI]")
EDGES = "\"'`.,;:!?()[]{}<>*_…“”‘’"
# A full stop ends a sentence if what follows looks like a beginning, and what stands before is no abbreviation.
SENTENCE_END = re.compile(
    rf"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bal\.)(?<!\bcf\.)(?<!\bvs\.)(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[`]*[A-Z0-9{NAME}])"
)
NEW_ITEM = re.compile(r"\s*(?:[-*+]|\d+\.)\s+")
SECTION = re.compile(r"(Args|Raises|Returns|Yields|Attributes|Example|Examples|Note):$")
NO_PROSE = re.compile(r"(type:|noqa|pragma|fmt:|mypy:|ruff:|!)")


@dataclass(frozen=True)
class Sentence:
    text: str
    file: str
    line: int
    words: int
    plain_words: int
    syllables: int

    @property
    def ease(self) -> float:
        return round(flesch(self.words, 1, self.syllables, self.plain_words), 1)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.words} words, ease {self.ease:.0f}: {self.text}"


@dataclass(frozen=True)
class Score:
    """One package, one page, or all of them."""

    name: str
    ease: float
    sentences: int
    words: int
    long_sentences: int
    long_share: float
    longest_words: int


def flesch(words: int, sentences: int, syllables: int, plain_words: int) -> float:
    return 206.835 - 1.015 * words / max(sentences, 1) - 84.6 * syllables / max(plain_words, 1)


@functools.cache
def _hyphens() -> pyphen.Pyphen:
    return pyphen.Pyphen(lang="en_US", left=1, right=1)


@functools.cache
def syllables(word: str) -> int:
    """Of a plain word: one more than the places where it may be hyphenated."""
    return len(_hyphens().positions(word.lower())) + 1


def sentences_of(paragraph: str, file: str, line: int) -> Iterator[Sentence]:
    """The sentences of one paragraph, which begins at `line` and keeps its line breaks."""
    text = re.sub(r"``[^`]+``|`[^`]+`", NAME, paragraph)
    start = 0
    for end in [match.end() for match in SENTENCE_END.finditer(text)] + [len(text)]:
        part = text[start:end]
        words, plain, sounds = _counted(part)
        if words:
            at = line + text[:start].count("\n")
            yield Sentence(" ".join(part.split()).replace(NAME, "~"), file, at, words, plain, sounds)
        start = end


def _counted(text: str) -> tuple[int, int, int]:
    """Words, plain words, and the syllables of the plain words."""
    words = plain = sounds = 0
    for token in text.split():
        word = token.strip(EDGES)
        if not any(letter.isalnum() or letter == NAME for letter in word):
            continue
        words += 1
        parts = word.split("-")
        if all(PLAIN_WORD.fullmatch(part) for part in parts):
            plain += 1
            sounds += sum(syllables(part) for part in parts)
    return words, plain, sounds


def _is_prose(text: str) -> bool:
    words, plain, _ = _counted(re.sub(r"`[^`]+`", NAME, text))
    return words >= LEAST_WORDS and plain >= LEAST_PLAIN_SHARE * words


def paragraphs(text: str, line: int) -> Iterator[tuple[str, int]]:
    """The paragraphs and list items of plain or Markdown text that begins at `line`, each with its own first line.

    Blocks that are indented or fenced are code; a section such as `Raises:` holds text all the same.
    """
    held: list[str] = []
    first = line
    fence = ""
    in_section = in_item = False

    def flushed() -> Iterator[tuple[str, int]]:
        if held:
            yield "\n".join(held), first
            held.clear()

    for number, row in enumerate(text.split("\n"), line):
        bare = row.strip()
        mark = re.match(r"(`{3,}|~{3,})", bare)
        if fence or mark:
            if not fence:
                yield from flushed()
                fence = mark[1] if mark else ""
            elif bare == fence:
                fence = ""
            continue
        if not bare:
            yield from flushed()
            in_item = in_section = False
            continue
        indent = len(row) - len(row.lstrip())
        if indent == 0:
            in_section = False
        if SECTION.match(bare):
            yield from flushed()
            in_section = True
            continue
        if bare.startswith(("|", "#", "<!--", ">>>")) or set(bare) <= set("-=*+| :") or re.search(r"\S {3,}\S", bare):
            yield from flushed()
            continue
        item = NEW_ITEM.match(row)
        if item or (in_section and re.match(r"\s{2,4}[\w*, ]+(\([^)]*\))?: ", row)):
            yield from flushed()
            in_item = True
            row = row[item.end() :] if item else row
        elif indent >= 2 and not in_item and not in_section:
            yield from flushed()  # a picture or an example
            continue
        if not held:
            first = number
        held.append(row.strip())
    yield from flushed()


def python_sentences(source: str, file: str) -> Iterator[Sentence]:
    tree = ast.parse(source)
    docstrings: set[int] = set()
    inner: set[int] = set()  # pieces of an f-string, which is read as a whole
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            if isinstance(child, ast.Expr) and (docstring := _text_of(child.value)):
                docstrings.add(id(child.value))
                for paragraph, line in paragraphs(inspect.cleandoc(docstring), child.lineno):
                    yield from sentences_of(paragraph, file, line)
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values if isinstance(part, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else NAME for part in node.values)
        elif id(node) not in docstrings | inner:
            text = _text_of(node)
        if text and _is_prose(text):
            for paragraph in text.split("\n"):
                yield from sentences_of(paragraph, file, getattr(node, "lineno", 1))
    for text, line in _comments(source):
        if _is_prose(text):
            yield from sentences_of(text, file, line)


def _text_of(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _comments(source: str) -> Iterator[tuple[str, int]]:
    """Comments; lines below each other, at one indentation and with nothing else on them, are one."""
    held: list[str] = []
    first = last = column = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("#").strip()
        if NO_PROSE.match(text):
            continue
        text = re.split(r"\s#\s*(?:noqa|type:)", text)[0]
        row, start = token.start
        if held and row == last + 1 and start == column and not token.line[:start].strip():
            held.append(text)
        else:
            if held:
                yield "\n".join(held), first
            held, first, column = [text], row, start
        last = row
    if held:
        yield "\n".join(held), first


def page_sentences(text: str, file: str) -> Iterator[Sentence]:
    blanked = re.sub(r"\A---\n.*?\n---\n|<!--.*?-->", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    blanked = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", blanked)
    blanked = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", blanked)
    blanked = re.sub(r"<https?://[^>]*>|https?://\S+", NAME, blanked)
    blanked = re.sub(r"</?[a-z][^>]*>", "", blanked)
    for paragraph, line in paragraphs(blanked, 1):
        yield from sentences_of(paragraph.replace("**", ""), file, line)


def read(paths: Iterable[Path]) -> dict[str, list[Sentence]]:
    """Package or page -> its sentences. A folder is searched for .py and .md files."""
    found: dict[str, list[Sentence]] = defaultdict(list)
    for path in paths:
        if not path.exists():
            raise SystemExit(f"reading_ease: {path} does not exist: name Python files, Markdown pages or folders")
        files = sorted(file for kind in ("py", "md") for file in path.rglob(f"*.{kind}")) if path.is_dir() else [path]
        for file in files:
            shown = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)
            text = file.read_text()
            if file.suffix == ".py":
                found[_package(file)] += python_sentences(text, shown)
            else:
                found[shown] += page_sentences(text, shown)
    return dict(found)


def _package(file: Path) -> str:
    """Dotted name of the package that holds a file: of the folders above it that have an `__init__.py`."""
    parts = []
    for folder in file.resolve().parents:
        if not (folder / "__init__.py").exists():
            break
        parts.append(folder.name)
    return ".".join(reversed(parts)) or str(file.parent)


def scored(name: str, sentences: list[Sentence]) -> Score:
    words = sum(sentence.words for sentence in sentences)
    plain = sum(sentence.plain_words for sentence in sentences)
    sounds = sum(sentence.syllables for sentence in sentences)
    long = sum(sentence.words > LONGEST_WORDS for sentence in sentences)
    return Score(
        name,
        round(flesch(words, len(sentences), sounds, plain), 1),
        len(sentences),
        words,
        long,
        round(long / max(len(sentences), 1), 4),
        max((sentence.words for sentence in sentences), default=0),
    )


def faults(code: list[Score], pages: list[Score], whole: Score, floors: dict[str, Any]) -> list[str]:
    """What is below its floor. `floors` is the table [tool.reading_ease]: `whole` for all code together, `package` for each
    package, `page` for each page, `long_sentences` for how many of more than 35 words all code may have."""
    wrong = [
        f"{score.name}: reading ease {score.ease} is below the floor of {floor}: write shorter sentences and plainer words"
        for score, floor in [
            (whole, floors["whole"]),
            *((score, floors["package"]) for score in code),
            *((score, floors["page"]) for score in pages),
        ]
        if score.ease < floor
    ]
    if whole.long_sentences > floors["long_sentences"]:
        wrong.append(
            f"{whole.name}: {whole.long_sentences} sentences have more than {LONGEST_WORDS} words, and "
            f"{floors['long_sentences']} are allowed: split some (--worst {whole.long_sentences} lists them)"
        )
    return wrong + [
        f"{score.name}: a sentence has {score.longest_words} words, more than {LONGEST_WORDS}: split it"
        for score in pages
        if score.long_sentences
    ]


def with_phrase(sentences: list[Sentence], pattern: str) -> list[Sentence]:
    return [sentence for sentence in sentences if re.search(pattern, sentence.text, re.IGNORECASE)]


def phrase_faults(sentences: list[Sentence], phrases: dict[str, int]) -> list[str]:
    """Which turns of phrase occur more often than they may. `phrases`: regular expression -> that number."""
    found = {pattern: len(with_phrase(sentences, pattern)) for pattern in phrases}
    return [
        f"{found[pattern]} sentences have {pattern!r}, and {most} are allowed: use a plainer word (--worst {found[pattern]} "
        "lists them)"
        for pattern, most in phrases.items()
        if found[pattern] > most
    ]


def _table(scores: list[Score]) -> str:
    width = max(len(score.name) for score in scores)
    lines = [f"{'':{width}}   ease  sentences  words each  over {LONGEST_WORDS}         longest"]
    for score in scores:
        each = score.words / max(score.sentences, 1)
        lines.append(
            f"{score.name:{width}}  {score.ease:5.1f}  {score.sentences:9}  {each:10.1f}  {score.long_sentences:4} "
            f"({score.long_share:5.1%})  {score.longest_words:7}"
        )
    return "\n".join(lines)


def _worst(sentences: list[Sentence], phrases: Iterable[str], count: int) -> dict[str, list[Sentence]]:
    longest = sorted(sentences, key=lambda sentence: -sentence.words)[:count]
    hardest = sorted((one for one in sentences if one.words >= LEAST_HARD_WORDS), key=lambda sentence: sentence.ease)
    turns = {pattern: with_phrase(sentences, pattern)[:count] for pattern in phrases}
    return {"longest": longest, "hardest": hardest[:count], **turns}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Flesch reading ease of the code's words and of Markdown pages.")
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="Python file, Markdown page or folder of them"
    )
    parser.add_argument(
        "--worst", type=int, default=0, metavar="N", help="list N sentences of each kind, with file and line"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit code 1 below a floor of [tool.reading_ease]")
    given = parser.parse_args(arguments)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["reading_ease"]
    named = [page for pattern in settings["pages"] for page in sorted(ROOT.glob(pattern))]
    found = read(given.paths or [PACKAGE, *named])
    pages = [scored(name, part) for name, part in sorted(found.items()) if name.endswith(".md")]
    code = [scored(name, part) for name, part in sorted(found.items()) if not name.endswith(".md")]
    in_code = [sentence for name, part in found.items() if not name.endswith(".md") for sentence in part]
    whole = scored("all code", in_code)
    scores = [*code, *([whole] if code else []), *pages]
    worst = _worst([sentence for part in found.values() for sentence in part], settings["phrases"], given.worst)
    if given.json:
        listed = {kind: [vars(one) | {"ease": one.ease} for one in part] for kind, part in worst.items()}
        print(json.dumps({"scores": [vars(score) for score in scores], **listed}, indent=1))
    else:
        print(_table(scores))
        print("".join(f"{kind}: {sentence}\n" for kind, part in worst.items() for sentence in part), end="")
    if not given.check:
        return 0
    all_of_it = [sentence for part in found.values() for sentence in part]
    wrong = faults(code, pages, whole, settings) + phrase_faults(all_of_it, settings["phrases"])
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
