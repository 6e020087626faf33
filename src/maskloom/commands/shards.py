"""Write text as webdataset shards with an index.

INPUT is a file (.txt, .jsonl, .jsonl.gz, .jsonl.zst), a folder that is searched for such files, or `documentation:`,
the English documentation of the installed Python packages. Documents are shuffled over all shards; a share of them,
chosen by the hash of their text, is held out for evaluation. OUT appears when it is complete.

example:
  maskloom shards my_texts/ data/my_corpus --val-fraction 0.01
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskloom.commands.arguments import byte_count, cores, fraction, positive
from maskloom.data.index import BLOCK_BYTES
from maskloom.data.shards import LONGEST_DOCUMENT_BYTES, SHARD_BYTES, Options, write_shards
from maskloom.progress import Progress, say

MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT")
    add("out", type=Path, metavar="OUT", help="folder to write; it must not exist")
    add("--text-key", default="text", help="where the text stands in a JSON object (default: text)")
    add("--blank-line", action="store_true", help="documents in .txt files are separated by blank lines")
    add("--val-fraction", type=fraction, default=0.01, help="share of documents held out (default: 0.01)")
    add("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    add("--processes", type=positive, default=cores(), help="default: all cores")
    add("--shard-bytes", type=byte_count, default=SHARD_BYTES, help="text a shard, about (default: 64M)")
    add(
        "--block-bytes",
        type=byte_count,
        default=BLOCK_BYTES,
        help="text a block, the unit of shuffling (default: 128K)",
    )
    add(
        "--max-document-bytes",
        type=byte_count,
        default=LONGEST_DOCUMENT_BYTES,
        help="longer documents are split at paragraphs (default: 64K)",
    )
    add("--deduplicate", action="store_true", help="keep one of each set of exact duplicates")


def run(options: argparse.Namespace) -> int:
    settings = Options(
        text_key=options.text_key,
        layout="blank-line" if options.blank_line else "file",
        val_fraction=options.val_fraction,
        seed=options.seed,
        shard_bytes=options.shard_bytes,
        block_bytes=options.block_bytes,
        longest_document_bytes=max(options.max_document_bytes, 4),
        deduplicate=options.deduplicate,
    )
    progress: list[Progress] = []
    index, counts = write_shards(
        options.inputs,
        options.out,
        settings,
        options.processes,
        on_plan=lambda total: progress.append(Progress("reading", total, "MiB", MIB)),
        on_read=lambda size: progress[0].advance(size),
    )
    header = index.header
    say(
        f"{options.out}: {header['documents']:,} documents for training and {header['held_out_documents']:,} held out, "
        f"{header['text_bytes'] / MIB:,.1f} MiB of text in {len(index.shards)} shard(s), {header['blocks']:,} blocks"
    )
    dropped = "dropped" if settings.deduplicate or "documentation:" in options.inputs else "kept"
    say(
        f"{counts.empty:,} empty documents left out, {counts.split:,} long documents split, "
        f"{counts.duplicates:,} exact duplicates {dropped}"
    )
    return 0
