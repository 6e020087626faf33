"""The two passes of a shuffle: documents to batch files, and batch files to shards.

Pass 1 reads a batch of sources. The hash of a document's text chooses its bucket, so equal texts meet in one bucket. Pass 2 turns
one bucket into one shard. Its documents come in the order of a hash of their source and ordinal, many to a `.jsonl` member: that
reads four times faster than one a member. So the shards depend only on the input and the options.

Memory: a process holds one run of a batch (`run_bytes`), or the different texts of one bucket.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from maskloom.data.hashing import make_key
from maskloom.data.index.corpus import held_out_threshold, text_hash
from maskloom.data.index.files import Split
from maskloom.data.index.indexing import BLOCK_BYTES, IndexedShard, index_shard
from maskloom.data.sources.inputs import read_source
from maskloom.data.sources.source import Source, TextLayout
from maskloom.data.writing.report import SAMPLED_ONE_IN, WHOLE_BYTES, TextCounter
from maskloom.data.writing.spill import Record, SpillWriter, read_bucket, text_digest
from maskloom.data.writing.token_shards import write_token_shard
from maskloom.data.writing.work import Entry, WorkFolder
from maskloom.tokenizers.base import Tokenizer

MEMBER_BYTES = 32 * 1024  # or a block's, if that is less
SHARD_BYTES = 64 << 20
BATCH_BYTES = 64 << 20  # of text, about; more if there are many shards, so that a batch holds some records for each
SMALLEST_BATCH_BYTES = 256 << 10
BATCHES_OF_A_SMALL_CORPUS = 64  # so that many processes share it
BUCKET_BYTES = 32 << 10
LONGEST_DOCUMENT_BYTES = 64 * 1024
QUOTE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Options:
    """How a corpus is written. The defaults are the command's."""

    text_key: str = "text"
    layout: TextLayout = "file"
    val_fraction: float = 0.01
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    block_bytes: int = BLOCK_BYTES
    longest_document_bytes: int = LONGEST_DOCUMENT_BYTES
    deduplicate: bool = False


@dataclass(frozen=True)
class ShufflePlan:
    """How the documents are spread over shards. Picklable, and the same for every batch.

    Attributes:
        shards: number of buckets of each split.
        run_bytes: memory that records may take before they are written.
        sampled_one_in: share of the documents whose scripts are counted.
    """

    options: Options
    shards: dict[Split, int]
    run_bytes: int
    sampled_one_in: int


def plan_shuffle(sources: Sequence[Source], options: Options) -> tuple[ShufflePlan, list[list[Source]]]:
    """How many shards there are, and which sources are read together. Both follow from the estimated size of the text."""
    total = sum(source.bytes for source in sources)
    held_out = options.val_fraction
    shards: dict[Split, int] = {
        "train": max(1, round(total * (1 - held_out) / options.shard_bytes)),
        "validation": max(1, round(total * held_out / options.shard_bytes)) if held_out else 0,
    }
    run_bytes = max(BATCH_BYTES, BUCKET_BYTES * sum(shards.values()))
    batch_bytes = max(SMALLEST_BATCH_BYTES, min(run_bytes, total // BATCHES_OF_A_SMALL_CORPUS))
    batches: list[list[Source]] = []
    size = batch_bytes
    for source in sources:
        if size >= batch_bytes:
            batches.append([])
            size = 0
        batches[-1].append(source)
        size += source.bytes
    return ShufflePlan(options, shards, run_bytes, 1 if total <= WHOLE_BYTES else SAMPLED_ONE_IN), batches


def split_document(text: str, longest_bytes: int) -> list[str]:
    """Cut a document of more than `longest_bytes` of UTF-8 at paragraphs, lines or spaces. Only white space at the cuts is
    lost."""
    parts: list[str] = []
    start = 0
    while True:
        # A character has at least one byte, so so many characters are enough. To encode all of the rest would be quadratic.
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


def read_batch(number: int, sources: Sequence[Source], work: WorkFolder, shuffle: ShufflePlan) -> float:
    """Pass 1 of one batch. Returns the bytes of input that it read."""
    counter = TextCounter(shuffle.sampled_one_in)
    with work.writing(work.batch(number)) as file:
        spill = SpillWriter(file, len(work.plan.names), shuffle.run_bytes)
        for source in sources:
            _read_into(spill, counter, source, shuffle)
        spill.finish(counter.done().to_json())
    return sum(source.work_bytes for source in sources)


def _read_into(spill: SpillWriter, counter: TextCounter, source: Source, shuffle: ShufflePlan) -> None:
    options, report = shuffle.options, counter.report
    threshold = held_out_threshold(options.val_fraction)
    first: dict[Split, int] = {"train": 0, "validation": shuffle.shards["train"]}  # bucket of each split
    for ordinal, document in read_source(source, options.text_key, options.layout):
        text = document.strip()
        if not text:
            report.empty += 1
            continue
        data = text.encode()
        hashed = text_hash(text)
        if counter.add(text, len(data), hashed):
            report.longest = source.place(ordinal)
        # The whole document chooses, before it is cut: its parts must not stand on both sides.
        split: Split = "validation" if hashed < threshold else "train"
        parts = [data]
        if len(data) > options.longest_document_bytes:
            parts = [part.encode() for part in split_document(text, options.longest_document_bytes)]
            report.split += 1
        report.pieces += len(parts)
        for number, part in enumerate(parts):
            digest = text_digest(part)
            bucket = make_key(options.seed, "bucket", digest.hex()) % shuffle.shards[split]
            order = make_key(options.seed, "document", source.number, ordinal, number)
            spill.add(first[split] + bucket, Record(order, digest, part))


def write_shard(number: int, work: WorkFolder, shuffle: ShufflePlan, tokenizer: Tokenizer | None) -> None:
    """Pass 2 of one bucket."""
    records = _bucket_of(work, number)
    seen: set[bytes] = set()
    documents = []
    for record in records:
        if not (shuffle.options.deduplicate and record.digest in seen):
            documents.append(record.text)
        seen.add(record.digest)
    indexed, text = _write_tar(work, number, documents, shuffle.options, tokenizer) if documents else (None, None)
    work.write_entry(number, Entry(indexed, text, len(records), len(records) - len(seen)))


def _bucket_of(work: WorkFolder, number: int) -> list[Record]:
    """A bucket's records in their order. Equal texts are held in memory once."""
    texts: dict[bytes, bytes] = {}
    records: list[Record] = []
    for batch in range(work.plan.batches):
        found = read_bucket(work.batch(batch), number, len(work.plan.names))
        records += (record._replace(text=texts.setdefault(record.digest, record.text)) for record in found)
    return sorted(records)


def _write_tar(
    work: WorkFolder, number: int, documents: Sequence[bytes], options: Options, tokenizer: Tokenizer | None
) -> tuple[IndexedShard, IndexedShard | None]:
    """Write a shard; returns its rows of the index. With a tokenizer: those of the token shard, and of its text shard, which is
    not kept."""
    import webdataset  # it imports torch, which takes a second

    path = work.shard(number)
    split, _, bucket = path.stem.partition("-")
    # Token shards take over the block table of the text shard, so write that first, as a temporary.
    text_path = work.temporary(f"text-{path.name}") if tokenizer else path
    with work.writing(text_path) as file, webdataset.TarWriter(file, mtime=0) as tar:
        for member, lines in enumerate(jsonl_members(documents, min(MEMBER_BYTES, options.block_bytes))):
            tar.write({"__key__": f"{bucket}-{member:06d}", "jsonl": lines})
    indexed = index_shard(text_path, options.block_bytes, "text", "train" if split == "train" else "validation")
    if not tokenizer:
        return indexed, None

    def read_block(place: int) -> io.BytesIO:
        with text_path.open("rb") as file:
            file.seek(int(indexed.blocks["offset"][place]))
            return io.BytesIO(file.read(int(indexed.blocks["length"][place])))

    threshold = held_out_threshold(options.val_fraction)
    tokens = write_token_shard(work, path, indexed, read_block, tokenizer, text_key="text", threshold=threshold)
    text_path.unlink()
    return tokens, indexed


def jsonl_members(documents: Iterable[bytes], member_bytes: int) -> Iterator[bytes]:
    """Documents as lines of JSON, in `.jsonl` members of about `member_bytes` characters. A block holds at least one member."""
    lines: list[str] = []
    size = 0
    for text in documents:
        lines.append(f'{{"text": {QUOTE(text.decode())}}}')  # as `json.dumps` would, but twice as fast
        size += len(lines[-1])
        if size >= member_bytes:
            yield ("\n".join(lines) + "\n").encode()
            lines, size = [], 0
    if lines:
        yield ("\n".join(lines) + "\n").encode()
