"""Index webdataset tars that exist, without copying them.

TAR is a tar file or a folder of them, as `webdataset.ShardWriter` writes them, with .txt, .json or .jsonl members. The
index is written into the folder of the first one, or into --out; data.train then names that folder.

example:
  maskloom index /data/tars --text-key content --val-fraction 0.005
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from maskloom.commands.arguments import byte_count, cores, fraction, positive
from maskloom.data.index import BLOCK_BYTES, index_tars
from maskloom.errors import UserError
from maskloom.progress import Progress, say

MIB = 1 << 20
COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst|tlz)$")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tars", nargs="+", type=Path, metavar="TAR")
    add("--out", type=Path, help="folder of the index (default: the folder of the tars)")
    add("--text-key", default="text", help="where the text stands in a JSON object (default: text)")
    add("--val-fraction", type=fraction, default=0.0, help="share of documents held out, by text hash (default: 0)")
    add(
        "--block-bytes",
        type=byte_count,
        default=BLOCK_BYTES,
        help="text a block, the unit of shuffling (default: 128K)",
    )
    add("--processes", type=positive, default=cores(), help="default: all cores")


def run(options: argparse.Namespace) -> int:
    paths = [path for given in options.tars for path in _tars(given)]
    twice = [
        path for number, path in enumerate(paths) if path.resolve() in {other.resolve() for other in paths[:number]}
    ]
    if twice:
        raise UserError(f"{twice[0]} is given twice: its documents would be read twice an epoch")
    first = options.tars[0]
    folder = options.out or (first if first.is_dir() else first.parent)
    with Progress("indexing", sum(path.stat().st_size for path in paths), "MiB", MIB) as progress:
        index = index_tars(
            paths,
            folder,
            block_bytes=options.block_bytes,
            text_key=options.text_key,
            fraction=options.val_fraction,
            processes=options.processes,
            on_bytes=progress.advance,
        )
    header = index.header
    say(
        f"{folder / 'index.json'}: {header['documents']:,} documents for training and "
        f"{header['held_out_documents']:,} held out, {header['text_bytes'] / MIB:,.1f} MiB of text in "
        f"{len(index.shards)} shard(s), {header['blocks']:,} blocks"
    )
    return 0


def _tars(given: Path) -> list[Path]:
    if not given.exists():
        raise UserError(f"no file or folder {given}")
    if not given.is_dir():
        return [given]
    packed = sorted(path for path in given.iterdir() if COMPRESSED.search(path.name.lower()))
    if packed:
        raise UserError(f"{packed[0]} is compressed, so that no part of it can be read alone: decompress it first")
    found = sorted(given.glob("*.tar"))
    if not found:
        raise UserError(f"no .tar file in {given}")
    return found
