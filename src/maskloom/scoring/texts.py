"""The text that models are scored on: files of any kind that `maskloom shards` reads, or what a corpus holds out.

Of more documents than asked for, those with the smallest hash are taken: a sample of the whole that is the same for every order
of the files. No more of them are held in memory, however large the input is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.reading.storage import is_remote
from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.data.sources.source import TextLayout
from maskloom.data.writing.passes import LONGEST_DOCUMENT_BYTES, split_document
from maskloom.errors import UserError
from maskloom.redaction import shown
from maskloom.scoring.words import digest_of


@dataclass(frozen=True)
class Texts:
    """Documents to score.

    Attributes:
        documents: those that were taken.
        found: how many there are.
    """

    documents: list[str]
    found: int


def read_texts(inputs: Sequence[str], text_key: str, layout: TextLayout, most: int, seed: int) -> Texts:
    """At most `most` documents of inputs: of a corpus the held-out ones, of all else each.

    Raises:
        UserError: an input cannot be read, a corpus holds nothing out, or all texts are empty.
    """
    corpora = [given for given in inputs if _is_corpus(given)]
    others = [given for given in inputs if not _is_corpus(given)]

    def documents() -> Iterator[str]:
        yield from held_out_documents([load_index(given) for given in corpora])
        for source in find_sources(others, text_key) if others else ():
            yield from (text for _, text in read_source(source, text_key, layout))

    texts = sample(documents(), most, seed)
    if not texts.documents:
        raise UserError(f"there is no text in {', '.join(map(shown, inputs))}")
    return texts


def held_out_documents(corpora: Sequence[Index]) -> Iterator[str]:
    """The held-out documents of corpora. Raises UserError if one has none, or holds token shards."""
    for index in corpora:
        if not len(index.held_out_blocks):
            raise UserError(
                f"{shown(index.folder)} holds no held-out documents. Name files of text that no model was trained on, or write "
                "the corpus with a larger --val-fraction, so that some are held out"
            )
        for block in index.held_out_blocks:
            yield from index.documents(int(block), "validation")


def sample(documents: Iterable[str], most: int, seed: int) -> Texts:
    """Those with the smallest hashes, in the order in which they came. Long ones are split as `maskloom shards` does."""
    heap: list[tuple[int, int, str]] = []
    found = 0
    for document in documents:
        for text in split_document(document, LONGEST_DOCUMENT_BYTES):
            if not text.strip():
                continue
            heapq.heappush(heap, (-int.from_bytes(digest_of(text, seed), "little"), -found, text))
            found += 1
            if len(heap) > most:
                heapq.heappop(heap)
    return Texts([text for _, _, text in sorted(heap, key=lambda item: -item[1])], found)


def _is_corpus(given: str) -> bool:
    """Whether an input is a corpus, local or remote."""
    return is_remote(given) if "://" in given else (Path(given) / "index.json").is_file()
