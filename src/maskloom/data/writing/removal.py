"""Take listed documents out of a corpus: old shards and a list of texts to new shards without them.

    `read_list`   files of documents -> what to look for
    `look_for`    corpus, list       -> which of them it holds; only reads
    `without`     corpus, list, OUT  -> the corpus of all other documents, in the same order and shards

Shards keep no names of documents, so a document is known by its text: white space at its ends does not count. `maskloom shards`
cut long documents into pieces. The list is cut in the same way, and a document counts as found if all its pieces are there.

Nothing but the text of the documents that stay is copied. A tar that someone else wrote may hold other members, or samples that
cannot be read: they are left behind, for they could be the person's too.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskloom.data.index.corpus import Index
from maskloom.data.index.indexing import IndexedShard, index_shard, write_index
from maskloom.data.index.loading import load_index
from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.data.writing.passes import MEMBER_BYTES, Options, jsonl_members, split_document
from maskloom.data.writing.spill import text_digest
from maskloom.errors import UserError
from maskloom.files import refuse_existing, whole_folder
from maskloom.processes import Pool
from maskloom.progress import size, warn
from maskloom.redaction import shown

NAMED = 5
"""Documents that are not found and are named, by their places."""

OnShard = Callable[[int], None]


@dataclass(frozen=True)
class Wanted:
    """A document to look for.

    Attributes:
        place: its file and line, for messages.
        whole: digest of its text.
        size: bytes of its text.
        pieces: digests of what `maskloom shards` cuts it into.
    """

    place: str
    size: int
    whole: bytes
    pieces: frozenset[bytes]

    def is_in(self, found: frozenset[bytes]) -> bool:
        return self.whole in found or self.pieces <= found


class Seen(NamedTuple):
    """What a corpus holds.

    Attributes:
        counts: how often it holds each digest of the list; those that it does not hold are left out.
        longest: bytes of its longest document.
    """

    counts: dict[bytes, int]
    longest: int


@dataclass(frozen=True)
class Removal:
    """What was taken out of a corpus; `OUT/removed.json`. It holds no text and no digest of a single document.

    Attributes:
        corpus: digest of the corpus that the documents were taken out of.
        documents_before, documents_after: of the two corpora, held-out ones included.
        removed: documents that were left out. More than `found` if the same text stood there several times, or in pieces.
        listed, found: different texts of the list, and how many of them the corpus held.
        list_sha256: of the list's digests, sorted: the same list has the same one, in any order.
    """

    corpus: str
    documents_before: int
    documents_after: int
    removed: int
    listed: int
    found: int
    list_sha256: str


def read_list(files: Sequence[str], options: Options) -> list[Wanted]:
    """The documents in files of any kind that `maskloom shards` reads, each text once.

    Args:
        options: `text_key`, `layout` and `longest_document_bytes` say how the files are read and cut.

    Raises:
        UserError: no such file, bad input, or no text in it.
    """
    wanted: dict[bytes, Wanted] = {}
    for source in find_sources(files, options.text_key):
        for ordinal, document in read_source(source, options.text_key, options.layout):
            if text := document.strip():
                pieces = frozenset(map(_digest, split_document(text, options.longest_document_bytes)))
                size = len(text.encode())
                wanted.setdefault(_digest(text), Wanted(source.place(ordinal), size, _digest(text), pieces))
    if not wanted:
        raise UserError(f"no text in {', '.join(files)}: list the documents to take out, as they stood in the source")
    return list(wanted.values())


def look_for(index: Index, wanted: Sequence[Wanted], processes: int, on_shard: OnShard) -> Seen:
    """Which documents of the list a corpus holds.

    Args:
        on_shard: called with the number of each shard that was read.

    Raises:
        UserError: token shards, which hold no text.
        DataFault: a block is not what was indexed.
    """
    if index.tokenizer_fingerprint:
        raise UserError(
            f"{index.folder} holds token shards, which have no text: name the text shards they were made of"
        )
    digests = _digests(wanted)
    counts: dict[bytes, int] = {}
    longest = 0
    numbers = range(len(index.shards))
    with Pool(processes, __name__, "webdataset") as pool:
        for number, found in zip(numbers, pool.map(functools.partial(_count, index, digests), numbers), strict=True):
            for digest, count in found.counts.items():
                counts[digest] = counts.get(digest, 0) + count
            longest = max(longest, found.longest)
            on_shard(number)
    return Seen(counts, longest)


def warn_of_cuts(wanted: Sequence[Wanted], seen: Seen, options: Options) -> None:
    """Warn of documents that were not found, and could stand in the corpus in pieces of another length."""
    if unsure := [document for document in missing_of(wanted, seen.counts) if document.size > seen.longest]:
        warn(
            f"{len(unsure):,} of the listed documents are longer than the longest one of the corpus ({size(seen.longest)}), and "
            f"were looked for in pieces of at most {size(options.longest_document_bytes)}: {places(unsure)}. If the corpus was "
            "cut with another --max-document-bytes, give that, or they are not found"
        )


def missing_of(wanted: Sequence[Wanted], counts: dict[bytes, int]) -> list[Wanted]:
    """The documents of the list that a corpus does not hold, or not in all their pieces."""
    found = frozenset(counts)
    return [document for document in wanted if not document.is_in(found)]


def places(documents: Sequence[Wanted]) -> str:
    """The first of some documents by their places, for messages. Their text is not shown."""
    more = f" and {len(documents) - NAMED:,} more" if len(documents) > NAMED else ""
    return "; ".join(document.place for document in documents[:NAMED]) + more


def without(
    index: Index, out: Path, wanted: Sequence[Wanted], processes: int, on_shard: OnShard
) -> tuple[Index, Removal]:
    """Write a corpus without the listed documents into the folder `out`, which must not exist. It is there whole or not at all.

    Raises:
        UserError: `out` exists, or no document for training is left.
        DataFault: a block is not what was indexed.
    """
    refuse_existing(out)
    header = index.header
    numbers = range(len(index.shards))
    indexed: list[IndexedShard] = []
    removed: dict[bytes, int] = {}
    with whole_folder(out) as folder:
        job = functools.partial(_write, index=index, digests=_digests(wanted), folder=folder)
        with Pool(processes, __name__, "webdataset") as pool:
            for number, (shard, found) in zip(numbers, pool.map(job, numbers), strict=True):
                indexed += [shard] if shard else []
                for digest, count in found.items():
                    removed[digest] = removed.get(digest, 0) + count
                on_shard(number)
        if not indexed:
            raise UserError(
                f"the list holds all documents of {shown(index.folder)}, so that none would be left: delete that corpus"
            )
        made = write_index(
            folder,
            indexed,
            text_key="text",
            block_bytes=header["block_bytes"],
            threshold=header["held_out_threshold"],
        )
        removal = Removal(
            index.digest,
            _documents(index),
            _documents(made),
            sum(removed.values()),
            len(wanted),
            len(wanted) - len(missing_of(wanted, removed)),
            hashlib.sha256(b"".join(sorted(document.whole for document in wanted))).hexdigest(),
        )
        assert removal.documents_before - removal.removed == removal.documents_after
        (folder / "removed.json").write_text(json.dumps(asdict(removal), indent=1), encoding="utf-8")
    return load_index(out.absolute()), removal


def _documents(index: Index) -> int:
    return int(index.header["documents"] + index.header["held_out_documents"])


def _digest(text: str) -> bytes:
    return text_digest(text.strip().encode())


def _digests(wanted: Sequence[Wanted]) -> frozenset[bytes]:
    return frozenset(digest for document in wanted for digest in (document.whole, *document.pieces))


def _blocks(index: Index, number: int) -> list[int]:
    """Numbers of the blocks of a shard, in their order."""
    return [int(block) for block in np.flatnonzero(index.columns["shard"] == number)]


def _count(index: Index, digests: frozenset[bytes], number: int) -> Seen:
    """What one shard holds."""
    counts: dict[bytes, int] = {}
    longest = 0
    for block in _blocks(index, number):
        for text in index.texts(block):
            longest = max(longest, len(text.encode()))
            if (digest := _digest(text)) in digests:
                counts[digest] = counts.get(digest, 0) + 1
    return Seen(counts, longest)


def _write(
    number: int, index: Index, digests: frozenset[bytes], folder: Path
) -> tuple[IndexedShard | None, dict[bytes, int]]:
    """Write one shard anew; its rows of the index (None: no document is left in it), and what was left out."""
    header, shard = index.header, index.shards[number]
    counts: dict[bytes, int] = {}
    kept: list[bytes] = []
    for block in _blocks(index, number):
        for text in index.texts(block):
            if (digest := _digest(text)) in digests:
                counts[digest] = counts.get(digest, 0) + 1
            else:
                kept.append(text.encode())
    if not kept:
        return None, counts
    path = folder / f"{shard.split.replace('_', '-')}-{number:06d}.tar"
    import webdataset  # it imports torch, which takes a second

    with path.open("wb") as file, webdataset.TarWriter(file, mtime=0) as tar:
        for member, lines in enumerate(jsonl_members(kept, min(MEMBER_BYTES, header["block_bytes"]))):
            tar.write({"__key__": f"{number:06d}-{member:06d}", "jsonl": lines})
    return index_shard(path, header["block_bytes"], "text", shard.split, header["held_out_threshold"]), counts
