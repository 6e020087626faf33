"""Small tars and their index, for the tests of this folder."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import webdataset

from maskloom.data.index.corpus import Index, held_out_threshold
from maskloom.data.index.files import ShardSplit, Split
from maskloom.data.index.indexing import index_shard, write_index

RECORD = 512  # bytes: a tar is made of such records


def write_tar(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A tar by webdataset; samples without a key are numbered."""
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"{number:06d}"} | sample)
    return path


def index_here(
    paths: list[Path], folder: Path, *, block_bytes: int = 1000, split: ShardSplit = "train", fraction: float = 0.0
) -> Index:
    """What `index_tars` does, in this process."""
    threshold = held_out_threshold(fraction)
    indexed = [index_shard(path, block_bytes, "text", split, threshold) for path in paths]
    return write_index(folder, indexed, text_key="text", block_bytes=block_bytes, threshold=threshold)


def texts_of(index: Index, split: Split = "train") -> list[str]:
    return [text for block in range(index.header["blocks"]) for text in index.documents(block, split)]


def three_members(path: Path) -> tuple[list[str], list[int]]:
    """A tar of three documents, and where its members and its end-of-archive mark begin."""
    documents = ["a" * 700, "b" * 512, "c" * 10]
    write_tar(path, [{"txt": text} for text in documents])
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
    ends = starts[-1] + 2 * RECORD
    return documents, [*starts, ends]
