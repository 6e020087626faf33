"""Documents to tar shards and their index: a shuffle in two passes with bounded memory, on one machine or several.

```
sources -> batches --pass 1--> batch files: records sorted by bucket --pass 2--> one shard a bucket -> index, report
```
Pass 1 reads the sources in several processes; every document falls into a bucket chosen by the hash of its text. Pass 2
turns each bucket into a shard: its documents in the order of a hash of where they came from, many to a `.jsonl` member,
read four times faster than one a member. So the shards depend only on the input and the options, not on processes, parts
or restarts; exact duplicates meet in one bucket, where they are counted and, if asked, dropped.

Both passes are lists of pieces of work, each with one file as its result (`work.py`). A killed job that is started again
does the pieces that are not done; several machines with a shared file system each do their part of them. OUT is there
whole, or not at all.

Memory: a process holds one run of a batch (`run_bytes`), or the different texts of one bucket.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import webdataset

from maskloom.data.hashing import make_key
from maskloom.data.index.index import Index, Split, Tokens, held_out_threshold, load_index, text_hash
from maskloom.data.index.indexing import BLOCK_BYTES, IndexedShard, index_shard, write_index
from maskloom.data.sources.corpus import find_sources, read_source
from maskloom.data.sources.documentation import DOCUMENTATION
from maskloom.data.sources.source import Source, TextLayout, check_unchanged, place_of
from maskloom.data.writing.report import SAMPLED_ONE_IN, WHOLE_BYTES, Report, Tally
from maskloom.data.writing.spill import Record, SpillWriter, read_bucket, read_notes, text_digest
from maskloom.data.writing.token_shards import index_of_tokens, text_digest_of, write_token_shard
from maskloom.data.writing.work import (
    Entry,
    Part,
    Plan,
    Work,
    begin,
    is_finished,
    open_work,
    remove_finished,
    shard_names,
    work_folder,
)
from maskloom.errors import UserError
from maskloom.files import naming, refuse_existing
from maskloom.processes import Pool
from maskloom.tokenizers.base import Tokenizer

MEMBER_BYTES = 32 * 1024  # or a block's, where that is less
SHARD_BYTES = 64 << 20
BATCH_BYTES = 64 << 20  # of text, about; with many shards more, so that a batch holds some records for each
SMALLEST_BATCH_BYTES = 256 << 10
BATCHES_OF_A_SMALL_CORPUS = 64  # so that many processes share it
BUCKET_BYTES = 32 << 10
LONGEST_DOCUMENT_BYTES = 64 * 1024
POLL_S = 5.0
QUOTE = json.JSONEncoder(ensure_ascii=False).encode

Advance = Callable[[float], None]
OnStage = Callable[[str, float], Advance]


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


@dataclass(frozen=True)
class Reading:
    """How pass 1 reads: picklable, the same for every batch.

    Attributes:
        shards: number of buckets a split.
        run_bytes: memory that records may take before they are written.
    """

    options: Options
    shards: dict[Split, int]
    run_bytes: int
    sampled_one_in: int


def write_shards(
    inputs: Sequence[str],
    out: Path,
    options: Options,
    processes: int = 1,
    *,
    tokenizer: Tokenizer | None = None,
    on_stage: OnStage = lambda name, total: lambda amount: None,
) -> tuple[Index, Report]:
    """Write `inputs` as shards and an index into the folder `out`, which must not exist.

    Args:
        tokenizer: write token shards, with the identity of the text shards that the same options give.
        on_stage: told the name and size of each stage ("reading", bytes; "writing", shards); returns what is told progress.

    Raises:
        UserError: `out` exists, or bad input (naming file and place): nothing is left behind then. After any other error
            the same call goes on where it ended.
    """
    try:
        write_part(inputs, out, options, Part(), processes, tokenizer=tokenizer, on_stage=on_stage)
    except BadInput as error:
        if not error.work.is_shared:
            shutil.rmtree(error.work.folder)
        raise
    index, report = finish_or_open(out)
    assert report is not None
    return index, report


class BadInput(UserError):
    """The input cannot be read: whatever was done with it is of no use.

    Attributes:
        work: what was begun.
    """

    def __init__(self, message: str, work: Work) -> None:
        super().__init__(message)
        self.work = work


def write_part(
    inputs: Sequence[str],
    out: Path,
    options: Options,
    part: Part,
    processes: int = 1,
    *,
    tokenizer: Tokenizer | None = None,
    wait: bool = False,
    on_stage: OnStage = lambda name, total: lambda amount: None,
    on_wait: Callable[[list[int]], None] = lambda parts: None,
) -> list[int]:
    """Do one part's share of the work on `out`; `finish` makes the corpus when all parts are done.

    Args:
        wait: wait until the other parts have read, in place of returning.
        on_wait: told the numbers of the parts that have not read yet, whenever they change.

    Returns:
        Numbers of the parts that have not read all of their input: this part's shards can be written when they have. Empty:
        they are written, or `out` is complete already: made by the same plan, and another process finished it meanwhile
        or was killed when it did.

    Raises:
        UserError: `out` exists, bad input, other work on `out` was begun, or another process works on this part.
    """
    if not work_folder(out).exists():
        refuse_existing(out)  # before anything is downloaded
    sources = find_sources(inputs, options.text_key)
    if DOCUMENTATION in inputs:
        options = replace(options, deduplicate=True)  # the same text is vendored in many packages
    reading, batches = plan_reading(sources, options)
    files = dict.fromkeys((source.title, source.stamp) for source in sources)
    names = shard_names(list(reading.shards.items()))
    fingerprint = tokenizer.tokens_mark if tokenizer else ""
    plan = Plan(tuple(inputs), asdict(options), fingerprint, "", len(batches), names, tuple(files))
    if is_finished(out, plan):
        return []
    work = begin(out, plan, part)
    try:
        with work.locked(), Pool(processes, __name__) as pool:
            _read_share(work, reading, batches, pool, on_stage)
            late = _wait_for_readers(work, wait, on_wait)
            if not late:
                mine = [number for number in work.unwritten() if part.takes(number)]
                advance = on_stage("writing", len(mine))
                job = functools.partial(_write_shard, work=work, reading=reading, tokenizer=tokenizer)
                for _ in pool.map(job, mine):
                    advance(1)
    except FileNotFoundError:
        if out.exists() and not (work.folder / "corpus").exists():  # another process finished it
            return []
        raise
    return late


def finish(out: Path) -> tuple[Index, Report | None]:
    """Make the index of the shards that all parts wrote, and rename them to `out`.

    Returns:
        The index, and the report on the text where it was read (None: the blocks of a corpus were tokenised).

    Raises:
        UserError: no work on `out`, a part that is not done (named), or no text at all.
    """
    if remove_finished(out):
        return _open(out)
    if out.exists():
        raise UserError(f"{out} exists: there is nothing left to finish")
    work = open_work(out)
    try:
        with work.finishing():
            _check_done(work, out)
            with naming(work.folder / "corpus"):
                if work.plan.corpus:
                    index_of_tokens(work)
                else:
                    _finish_text(work)
            work.complete(out)
    except BadInput:
        shutil.rmtree(work.folder)
        raise
    remove_finished(out)  # with the lock released: NFS keeps a file that is open, and then its folder
    return _open(out)


def finish_or_open(out: Path) -> tuple[Index, Report | None]:
    """As `finish`; an `out` that another process finished meanwhile is opened."""
    return _open(out) if out.exists() and not work_folder(out).exists() else finish(out)


def read_report(out: Path) -> Report | None:
    """The report on the text of a corpus, where it has one."""
    file = out / "report.json"
    return Report.from_json(json.loads(file.read_bytes())) if file.exists() else None


def plan_reading(sources: Sequence[Source], options: Options) -> tuple[Reading, list[list[Source]]]:
    """How many shards, and which sources are read together: from the estimated size of the text alone."""
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
    return Reading(options, shards, run_bytes, 1 if total <= WHOLE_BYTES else SAMPLED_ONE_IN), batches


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


def _open(out: Path) -> tuple[Index, Report | None]:
    return load_index(out.absolute()), read_report(out)  # absolute: a name such as "a:b" would read as a URL


def _read_share(work: Work, reading: Reading, batches: list[list[Source]], pool: Pool, on_stage: OnStage) -> None:
    """Pass 1 of the batches that are this part's and were not read yet. Raises BadInput."""
    mine = [number for number in work.unread() if work.part.takes(number)]
    advance = on_stage("reading", sum(source.work_bytes for number in mine for source in batches[number]))
    job = functools.partial(_read_batch, work=work, reading=reading)
    try:
        for size in pool.map(job, mine, [batches[number] for number in mine]):
            advance(size)
        # Once more, though each was looked at when it was read: a network file system tells of a change late.
        for source in {source.name: source for number in mine for source in batches[number]}.values():
            check_unchanged(source)
    except UserError as error:
        raise BadInput(str(error), work) from error


def _read_batch(number: int, sources: Sequence[Source], work: Work, reading: Reading) -> float:
    """Pass 1 of one batch. Returns the bytes of input that it read."""
    tally = Tally(reading.sampled_one_in)
    with work.writing(work.batch(number)) as file:
        spill = SpillWriter(file, len(work.plan.names), reading.run_bytes)
        for source in sources:
            _read_into(spill, tally, source, reading)
        spill.finish(tally.done().to_json())
    return sum(source.work_bytes for source in sources)


def _read_into(spill: SpillWriter, tally: Tally, source: Source, reading: Reading) -> None:
    options, report = reading.options, tally.report
    threshold = held_out_threshold(options.val_fraction)
    first: dict[Split, int] = {"train": 0, "validation": reading.shards["train"]}  # bucket of each split
    for ordinal, document in read_source(source, options.text_key, options.layout):
        text = document.strip()
        if not text:
            report.empty += 1
            continue
        data = text.encode()
        hashed = text_hash(text)
        if tally.add(text, len(data), hashed):
            report.longest = place_of(source, ordinal)
        # By the whole document, before it is cut: its parts must not stand on both sides.
        split: Split = "validation" if hashed < threshold else "train"
        parts = [data]
        if len(data) > options.longest_document_bytes:
            parts = [part.encode() for part in split_document(text, options.longest_document_bytes)]
            report.split += 1
        report.pieces += len(parts)
        for number, part in enumerate(parts):
            digest = text_digest(part)
            bucket = make_key(options.seed, "bucket", digest.hex()) % reading.shards[split]
            order = make_key(options.seed, "document", source.number, ordinal, number)
            spill.add(first[split] + bucket, Record(order, digest, part))


def _wait_for_readers(work: Work, wait: bool, on_wait: Callable[[list[int]], None]) -> list[int]:
    late: list[int] = []
    while unread := work.unread():
        now = sorted({number % work.part.of + 1 for number in unread})
        if now != late:
            on_wait(late := now)
        if not wait:
            return late
        time.sleep(POLL_S)
    return []


def _write_shard(number: int, work: Work, reading: Reading, tokenizer: Tokenizer | None) -> None:
    """Pass 2 of one bucket."""
    records = _bucket_of(work, number)
    seen: set[bytes] = set()
    documents = []
    for record in records:
        if not (reading.options.deduplicate and record.digest in seen):
            documents.append(record.text)
        seen.add(record.digest)
    indexed, text = _write_tar(work, number, documents, reading.options, tokenizer) if documents else (None, None)
    work.write_entry(number, Entry(indexed, text, len(records), len(records) - len(seen)))


def _bucket_of(work: Work, number: int) -> list[Record]:
    """A bucket's records in their order; of equal texts one is held."""
    texts: dict[bytes, bytes] = {}
    records: list[Record] = []
    for batch in range(work.plan.batches):
        found = read_bucket(work.batch(batch), number, len(work.plan.names))
        records += (record._replace(text=texts.setdefault(record.digest, record.text)) for record in found)
    return sorted(records)


def _write_tar(
    work: Work, number: int, documents: Sequence[bytes], options: Options, tokenizer: Tokenizer | None
) -> tuple[IndexedShard, IndexedShard | None]:
    """The shard's rows of the index; with a tokenizer those of the token shard, and of its text, which is not kept."""
    path = work.shard(number)
    split, _, bucket = path.stem.partition("-")
    text_path = work.temporary(f"text-{path.name}") if tokenizer else path
    with work.writing(text_path) as file, webdataset.TarWriter(file, mtime=0) as tar:
        for member, lines in enumerate(_members(documents, min(MEMBER_BYTES, options.block_bytes))):
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


def _members(documents: Iterable[bytes], member_bytes: int) -> Iterator[bytes]:
    """Lines of JSON, in members of about so many characters: a block holds at least one."""
    lines: list[str] = []
    size = 0
    for text in documents:
        lines.append(f'{{"text": {QUOTE(text.decode())}}}')  # as `json.dumps` writes it, twice as fast
        size += len(lines[-1])
        if size >= member_bytes:
            yield ("\n".join(lines) + "\n").encode()
            lines, size = [], 0
    if lines:
        yield ("\n".join(lines) + "\n").encode()


def _finish_text(work: Work) -> None:
    """Write the index and the report of shards that were made of text."""
    plan, corpus = work.plan, work.folder / "corpus"
    entries = [work.read_entry(number) for number in range(len(plan.names))]
    report = sum((Report.from_json(read_notes(work.batch(number))) for number in range(plan.batches)), Report())
    report.duplicates = sum(entry.duplicates for entry in entries)
    report.dropped = bool(plan.options["deduplicate"])
    found = sum(entry.records for entry in entries)
    if found != report.pieces:
        raise UserError(
            f"{report.pieces} pieces of text were read into {work.folder / 'batches'}, {found} of them came back: a file "
            f"there is damaged. Remove {work.folder} and start again"
        )
    if not report.documents:
        raise BadInput(f"no text in {', '.join(plan.inputs)}: every document is empty", work)
    options = Options(**plan.options)
    threshold = held_out_threshold(options.val_fraction)
    texts = [entry.text for entry in entries if entry.text]
    write_index(
        corpus,
        [entry.indexed for entry in entries if entry.indexed],
        text_key="text",
        block_bytes=options.block_bytes,
        threshold=threshold,
        tokens=Tokens.of(plan.tokenizer) if plan.tokenizer else None,
        digest=text_digest_of(texts, "text", threshold) if plan.tokenizer else None,
    )
    (corpus / "report.json").write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")


def _check_done(work: Work, out: Path) -> None:
    """Raises UserError that names the parts that are not done."""
    for what, left in (("read", work.unread()), ("written", work.unwritten())):
        if left:
            of = work.parts()
            parts = sorted({number % of + 1 for number in left}) if of else []
            named = f"part(s) {', '.join(f'{part}/{of}' for part in parts)}" if parts else "the parts"
            raise UserError(
                f"{out} is not complete: {len(left)} piece(s) are not {what} yet. Run {named} of `maskloom shards` again"
            )
