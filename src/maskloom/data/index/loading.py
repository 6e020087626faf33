"""Open an index and verify it before anything is read by it.

A local index is opened where it stands. The columns of a remote one are copied once a machine and user, into the cache folder.
Then its digest is compared, its tables are checked for blocks that no shard has, and its local shards are looked up.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.config import Storage
from maskloom.data.index.corpus import Index, open_unverified
from maskloom.data.index.files import (
    AGAIN,
    COLUMNS,
    LARGEST_NPY_HEAD_BYTES,
    LISTS,
    folder_of,
    read_header,
    table_digest,
)
from maskloom.data.reading.storage import fetch, is_remote, join, local_path
from maskloom.data.reading.tars import LARGEST_BLOCK_BYTES
from maskloom.errors import UserError
from maskloom.files import private_folder
from maskloom.redaction import shown

SHARDS_CHECKED_AT_START = 1024


def load_index(path: str | Path, settings: Storage | None = None, finds_shards: bool = True) -> Index:
    """Open and verify the index in a folder, local or remote (or the `index.json` itself).

    Args:
        finds_shards: also check that the local shards are there, with their sizes.

    Raises:
        UserError: there is none, it is of another version, its columns do not fit, or a shard is missing.
    """
    settings = settings or Storage()
    folder, where = folder_of(path)
    header = read_header(folder, where, settings)
    where = shown(where)
    if is_remote(folder):
        index = _open_remote(folder, header, settings, where)
    else:
        index = _open_verified(folder, header, Path(folder), settings, where)
    if finds_shards:
        _check_shards(index, where)
    return index


def _open_remote(folder: str, header: dict[str, Any], settings: Storage, where: str) -> Index:
    """A remote index, whose columns are fetched once a machine and user.

    If the copies are not what the header says, they are fetched once more: perhaps someone was uploading the index.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(json.dumps(header["table_digest"]).encode()).hexdigest()  # a name, whatever the header says
    files = base / "maskloom" / f"index-{digest[:32]}"
    try:
        private_folder(files / "index", "set XDG_CACHE_HOME to a folder of your own")
    except OSError as error:
        raise UserError(
            f"the index of {where} cannot be kept in {files}: {error.strerror}. Set XDG_CACHE_HOME to a folder that can be "
            "written"
        ) from None
    copies = {name: files / "index" / f"{name}.npy" for name in (*COLUMNS, *LISTS)}
    were_there = any(copy.exists() for copy in copies.values())
    for name, copy in copies.items():
        if not copy.exists():
            # A column has at most one number a block, but a server may send more.
            largest = LARGEST_NPY_HEAD_BYTES + 8 * header["blocks"]
            fetch(join(folder, f"index/{name}.npy"), copy, settings, largest=largest)
    try:
        return _open_verified(folder, header, files, settings, where)
    except UserError:
        for copy in copies.values():
            copy.unlink(missing_ok=True)
        if not were_there:
            raise
    return _open_remote(folder, header, settings, where)


def _open_verified(folder: str, header: dict[str, Any], files: Path, settings: Storage, where: str) -> Index:
    index = open_unverified(folder, header, files, settings)
    # A changed count would silently drop documents, so the whole table is checked at every start.
    if header["table_digest"] != table_digest(header, index.columns):
        raise UserError(f"{where} and its columns in {files / 'index'} are not what was written together: {AGAIN}")
    _check_table(index, where)
    return index


def _check_table(index: Index, where: str) -> None:
    if is_remote(index.folder):  # its author must not choose files of this machine
        for shard in index.shards:
            if not is_remote(index.url(shard)):
                raise UserError(
                    f"{where} is remote and lists the local shard {shard.url}: {AGAIN}, with relative names or URLs"
                )
    sizes = np.asarray([shard.bytes for shard in index.shards], dtype=np.int64)
    for start in range(0, index.header["blocks"], 1 << 20):
        number, offset, length, documents, held_out = (
            index.columns[name][start : start + (1 << 20)]
            for name in ("shard", "offset", "length", "documents", "held_out")
        )
        if (number < 0).any() or (number >= len(sizes)).any() or (offset < 0).any() or (length <= 0).any():
            raise UserError(f"{where} lists blocks that no shard has: {AGAIN}")
        if (length > LARGEST_BLOCK_BYTES).any():
            raise UserError(
                f"{where} lists blocks of more than {LARGEST_BLOCK_BYTES:,} bytes, and a block is read whole: write the "
                "corpus again with smaller documents or a smaller --block-bytes"
            )
        if (length > sizes[number] - offset).any() or (documents < 0).any() or (held_out < 0).any():
            raise UserError(f"{where} lists blocks beyond the end of a shard, or counts below 0: {AGAIN}")
    for name, blocks in (("train", index.train_blocks), ("validation", index.held_out_blocks)):
        column = index.columns[LISTS[name]]
        # Check all numbers, not just the ends: differences of distant int32 numbers wrap round and look ascending.
        is_inside = bool(((blocks >= 0) & (blocks < len(column))).all())
        is_ascending = not (np.diff(blocks) <= 0).any()
        # Same count and no duplicates: the list is complete.
        if not (is_inside and is_ascending and len(blocks) == np.count_nonzero(column) and column[blocks].all()):
            raise UserError(f"{where}: the list of {name} blocks does not fit the table: {AGAIN}")


def _check_shards(index: Index, where: str) -> None:
    """Check that local shards are there and have their sizes: all, or an even sample of a great many. Remote shards are checked
    when they are read."""
    count = len(index.shards)
    chosen = range(count) if count <= SHARDS_CHECKED_AT_START else range(0, count, count // SHARDS_CHECKED_AT_START)
    for number in chosen:
        shard = index.shards[number]
        url = index.url(shard)
        if is_remote(url):
            continue
        file = local_path(url)
        try:
            if not file.is_file():
                what = "is not a file" if file.exists() else "is missing"
                raise UserError(f"shard {file}, listed in {where}, {what}: restore it, or make the corpus again")
            size = file.stat().st_size
        except OSError as error:  # an impossible file name, or a folder without permission
            raise UserError(f"shard {file}, listed in {where}: {error.strerror}") from None
        if size != shard.bytes:
            raise UserError(
                f"shard {file} has {size} bytes, {where} says {shard.bytes}: restore it, or make the corpus again"
            )
