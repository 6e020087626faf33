"""Documents to tar shards and their index: a shuffle in two passes with bounded memory, on one machine or several.

```
sources -> batches --pass 1--> batch files: records sorted by bucket --pass 2--> one shard a bucket -> index, report
```
The passes stand in `passes.py`. Both are lists of pieces of work, each with one file as its result (`work.py`). Start a killed
job again, and it does the pieces that are not done. Several machines with a shared file system each do their part of the pieces.
OUT is there whole, or not at all.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from maskloom.data.index.corpus import Index, held_out_threshold
from maskloom.data.index.files import Tokens
from maskloom.data.index.indexing import write_index
from maskloom.data.index.loading import load_index
from maskloom.data.sources.inputs import find_sources, input_kind
from maskloom.data.sources.source import Source, check_unchanged
from maskloom.data.writing.passes import Options, ShufflePlan, plan_shuffle, read_batch, write_shard
from maskloom.data.writing.report import Report
from maskloom.data.writing.spill import read_notes
from maskloom.data.writing.token_shards import index_of_tokens, text_digest_of
from maskloom.data.writing.work import (
    JobPart,
    WorkFolder,
    WorkPlan,
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

POLL_S = 5.0

Advance = Callable[[float], None]
OnStage = Callable[[str, float], Advance]


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
        on_stage: called with name and size of each stage ("reading", bytes; "writing", shards). Returns the function that is
            called with the progress.

    Raises:
        UserError: `out` exists, or bad input (with file and place): nothing is left behind then. After any other error, the
            same call resumes the work.
    """
    try:
        write_part(inputs, out, options, JobPart(), processes, tokenizer=tokenizer, on_stage=on_stage)
    except BadInput as error:
        if not error.work.is_shared:  # other machines may still need what they did
            shutil.rmtree(error.work.folder)
        raise
    index, report = finish_or_open(out)
    assert report is not None
    return index, report


class BadInput(UserError):
    """The input cannot be read, so whatever was made of it is of no use.

    Attributes:
        work: the work that was begun.
    """

    def __init__(self, message: str, work: WorkFolder) -> None:
        super().__init__(message)
        self.work = work


def write_part(
    inputs: Sequence[str],
    out: Path,
    options: Options,
    part: JobPart,
    processes: int = 1,
    *,
    tokenizer: Tokenizer | None = None,
    wait: bool = False,
    on_stage: OnStage = lambda name, total: lambda amount: None,
    on_wait: Callable[[list[int]], None] = lambda parts: None,
) -> list[int]:
    """Do one part's share of the work on `out`. `finish` makes the corpus when all parts are done.

    Args:
        wait: wait until the other parts have read, instead of returning.
        on_wait: called with the numbers of the parts that have not read yet, whenever they change.

    Returns:
        Numbers of the parts that have not read all of their input yet. This part can write its shards when they have. Empty: the
        shards are written, or `out` is complete already by the same plan.

    Raises:
        UserError: `out` exists, bad input, other work on `out` was begun, or another process works on this part.
    """
    if not work_folder(out).exists():
        refuse_existing(out)  # fail before anything is downloaded
    sources = find_sources(inputs, options.text_key)
    if any(kind.holds_copies for given in inputs if (kind := input_kind(given))):
        options = replace(options, deduplicate=True)
    shuffle, batches = plan_shuffle(sources, options)
    files = dict.fromkeys((source.title, source.stamp) for source in sources)
    names = shard_names(list(shuffle.shards.items()))
    fingerprint = tokenizer.tokens_mark if tokenizer else ""
    plan = WorkPlan(tuple(inputs), asdict(options), fingerprint, "", len(batches), names, tuple(files))
    if is_finished(out, plan):
        return []
    work = begin(out, plan, part)
    try:
        with work.locked(), Pool(processes, __name__, "webdataset") as pool:
            _read_share(work, shuffle, batches, pool, on_stage)
            late = _wait_for_readers(work, wait, on_wait)
            if not late:
                mine = [number for number in work.unwritten() if part.takes(number)]
                advance = on_stage("writing", len(mine))
                job = functools.partial(write_shard, work=work, shuffle=shuffle, tokenizer=tokenizer)
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
        The index, and the report on the text. The report is None if the blocks of a corpus were tokenised.

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
    remove_finished(out)  # after the lock is released: NFS keeps an open file, and with it the folder
    return _open(out)


def finish_or_open(out: Path) -> tuple[Index, Report | None]:
    """As `finish`. If another process finished `out` meanwhile, it is opened."""
    return _open(out) if out.exists() and not work_folder(out).exists() else finish(out)


def read_report(out: Path) -> Report | None:
    """The report on the text of a corpus, if it has one."""
    file = out / "report.json"
    return Report.from_json(json.loads(file.read_bytes())) if file.exists() else None


def _open(out: Path) -> tuple[Index, Report | None]:
    return load_index(out.absolute()), read_report(out)  # absolute: "a:b" would look like a URL


def _read_share(
    work: WorkFolder, shuffle: ShufflePlan, batches: list[list[Source]], pool: Pool, on_stage: OnStage
) -> None:
    """Pass 1 of this part's batches that were not read yet. Raises BadInput."""
    mine = [number for number in work.unread() if work.part.takes(number)]
    advance = on_stage("reading", sum(source.work_bytes for number in mine for source in batches[number]))
    job = functools.partial(read_batch, work=work, shuffle=shuffle)
    try:
        for size in pool.map(job, mine, [batches[number] for number in mine]):
            advance(size)
        # Check once more, since a network file system may report a change late.
        for source in {source.name: source for number in mine for source in batches[number]}.values():
            check_unchanged(source)
    except UserError as error:
        raise BadInput(str(error), work) from error


def _wait_for_readers(work: WorkFolder, wait: bool, on_wait: Callable[[list[int]], None]) -> list[int]:
    late: list[int] = []
    while unread := work.unread():
        now = sorted({number % work.part.of + 1 for number in unread})
        if now != late:
            on_wait(late := now)
        if not wait:
            return late
        time.sleep(POLL_S)
    return []


def _finish_text(work: WorkFolder) -> None:
    """Write the index and the report of shards that were made of text."""
    plan, corpus = work.plan, work.folder / "corpus"
    entries = [work.read_entry(number) for number in range(len(plan.names))]
    report = sum((Report.from_json(read_notes(work.batch(number))) for number in range(plan.batches)), Report())
    report.duplicates = sum(entry.duplicates for entry in entries)
    report.dropped = bool(plan.options["deduplicate"])
    # Every piece that pass 1 wrote must have reached a shard in pass 2.
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


def _check_done(work: WorkFolder, out: Path) -> None:
    """Raises UserError that names the parts that are not done."""
    for what, left in (("read", work.unread()), ("written", work.unwritten())):
        if left:
            of = work.parts()
            parts = sorted({number % of + 1 for number in left}) if of else []
            named = f"part(s) {', '.join(f'{part}/{of}' for part in parts)}" if parts else "the parts"
            raise UserError(
                f"{out} is not complete: {len(left)} piece(s) are not {what} yet. Run {named} of `maskloom shards` again"
            )
