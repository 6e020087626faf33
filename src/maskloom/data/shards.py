"""Documents to tar shards and their index: a shuffle in two passes with bounded memory.

Pass 1 reads the sources in several processes and spills every document into a bucket chosen by the hash of its text.
Pass 2 turns each bucket into a shard: its documents in the order of a hash of where they came from, many to a `.jsonl`
member, read four times faster than one a member. So the shards depend only on the input files and the options, not on
the number of processes; exact duplicates meet in one bucket, where they are counted and, if asked, dropped.

OUT is there whole, or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import webdataset

from maskloom.data.corpus import DOCUMENTATION, Source, TextLayout, find_sources, read_source
from maskloom.data.index import (
    BLOCK_BYTES,
    Index,
    IndexedShard,
    Split,
    held_out_threshold,
    index_shard,
    load_index,
    text_hash,
    write_index,
)
from maskloom.data.order import make_key
from maskloom.errors import UserError
from maskloom.files import whole_folder
from maskloom.processes import clean_forks

MEMBER_BYTES = 32 * 1024
SHARD_BYTES = 64 << 20
SPILL_BYTES = 32 << 20  # text that a reading process holds before it appends to the buckets
LONGEST_DOCUMENT_BYTES = 64 * 1024
RECORD = struct.Struct("<16sQI")  # digest of the text, order key, bytes of the text


@dataclass(frozen=True)
class Options:
    """How a corpus is written; the defaults are the command's."""

    text_key: str = "text"
    layout: TextLayout = "file"
    val_fraction: float = 0.01
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    block_bytes: int = BLOCK_BYTES
    longest_document_bytes: int = LONGEST_DOCUMENT_BYTES
    deduplicate: bool = False


@dataclass
class Counts:
    """What was seen: documents and their pieces, after splitting of long ones; bytes of UTF-8."""

    documents: int = 0
    empty: int = 0
    split: int = 0
    duplicates: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.documents + other.documents,
            self.empty + other.empty,
            self.split + other.split,
            self.duplicates + other.duplicates,
        )


def write_shards(
    inputs: Sequence[str],
    out: Path,
    options: Options,
    processes: int = 1,
    on_read: Callable[[int], None] = lambda count: None,
    on_plan: Callable[[int], None] = lambda count: None,
) -> tuple[Index, Counts]:
    """Write `inputs` as shards and an index into the folder `out`, which must not exist.

    Args:
        on_plan: told the estimated bytes of text before reading begins.
        on_read: told the bytes of each source that is done.

    Raises:
        UserError: bad input (naming file and place), or `out` exists. Nothing is left behind.
    """
    with whole_folder(out) as partial:
        sources = find_sources(inputs)
        if DOCUMENTATION in inputs:
            options = replace(options, deduplicate=True)  # the same text is vendored in many packages
        total = sum(source.bytes for source in sources)
        on_plan(total)
        held_out = options.val_fraction
        buckets = {
            "train": max(1, round(total * (1 - held_out) / options.shard_bytes)),
            "validation": max(1, round(total * held_out / options.shard_bytes)) if held_out else 0,
        }
        spill = partial / "spill"
        spill.mkdir()
        with ProcessPoolExecutor(processes, mp_context=clean_forks(__name__)) as pool:
            counts = Counts()
            reading = pool.map(functools.partial(_spill_source, options=options, buckets=buckets, spill=spill), sources)
            for source, seen in zip(sources, reading, strict=True):
                counts += seen
                on_read(source.bytes)
            jobs = [(split, number) for split, most in buckets.items() for number in range(most)]
            indexed: list[IndexedShard] = []
            for entry, dropped in pool.map(functools.partial(_write_shard, options=options, folder=partial), jobs):
                counts.duplicates += dropped
                indexed += [entry] if entry else []
        shutil.rmtree(spill)
        if not counts.documents:
            raise UserError(f"no text in {', '.join(inputs)}: every document is empty")
        threshold = held_out_threshold(held_out)
        write_index(partial, indexed, text_key="text", block_bytes=options.block_bytes, threshold=threshold)
    return load_index(out), counts


def split_document(text: str, longest_bytes: int) -> list[str]:
    """Cut a document of more than `longest_bytes` of UTF-8 at paragraphs, lines or spaces; no text is lost but the
    white space at the cuts."""
    parts: list[str] = []
    start = 0
    while True:
        # No character is shorter than a byte. The whole rest is never encoded: that would be quadratic.
        window = text[start : start + longest_bytes].encode()[:longest_bytes].decode("utf-8", "ignore")
        if start + len(window) == len(text):
            return [part for part in [*parts, window] if part]
        cut = next(
            (place for mark in ("\n\n", "\n", " ") if (place := window.rfind(mark)) > len(window) // 2), len(window)
        )
        parts.append(window[:cut].strip())
        start += cut
        while start < len(text) and text[start].isspace():
            start += 1


def _spill_source(source: Source, options: Options, buckets: dict[str, int], spill: Path) -> Counts:
    counts = Counts()
    held: dict[tuple[str, int], list[bytes]] = {}
    held_bytes = 0
    threshold = held_out_threshold(options.val_fraction)
    for ordinal, document in read_source(source, options.text_key, options.layout):
        text = document.strip()
        if not text:
            counts.empty += 1
            continue
        # By the whole document, before it is cut: its parts must not stand on both sides.
        split = "validation" if text_hash(text) < threshold else "train"
        parts = split_document(text, options.longest_document_bytes)
        counts.documents += len(parts)
        counts.split += len(parts) > 1
        for number, part in enumerate(parts):
            data = part.encode()
            digest = hashlib.blake2b(data, digest_size=16).digest()
            bucket = make_key(options.seed, "bucket", digest.hex()) % buckets[split]
            order = make_key(options.seed, "document", source.number, ordinal, number)
            held.setdefault((split, bucket), []).append(RECORD.pack(digest, order, len(data)) + data)
            held_bytes += len(data)
        if held_bytes >= SPILL_BYTES:
            _append(held, spill)
            held_bytes = 0
    _append(held, spill)
    return counts


def _append(held: dict[tuple[str, int], list[bytes]], spill: Path) -> None:
    for (split, bucket), records in held.items():
        with (spill / f"{split}-{bucket}-{os.getpid()}").open("ab") as file:
            file.write(b"".join(records))
    held.clear()


def _write_shard(job: tuple[Split, int], options: Options, folder: Path) -> tuple[IndexedShard | None, int]:
    split, bucket = job
    records = sorted(
        (order, digest, data)
        for file in (folder / "spill").glob(f"{split}-{bucket}-*")
        for digest, order, data in _records(file)
    )
    seen: set[bytes] = set()
    documents, duplicates = [], 0
    for _, digest, data in records:
        if digest in seen:
            duplicates += 1
            if options.deduplicate:
                continue
        seen.add(digest)
        documents.append(data.decode())
    if not documents:
        return None, duplicates
    path = folder / f"{split}-{bucket:06d}.tar"
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for number, lines in enumerate(_members(documents)):
            tar.write({"__key__": f"{bucket:06d}-{number:06d}", "jsonl": lines})
    return index_shard(path, options.block_bytes, "text", split), duplicates


def _records(file: Path) -> Iterator[tuple[bytes, int, bytes]]:
    with io.BufferedReader(file.open("rb", buffering=0)) as stream:
        while head := stream.read(RECORD.size):
            digest, order, length = RECORD.unpack(head)
            yield digest, order, stream.read(length)


def _members(documents: Sequence[str]) -> Iterator[bytes]:
    lines: list[str] = []
    size = 0
    for text in documents:
        lines.append(json.dumps({"text": text}, ensure_ascii=False))
        size += len(lines[-1])
        if size >= MEMBER_BYTES:
            yield ("\n".join(lines) + "\n").encode()
            lines, size = [], 0
    if lines:
        yield ("\n".join(lines) + "\n").encode()
