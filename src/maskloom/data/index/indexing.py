"""Make an index of tars, which are read once; join the indexes of several corpora; check a corpus against its index."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import mmap
import os
import shlex
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskloom.config import Storage
from maskloom.data.index.corpus import Index, held_out_threshold, text_hash
from maskloom.data.index.files import (
    AGAIN,
    BLOCK,
    COLUMNS,
    FORMAT,
    LISTS,
    VERSION,
    Shard,
    ShardSplit,
    Tokens,
    corpus_digest,
    table_digest,
)
from maskloom.data.index.loading import load_index
from maskloom.data.reading.samples import read_documents
from maskloom.data.reading.storage import fetch, is_remote, local_path, size_of
from maskloom.data.reading.tars import LARGEST_BLOCK_BYTES, NO_END, RECORD_BYTES, members, tar_fault
from maskloom.errors import DataFault, UserError
from maskloom.files import write_atomically
from maskloom.processes import Pool
from maskloom.redaction import shown

BLOCK_BYTES = 128 * 1024


@dataclass(frozen=True)
class IndexedShard:
    """One shard and its blocks (a `BLOCK` array), with what was counted while reading it."""

    shard: Shard
    blocks: NDArray[np.void]
    text_bytes: int
    bad_documents: int = 0


def merged_digest(digests: Sequence[str]) -> str:
    """The digest of several corpora that were joined into one, in this order."""
    return hashlib.sha256(json.dumps(["merged", *digests]).encode()).hexdigest()


def index_shard(
    path: Path,
    block_bytes: int,
    text_key: str,
    split: ShardSplit,
    threshold: int = 0,
    skip_bad: bool = False,
) -> IndexedShard:
    """Read one tar once and list its blocks.

    Args:
        skip_bad: leave out samples that cannot be read and count them, instead of raising.

    Raises:
        UserError: not a plain tar, damaged, truncated, or a sample that cannot be read.
    """
    if not path.is_file():  # reading a pipe would hang, and a device has no end
        raise UserError(f"shard {path} is {'not a file' if path.exists() else 'missing'}: name a tar")
    if path.stat().st_size == 0:
        raise UserError(f"shard {path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        blocks, text_bytes = [], 0
        bad: list[DataFault] = []
        for start, end in _block_ranges(path, data, block_bytes):
            chunk = data[start:end]
            counts = [0, 0]
            documents = read_documents(
                io.BytesIO(chunk), str(path), text_key, start, on_bad=bad.append if skip_bad else None
            )
            for text in documents:
                held_out = split == "validation" or (split == "by_hash" and text_hash(text) < threshold)
                counts[held_out] += 1
                text_bytes += len(text.encode())
            blocks.append((start, end - start, counts[0], counts[1], zlib.crc32(chunk)))
        shard = Shard(str(path.absolute()), len(data), hashlib.sha256(data).hexdigest(), split)
        return IndexedShard(shard, np.array(blocks, dtype=BLOCK), text_bytes, len(bad))


def index_tars(
    tars: Sequence[str | Path],
    folder: Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    text_key: str = "text",
    fraction: float = 0.0,
    processes: int = 1,
    skip_bad: bool = False,
    settings: Storage | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Index:
    """Index webdataset tars that exist, without copying them, and write the index into `folder`.

    Args:
        tars: paths or URLs. A remote tar is read once, through a temporary file.
        fraction: share of the documents to hold out, by the hash of their text.
        skip_bad: leave out samples that cannot be read, and count them.
        on_bytes: told the size of each shard that is done.
    """
    threshold = held_out_threshold(fraction)
    work = functools.partial(
        _index_tar,
        settings=settings or Storage(),
        block_bytes=block_bytes,
        text_key=text_key,
        split="by_hash" if threshold else "train",
        threshold=threshold,
        skip_bad=skip_bad,
    )
    indexed = []
    with Pool(processes, __name__, "webdataset") as pool:
        for shard in pool.map(work, [str(tar) for tar in tars]):
            on_bytes(shard.shard.bytes)
            indexed.append(shard)
    return write_index(folder, indexed, text_key=text_key, block_bytes=block_bytes, threshold=threshold)


def write_index(
    folder: Path,
    indexed: Sequence[IndexedShard],
    *,
    text_key: str,
    block_bytes: int,
    threshold: int,
    tokens: Tokens | None = None,
    digest: str | None = None,
) -> Index:
    """Write `index.json` and its columns. The header comes last, by rename, so nobody ever opens half an index.

    Args:
        tokens: set for token shards.
        digest: of the corpus, if it is not that of these shards: of the text behind token shards, or of merged corpora.

    Raises:
        UserError: no document at all.
    """
    table = np.concatenate([entry.blocks for entry in indexed]) if indexed else np.empty(0, BLOCK)
    columns = {name: np.ascontiguousarray(table[name]) for name in COLUMNS if name != "shard"}
    columns["shard"] = np.repeat(np.arange(len(indexed), dtype="<i4"), [len(entry.blocks) for entry in indexed])
    del table
    lists = {name: np.flatnonzero(columns[column]).astype("<i4") for name, column in LISTS.items()}
    counts = {name: int(columns[name].sum(dtype=np.int64)) for name in ("documents", "held_out")}
    bad = sum(entry.bad_documents for entry in indexed)
    if not counts["documents"]:
        raise UserError(
            f"no document for training in {len(indexed)} shard(s) ({counts['held_out']} held out, {bad} that cannot be "
            "read): a corpus needs at least one sample with a .txt, .jsonl or .json member"
        )
    if not any(entry.text_bytes for entry in indexed):
        raise UserError(f"no text in {len(indexed)} shard(s): every document is empty")
    (folder / "index").mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)  # an older header must not describe the new columns
    for name, column in {**columns, **lists}.items():
        temporary = folder / "index" / f".{name}.npy"
        np.save(temporary, column, allow_pickle=False)
        temporary.replace(folder / "index" / f"{name}.npy")
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "digest": digest,
        "table_digest": "",
        "documents": counts["documents"],
        "held_out_documents": counts["held_out"],
        "bad_documents": bad,
        "text_bytes": sum(entry.text_bytes for entry in indexed),
        "block_bytes": block_bytes,
        "blocks": len(columns["shard"]),
        "train_blocks": len(lists["train"]),
        "validation_blocks": len(lists["validation"]),
        "text_key": text_key,
        "held_out_threshold": threshold,
        "tokens": tokens.to_json() if tokens else None,
        "shards": [asdict(entry.shard) | {"url": _relative(entry.shard.url, folder)} for entry in indexed],
    }
    header["digest"] = digest or corpus_digest(header, columns)
    header["table_digest"] = table_digest(header, columns)
    write_atomically(folder / "index.json", json.dumps(header, indent=1))
    return load_index(folder)


def merge_indexes(parts: Sequence[Index], folder: Path) -> Index:
    """One index over the shards of several corpora, which stay where they are.

    Raises:
        UserError: they differ in how text is found, held out or tokenised.
    """
    first = parts[0].header
    for part in parts[1:]:
        for key in ("text_key", "held_out_threshold", "tokens"):
            if part.header[key] != first[key]:
                one, other = (_in_words(key, header[key]) for header in (part.header, first))
                raise UserError(
                    f"{part.folder} and {parts[0].folder} cannot be joined: {one} in the one and {other} in the other. Mix "
                    "them in data.train, or make one of them again"
                )
    indexed = [
        IndexedShard(replace(shard, url=part.url(shard)), blocks, 0)
        for part in parts
        for shard, blocks in _tables(part)
    ]
    # Known only for whole parts, not for their shards: the first shard carries the sums.
    totals = {key: sum(part.header[key] for part in parts) for key in ("text_bytes", "bad_documents")}
    indexed[0] = replace(indexed[0], text_bytes=totals["text_bytes"], bad_documents=totals["bad_documents"])
    return write_index(
        folder,
        indexed,
        text_key=first["text_key"],
        block_bytes=max(part.header["block_bytes"] for part in parts),
        threshold=first["held_out_threshold"],
        tokens=Tokens(**first["tokens"]) if first["tokens"] else None,
        digest=merged_digest([part.digest for part in parts]),
    )


def _in_words(key: str, value: Any) -> str:
    """A setting of an index as the option that made it."""
    if key == "held_out_threshold":
        return f"--val-fraction {value / 2**32:.6g}"
    if key == "text_key":
        return f"--text-key {shlex.quote(value)}"
    if not value:
        return "text shards"
    return f"token shards (tokenizer {value['tokenizer'][:16]}, version {value.get('tokenizing', 1)} of tokenizing)"


def check_shard(index: Index, number: int) -> list[DataFault]:
    """All faults of one shard: its size, its digest, and each block's bytes and documents are compared with the index."""
    shard = index.shards[number]
    address = index.url(shard)
    url = shown(address)
    faults: list[DataFault] = []
    # Read the shard itself, not the cache.
    index = replace(index, settings=index.settings.model_copy(update={"cache": None}))
    try:
        size = size_of(address, index.settings)
    except DataFault as fault:
        return [fault]
    except UserError as error:
        return [DataFault(str(error), kind="unreadable", shard=url)]
    if size != shard.bytes:
        message = f"shard {url} has {size} bytes, the index says {shard.bytes}"
        faults.append(DataFault(message, kind="truncated" if size < shard.bytes else "changed", shard=url))
    for block in np.flatnonzero(index.columns["shard"] == number):
        try:
            stream = index.read(int(block))
            if index.tokenizer_fingerprint:
                index.token_block(int(block), stream)
            else:
                index.documents(int(block), "train", stream)
        except DataFault as fault:
            faults.append(fault)
        except UserError as error:  # unreachable: report it, and let the other shards be checked
            faults.append(DataFault(str(error), kind="unreadable", shard=url))
            break
    if not faults and _sha256_of(address, index.settings) != shard.sha256:
        message = f"shard {url}: its sha256 is not what was indexed, though every block is: it differs between blocks"
        faults.append(DataFault(message, kind="checksum", shard=url))
    return faults


def _index_tar(tar: str, settings: Storage, **how: Any) -> IndexedShard:
    if not is_remote(tar):
        return index_shard(local_path(tar), **how)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(tar.partition("?")[0]).name or "shard.tar")
        fetch(tar, path, settings)
        found = index_shard(path, **how)
    return replace(found, shard=replace(found.shard, url=tar))


def _tables(index: Index) -> Iterator[tuple[Shard, NDArray[np.void]]]:
    """Each shard with its block table."""
    number = index.columns["shard"]
    bounds = np.searchsorted(number, np.arange(len(index.shards) + 1))
    if (np.diff(number) < 0).any():
        raise UserError(f"the index in {index.folder} does not list its blocks shard by shard: {AGAIN}")
    for place, shard in enumerate(index.shards):
        rows = slice(int(bounds[place]), int(bounds[place + 1]))
        table = np.empty(rows.stop - rows.start, BLOCK)
        for name in BLOCK.names or ():
            table[name] = index.columns[name][rows]
        yield shard, table


def _sha256_of(url: str, settings: Storage) -> str:
    if not is_remote(url):
        with local_path(url).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "shard"
        fetch(url, copy, settings)
        return _sha256_of(str(copy), settings)


def _block_ranges(path: Path, data: mmap.mmap, block_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each block of a tar, in bytes. Raises DataFault if it is not a plain tar, or does not end as one."""
    from webdataset.tariterators import base_plus_ext  # it imports torch, which takes a second

    start, payload, key, end = 0, 0, None, 0
    with path.open("rb") as file:
        for member in members(file, f"shard {path}"):
            base = base_plus_ext(member.name)[0] if member.is_read else None
            if base is not None and base != key:
                if payload >= block_bytes:
                    yield start, member.offset
                    start, payload = member.offset, 0
                key = base
            payload += member.size if base is not None else 0
            end = member.end
            if end - start > LARGEST_BLOCK_BYTES:
                raise tar_fault(
                    f"shard {path}: the block at byte {start} has more than {LARGEST_BLOCK_BYTES:,} bytes, and a block is read "
                    f"whole: split the sample '{key}', or use a smaller --block-bytes"
                )
    # A closed tar ends with zeros. `members` has seen nothing of what follows.
    if not data[end : end + RECORD_BYTES]:
        raise tar_fault(f"shard {path} is damaged or cut off after byte {end}: {NO_END}")
    if data[end:].strip(b"\0"):
        raise tar_fault(
            f"shard {path} has data after its end-of-archive mark at byte {end}, where readers of tars stop. It is damaged, or "
            "several tars were joined: write it again, or give each as a file of its own"
        )
    if end > start:
        yield start, end


def _relative(url: str, folder: Path) -> str:
    if is_remote(url):
        return url
    path = local_path(url).resolve()
    base = folder.resolve()
    relative = os.path.relpath(path, base) if path.is_relative_to(base) else str(path)
    return f"./{relative}" if ":" in relative.split("/")[0] else relative  # "10:00.tar" would read as a URL
