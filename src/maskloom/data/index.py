"""The index of a corpus: which blocks its shards hold, with lengths, counts and checksums.

`index.json` is the header; beside it, `index/NAME.npy` are columns with one entry a block (read memory-mapped and without
pickle). A block is a run of whole consecutive webdataset samples, about `block_bytes` of payload: the unit of shuffling,
reading and resuming. Shards are identified by their digests, never by their URLs: a corpus that moved is the same corpus.

Held-out documents: a shard is wholly for training, wholly for validation, or split by a hash of each document's text
(`by_hash`: other people's tars), so that exact duplicates always fall on one side.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import mmap
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from webdataset.tariterators import base_plus_ext

from maskloom.data.samples import read_documents
from maskloom.data.storage import local_path, open_range
from maskloom.errors import UserError
from maskloom.files import write_atomically
from maskloom.processes import clean_forks

FORMAT, VERSION = "maskloom-index", 1
BLOCK_BYTES = 128 * 1024
TAR_RECORD = 512
META_MEMBER = re.compile(r"__[^/]*__($|/)")  # what webdataset skips
COLUMNS: dict[str, Any] = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "documents": np.int32,
    "held_out": np.int32,
    "crc32": np.uint32,
}
Split = Literal["train", "validation"]
ShardSplit = Literal["train", "validation", "by_hash"]


@dataclass(frozen=True)
class Shard:
    url: str
    bytes: int
    sha256: str
    split: ShardSplit


class Header(pydantic.BaseModel):
    """What `index.json` holds; `digest` identifies the corpus."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    class ShardEntry(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid", strict=True)
        url: str
        bytes: pydantic.PositiveInt
        sha256: str
        split: ShardSplit

    format: str
    version: int
    digest: str
    documents: pydantic.PositiveInt
    held_out_documents: pydantic.NonNegativeInt
    text_bytes: pydantic.NonNegativeInt
    block_bytes: pydantic.PositiveInt
    blocks: pydantic.PositiveInt
    text_key: str
    held_out_threshold: pydantic.NonNegativeInt
    shards: list[ShardEntry] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class IndexedShard:
    """One shard and its blocks: rows of `COLUMNS` without the shard's number."""

    shard: Shard
    blocks: list[tuple[int, int, int, int, int]]
    text_bytes: int


@dataclass(frozen=True)
class Index:
    """A corpus as its index describes it.

    Attributes:
        folder: where `index.json` stands; relative URLs start there.
        digest: identifies the corpus: sha256 over the shards' digests, the block table and the split.
        columns: one array a column, each [blocks].
    """

    folder: Path
    header: dict[str, Any]
    shards: tuple[Shard, ...]
    columns: dict[str, NDArray[Any]]

    @property
    def digest(self) -> str:
        return str(self.header["digest"])

    @functools.cached_property
    def train_blocks(self) -> NDArray[np.int64]:
        """Numbers of the blocks that hold a document for training."""
        return np.flatnonzero(self.columns["documents"])

    @functools.cached_property
    def held_out_blocks(self) -> NDArray[np.int64]:
        """Numbers of the blocks that hold a held-out document."""
        return np.flatnonzero(self.columns["held_out"])

    def url(self, shard: Shard) -> str:
        relative = ":" not in shard.url.split("/")[0] and not shard.url.startswith("/")
        return str(self.folder / shard.url) if relative else shard.url

    def documents(self, block: int, split: Split) -> list[str]:
        """The documents of one block that belong to `split`.

        Raises:
            UserError: the block's bytes or its number of documents are not what was indexed.
        """
        entry = {name: int(column[block]) for name, column in self.columns.items()}
        shard = self.shards[entry["shard"]]
        url = self.url(shard)
        stream = open_range(url, entry["offset"], entry["length"], entry["crc32"])
        documents = list(read_documents(stream, url, self.header["text_key"]))
        if len(documents) != entry["documents"] + entry["held_out"]:
            raise UserError(
                f"shard {url}: {len(documents)} documents in the block at offset {entry['offset']}, the index says "
                f"{entry['documents'] + entry['held_out']}: index it again"
            )
        if shard.split != "by_hash":
            return documents if shard.split == split else []
        threshold = self.header["held_out_threshold"]
        return [text for text in documents if (text_hash(text) < threshold) == (split == "validation")]


def text_hash(text: str) -> int:
    """A 32-bit hash of a document's text, white space at its ends aside."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=4).digest(), "little")


def held_out_threshold(fraction: float) -> int:
    """Documents whose `text_hash` is below this are held out."""
    return int(fraction * 2**32)


def load_index(path: str | Path) -> Index:
    """Open the index in folder `path` (or the `index.json` itself).

    Raises:
        UserError: there is none, it is of another version, its columns do not fit, or a shard is missing.
    """
    file = Path(path)
    file = file / "index.json" if file.is_dir() else file
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no index at {file}: write shards with `maskloom shards TEXT {path}`, or index webdataset tars that exist "
            f"with `maskloom index {path}`"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    again = "write the index again with `maskloom index`"
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
        raise UserError(f"{file} is no {FORMAT} of version {VERSION}: {again}")
    try:
        header = Header.model_validate(header).model_dump()
    except pydantic.ValidationError as error:
        detail = error.errors()[0]
        raise UserError(f"{file}: {'.'.join(map(str, detail['loc']))}: {detail['msg'].lower()}: {again}") from None
    columns = {}
    for name, dtype in COLUMNS.items():
        column_file = file.parent / "index" / f"{name}.npy"
        try:
            columns[name] = np.load(column_file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{column_file}: {error}: {again}") from None
        if columns[name].shape != (header["blocks"],) or columns[name].dtype != dtype:
            raise UserError(f"{column_file} does not fit {file}: {again}")
    # A count that changed would drop documents without a word, so that the whole table is checked at every start.
    if header["digest"] != corpus_digest(header, columns):
        raise UserError(f"{file} and its columns in {file.parent / 'index'} are not what was written together: {again}")
    shards = tuple(Shard(**shard) for shard in header["shards"])
    sizes = np.asarray([shard.bytes for shard in shards], dtype=np.int64)
    number, offset, length = (columns[name] for name in ("shard", "offset", "length"))
    if (number < 0).any() or (number >= len(shards)).any() or (offset < 0).any() or (length <= 0).any():
        raise UserError(f"{file} lists blocks that no shard has: {again}")
    if (length > sizes[number] - offset).any() or not columns["documents"].any():
        raise UserError(f"{file} lists blocks beyond the end of a shard, or no document for training: {again}")
    index = Index(file.parent.absolute(), header, shards, columns)
    for shard in index.shards:
        shard_file = local_path(index.url(shard))
        if not shard_file.is_file():
            raise UserError(f"shard {shard_file}, listed in {file}, is missing: restore it, or index again")
        if shard_file.stat().st_size != shard.bytes:
            raise UserError(
                f"shard {shard_file} has {shard_file.stat().st_size} bytes, {file} says {shard.bytes}: restore it, or "
                "index again"
            )
    return index


def corpus_digest(header: dict[str, Any], columns: dict[str, NDArray[Any]]) -> str:
    """What identifies a corpus: its shards' digests, its block table, and how documents are found and held out."""
    identity: list[Any] = [VERSION, header["text_key"], header["held_out_threshold"]]
    identity.append([[shard["sha256"], shard["split"]] for shard in header["shards"]])
    identity += [hashlib.sha256(np.ascontiguousarray(columns[name]).data).hexdigest() for name in COLUMNS]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def index_shard(path: Path, block_bytes: int, text_key: str, split: ShardSplit, threshold: int = 0) -> IndexedShard:
    """Read one tar once and list its blocks.

    Raises:
        UserError: not a plain tar, damaged, truncated, or a sample that cannot be read.
    """
    if path.stat().st_size == 0:
        raise UserError(f"shard {path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        bzip2 = data[:3] == b"BZh" and data[4:10] == b"1AY&SY"  # "BZh" alone can begin a member's name
        if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd" or bzip2:
            raise UserError(
                f"shard {path} is compressed, so that no part of it can be read alone: decompress it first "
                "(gunzip, unzstd, bunzip2)"
            )
        blocks, text_bytes = [], 0
        for start, end in _block_ranges(path, data, block_bytes):
            chunk = data[start:end]
            counts = [0, 0]
            for text in read_documents(io.BytesIO(chunk), str(path), text_key):
                held_out = split == "validation" or (split == "by_hash" and text_hash(text) < threshold)
                counts[held_out] += 1
                text_bytes += len(text.encode())
            blocks.append((start, end - start, counts[0], counts[1], zlib.crc32(chunk)))
        digest = hashlib.sha256(data).hexdigest()
        return IndexedShard(Shard(str(path.absolute()), len(data), digest, split), blocks, text_bytes)


def index_tars(
    paths: Sequence[Path],
    folder: Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    text_key: str = "text",
    fraction: float = 0.0,
    processes: int = 1,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Index:
    """Index webdataset tars that exist, without copying them, and write the index into `folder`.

    Args:
        fraction: share of the documents to hold out, by the hash of their text.
        on_bytes: told the size of each shard that is done.
    """
    threshold = held_out_threshold(fraction)
    work = functools.partial(
        index_shard,
        block_bytes=block_bytes,
        text_key=text_key,
        split="by_hash" if threshold else "train",
        threshold=threshold,
    )
    indexed = []
    with ProcessPoolExecutor(processes, mp_context=clean_forks(__name__)) as pool:
        for shard in pool.map(work, paths):
            on_bytes(shard.shard.bytes)
            indexed.append(shard)
    return write_index(folder, indexed, text_key=text_key, block_bytes=block_bytes, threshold=threshold)


def write_index(
    folder: Path, indexed: Sequence[IndexedShard], *, text_key: str, block_bytes: int, threshold: int
) -> Index:
    """Write `index.json` and its columns; the header last and by rename, so that no half index is ever opened.

    Raises:
        UserError: no document at all.
    """
    rows = [(number, *block) for number, entry in enumerate(indexed) for block in entry.blocks]
    columns = {
        name: np.asarray([row[position] for row in rows], dtype=dtype)
        for position, (name, dtype) in enumerate(COLUMNS.items())
    }
    counts = {name: int(columns[name].sum(dtype=np.int64)) for name in ("documents", "held_out")}
    if not counts["documents"]:
        raise UserError(
            f"no document for training in {len(indexed)} shard(s) ({counts['held_out']} held out): a corpus needs at least "
            f"one sample with a .txt, .jsonl or .json member"
        )
    (folder / "index").mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)  # an older header must not describe the columns that follow
    shards = [asdict(entry.shard) | {"url": _relative(entry.shard.url, folder)} for entry in indexed]
    for name, column in columns.items():
        temporary = folder / "index" / f".{name}.npy"
        np.save(temporary, column, allow_pickle=False)
        temporary.replace(folder / "index" / f"{name}.npy")
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "digest": "",
        "documents": counts["documents"],
        "held_out_documents": counts["held_out"],
        "text_bytes": sum(entry.text_bytes for entry in indexed),
        "block_bytes": block_bytes,
        "blocks": len(rows),
        "text_key": text_key,
        "held_out_threshold": threshold,
        "shards": shards,
    }
    header["digest"] = corpus_digest(header, columns)
    write_atomically(folder / "index.json", json.dumps(header, indent=1))
    return load_index(folder)


def _block_ranges(path: Path, data: mmap.mmap, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of the blocks of a tar. Raises UserError where its end is not a tar's end."""
    start, payload, key, end = 0, 0, None, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has read
                is_sample = member.isreg() and not META_MEMBER.match(member.name)
                base = base_plus_ext(member.name)[0] if is_sample else None
                if base is not None and base != key:
                    if payload >= block_bytes:
                        yield start, member.offset
                        start, payload = member.offset, 0
                    key = base
                payload += member.size if base is not None else 0
                end = member.offset_data + -(-member.size // TAR_RECORD) * TAR_RECORD
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"shard {path} is not a tar, or is damaged after byte {end}: {error}") from None
    # tarfile ends in silence at a header it cannot read; a tar that was closed ends with zeros.
    mark = data[end : end + TAR_RECORD]
    if not mark or any(mark):
        raise UserError(
            f"shard {path} is damaged or cut off after byte {end}: no end-of-archive mark stands there. Write it again"
        )
    if data[end:].strip(b"\0"):
        raise UserError(
            f"shard {path} goes on after its end-of-archive mark at byte {end}: readers of tars leave the rest out. "
            "It is damaged, or several tars were joined: write it again, or give each as a file of its own"
        )
    if end > start:
        yield start, end


def _relative(url: str, folder: Path) -> str:
    path = local_path(url).resolve()
    base = folder.resolve()
    relative = os.path.relpath(path, base) if path.is_relative_to(base) else str(path)
    return f"./{relative}" if ":" in relative.split("/")[0] else relative  # "10:00.tar" would read as a URL
