"""Write text as webdataset shards with an index.

INPUT is
  a file: .txt, .jsonl, .csv, .tsv (these also as .gz or .zst), .parquet
  a folder, which is searched for such files
  a folder that Hugging Face's `datasets` saved with `save_to_disk`
  hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT, a dataset of the Hugging Face hub (it is downloaded into the cache of `datasets`)
  documentation: the English documentation of the installed Python packages
  with --tokenizer also a folder of text shards: its blocks are tokenised
Documents are shuffled over all shards. A share of them, chosen by the hash of their text, is held out for evaluation.
OUT appears when it is complete. Until then the work is in .OUT.work beside it. If the command was stopped, start it again to
resume.

Several machines with a shared file system write one corpus together: --part 1/3, 2/3 and 3/3, each on its machine. A
part reads its share of the input; when all have read theirs (start a part again then, or give it --wait), it writes its
share of the shards. `maskloom index --merge OUT` completes the corpus, which is the same as that of one machine.

CORPUS NEW --without FILE takes documents out: NEW holds all documents of CORPUS but those in FILE (a file or folder of text, as
INPUT), in the same order. They are known by their text. `maskloom index --check NEW --without FILE` proves that none is left.

examples:
  maskloom shards my_texts/ data/my_corpus --val-fraction 0.01
  maskloom shards hf:roneneldan/TinyStories:train data/stories
  maskloom shards data/my_corpus data/my_corpus_tokens --tokenizer tokenizer/
  maskloom shards data/my_corpus data/cleaned --without person.jsonl
  sbatch --array=1-8 --wrap 'maskloom shards big/ data/big --wait --part $SLURM_ARRAY_TASK_ID/8'
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path

from maskloom.commands.arguments import WHOLE, byte_count, fraction, positive
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.reading.storage import is_remote, local_path
from maskloom.data.skew import note_on_sizes
from maskloom.data.writing.passes import Options
from maskloom.data.writing.removal import look_for, missing_of, places, read_list, warn_of_cuts, without
from maskloom.data.writing.report import Report
from maskloom.data.writing.shards import finish_or_open, write_part, write_shards
from maskloom.data.writing.token_shards import tokenize_corpus
from maskloom.data.writing.work import JobPart, work_folder
from maskloom.errors import UserError
from maskloom.files import refuse_existing
from maskloom.hardware import cores
from maskloom.progress import Progress, say, size, warn
from maskloom.tokenizers.loading import load_tokenizer

MIB = 1 << 20
TEXT_OPTIONS = {  # their names in `Options`; those that are not given have the defaults there
    "text_key": "text_key",
    "val_fraction": "val_fraction",
    "seed": "seed",
    "shard_bytes": "shard_bytes",
    "block_bytes": "block_bytes",
    "max_document_bytes": "longest_document_bytes",
    "deduplicate": "deduplicate",
    "blank_line": "layout",
}


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT")
    add("out", type=local_folder, metavar="OUT", help="folder to write; it must not exist")
    add("--text-key", help="where the text stands in a JSON object, or the column of a table (default: text)")
    add(
        "--blank-line",
        action="store_const",
        const="blank-line",
        help="documents in .txt files are separated by blank lines (default: one a file)",
    )
    add("--val-fraction", type=fraction, help="share of documents held out (default: 0.01)")
    add("--seed", type=int, help="of the shuffle (default: 0)")
    add("--processes", type=positive, default=cores(), help="default: all cores")
    add("--shard-bytes", type=byte_count, help="text a shard, about (default: 64M)")
    add("--block-bytes", type=byte_count, help="text a block, the unit of shuffling (default: 128K)")
    add("--max-document-bytes", type=byte_count, help="longer documents are split at paragraphs (default: 64K)")
    add("--deduplicate", action="store_const", const=True, help="keep one of each set of exact duplicates")
    add("--tokenizer", metavar="TOK", help="write token shards: only for training with this tokenizer, faster to read")
    add("--part", type=_part, metavar="I/N", help="do the I-th of N parts of the work, I from 1 to N")
    add("--wait", action="store_true", help="with --part: wait until all parts have read, then write")
    add(
        "--without",
        action="append",
        metavar="FILE",
        help="take the documents of this file out of a corpus; may be given again",
    )
    add("--missing-ok", action="store_true", help="with --without: some of these documents may not be in the corpus")


def run(options: argparse.Namespace) -> int:
    if options.wait and not options.part:
        raise UserError("--wait is for --part: a run on one machine waits for nobody")
    if options.missing_ok and not options.without:
        raise UserError("--missing-ok is for --without, which is not given")
    if options.without:
        return _take_out(options)
    try:
        return _tokenize(options) if options.tokenizer and _is_corpus(options.inputs[0]) else _write(options)
    except (OSError, KeyboardInterrupt):
        folder = work_folder(options.out)
        if folder.exists():
            warn(f"the finished part is in {folder}: start the same command again to resume")
        raise


def local_folder(text: str) -> Path:
    """A folder on this machine to write into, from a path or a file:// URL."""
    try:
        return local_path(text) if "://" in text else Path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def describe(out: Path, index: Index, report: Report | None) -> None:
    """Print what a complete corpus holds."""
    header = index.header
    what = "tokenised text" if index.tokenizer_fingerprint else "text"
    say(
        f"{out}: {header['documents']:,} documents for training and {header['held_out_documents']:,} held out, "
        f"{size(header['text_bytes'])} of {what} in {len(index.shards)} shard(s), {header['blocks']:,} blocks"
    )
    for line in report.lines() if report else ():
        say(line)
    if note := note_on_sizes(index):
        warn(f"{out}: {note}")


def _write(options: argparse.Namespace) -> int:
    settings = _settings(options)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    with Stages() as stages:
        if not options.part:
            index, report = write_shards(
                options.inputs, options.out, settings, options.processes, tokenizer=tokenizer, on_stage=stages
            )
        else:
            late = write_part(
                options.inputs,
                options.out,
                settings,
                options.part,
                options.processes,
                tokenizer=tokenizer,
                wait=options.wait,
                on_stage=stages,
                on_wait=lambda parts: (
                    say(f"waiting for {_named(parts, options.part)} to read") if options.wait else None
                ),
            )
    if not options.part:
        describe(options.out, index, report)
    elif options.out.exists():
        describe(options.out, *finish_or_open(options.out))
        say(f"{options.out} is complete: another process finished it")
    elif late:
        say(
            f"part {options.part} has read its input. Its shards wait for {_named(late, options.part)} to read: run this "
            "command again then"
        )
    else:
        _say_written(options)
    return 0


def _tokenize(options: argparse.Namespace) -> int:
    given = options.inputs[0]
    if len(options.inputs) > 1:
        raise UserError(f"{given} is a corpus: token shards are made of one at a time")
    unfit = [f"--{name.replace('_', '-')}" for name in _given(options)]
    if unfit:
        raise UserError(f"{given} is a corpus, whose blocks are tokenised as they are: leave out {unfit[0]}")
    with Stages() as stages:
        tokenize_corpus(
            load_index(given if "://" in given else Path(given).absolute()),
            options.out,
            load_tokenizer(options.tokenizer),
            options.part or JobPart(),
            options.processes,
            stages,
        )
    if options.part and not options.out.exists():
        _say_written(options)
    else:
        describe(options.out, *finish_or_open(options.out))
    return 0


def _take_out(options: argparse.Namespace) -> int:
    given = options.inputs[0]
    if len(options.inputs) > 1 or not _is_corpus(given):
        raise UserError(f"--without takes documents out of one corpus, and {' '.join(options.inputs)} is not one")
    for name in ("val_fraction", "seed", "shard_bytes", "block_bytes", "deduplicate", "tokenizer", "part"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--without keeps the shards and blocks of {given}: leave out --{name.replace('_', '-')}. Token shards are "
                "made of the new text shards"
            )
    refuse_existing(options.out)
    settings = _settings(options)
    wanted = read_list(options.without, settings)
    index = load_index(given if "://" in given else Path(given).absolute())
    shards = len(index.shards)
    with Progress("looking", shards, "shards", 1) as progress:
        seen = look_for(index, wanted, options.processes, lambda number: progress.advance(1))
    missing = missing_of(wanted, seen.counts)
    if missing and not options.missing_ok:
        raise UserError(
            f"{len(missing):,} of {len(wanted):,} documents are not in {given}: {places(missing)}. Nothing was written. See that "
            "--text-key, --blank-line and --max-document-bytes are as they were for the corpus, and that the text is the same "
            "to the letter; or add --missing-ok"
        )
    warn_of_cuts(wanted, seen, settings)
    if not seen.counts:
        say(f"none of the {len(wanted):,} documents is in {given}: nothing was written")
        return 0
    with Progress("writing", shards, "shards", 1) as progress:
        made, removal = without(index, options.out, wanted, options.processes, lambda number: progress.advance(1))
    describe(options.out, made, None)
    say(
        f"{removal.found:,} of {removal.listed:,} listed documents found; {removal.documents_before:,} documents before, "
        f"{removal.removed:,} taken out, {removal.documents_after:,} after (removed.json). {given} still holds them: delete it"
    )
    return 0


def _settings(options: argparse.Namespace) -> Options:
    given = {TEXT_OPTIONS[name]: getattr(options, name) for name in _given(options)}
    if "longest_document_bytes" in given:
        given["longest_document_bytes"] = max(given["longest_document_bytes"], 4)  # the longest character
    return Options(**given)


def _say_written(options: argparse.Namespace) -> None:
    say(
        f"part {options.part} is written. When all parts are, complete the corpus: maskloom index --merge "
        f"{shlex.quote(str(options.out))}"
    )


class Stages:
    """Shows the progress of one stage after the other."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def __call__(self, name: str, total: float) -> Callable[[float], None]:
        self.stack.close()
        unit = ("MiB", MIB) if name == "reading" else ("shards", 1)
        return self.stack.enter_context(Progress(name, total, *unit)).advance


def _is_corpus(given: str) -> bool:
    """Whether an INPUT is a corpus, local or remote. Only `://` makes a URL: a path may hold a colon."""
    if "://" not in given:
        return (Path(given) / "index.json").is_file()
    return is_remote(given) or (local_path(given) / "index.json").is_file()


def _given(options: argparse.Namespace) -> list[str]:
    return [name for name in TEXT_OPTIONS if getattr(options, name) is not None]


def _named(parts: list[int], part: JobPart) -> str:
    return "part(s) " + ", ".join(str(JobPart(number, part.of)) for number in parts)


def _part(text: str) -> JobPart:
    number, slash, of = text.partition("/")
    if not (slash and WHOLE.fullmatch(number) and WHOLE.fullmatch(of) and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a part I/N with I from 1 to N, such as 1/8")
    return JobPart(int(number), int(of))
