"""The index of a corpus: which blocks its shards hold, with lengths, counts and checksums.

`index.json` is the header; beside it, `index/NAME.npy` are columns with one entry a block, opened memory-mapped (once a
node, however many processes) and without pickle. A block is a run of whole consecutive webdataset samples, about
`block_bytes` of payload: the unit of shuffling, reading and resuming.

Two digests. `digest` identifies the text: order, packing and masks follow from it. Shards are known by their own digests,
never by their URLs, so that a corpus that moved is the same corpus; token shards carry the digest of the text that they
were made from, so that both give the same rows. `table_digest` covers this index's own header and columns.

Held-out documents: a shard is wholly for training, wholly for validation, or split by a hash of each document's text
(`by_hash`: other people's tars), so that exact duplicates always fall on one side.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskloom.config import Storage
from maskloom.data.index.files import (
    AGAIN,
    LARGEST_NPY_HEAD_BYTES,
    VERSION,
    ShardSplit,
    open_column,
    read_header,
)
from maskloom.data.reading.samples import TokenBlock, encode_block, read_documents, read_tokens
from maskloom.data.reading.storage import fetch, is_remote, join, local_path, open_range
from maskloom.data.reading.tars import LARGEST_BLOCK_BYTES
from maskloom.errors import DataFault, UserError
from maskloom.files import private_folder
from maskloom.redaction import shown
from maskloom.tokenizers.base import Tokenized, Tokenizer

SHARDS_CHECKED_AT_START = 1024
BLOCK = np.dtype(
    [("offset", "<i8"), ("length", "<i8"), ("documents", "<i4"), ("held_out", "<i4"), ("crc32", "<u4")]
)  # a row of a shard's block table
COLUMNS: dict[str, Any] = {"shard": np.dtype("<i4"), **{name: BLOCK[name] for name in BLOCK.names or ()}}
LISTS = {"train": "documents", "validation": "held_out"}  # numbers of the blocks in which a column is not 0, int32
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Shard:
    url: str
    bytes: int
    sha256: str
    split: ShardSplit


@dataclass(frozen=True)
class Tokens:
    """What the ids of token shards were made with: the tokenizer's fingerprint, and the version of tokenizing, which the first
    ones do not say."""

    tokenizer: str
    tokenizing: int = 1

    @staticmethod
    def of(mark: str) -> Tokens:
        """From `Tokenizer.tokens_mark`."""
        fingerprint, _, version = mark.partition(":")
        return Tokens(fingerprint, int(version or 1))

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, **({"tokenizing": self.tokenizing} if self.tokenizing != 1 else {})}


@dataclass(frozen=True)
class Index:
    """A corpus as its index describes it. Picklable: another process opens the files again.

    Attributes:
        folder: path or URL of the folder where `index.json` stands; relative URLs start there.
        header: `index.json`.
        columns: one array a column, each [blocks].
        train_blocks, held_out_blocks: numbers of the blocks with a document for training, and with a held-out one.
        files: local folder of the columns.
        settings: how bytes are fetched.
    """

    folder: str
    header: dict[str, Any]
    shards: tuple[Shard, ...]
    columns: dict[str, NDArray[Any]]
    train_blocks: NDArray[np.int32]
    held_out_blocks: NDArray[np.int32]
    files: Path
    settings: Storage

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.files, self.header["table_digest"], self.settings)

    @property
    def digest(self) -> str:
        return str(self.header["digest"])

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Of the tokenizer that made token shards; None for text."""
        return self.header["tokens"]["tokenizer"] if self.header["tokens"] else None

    @property
    def tokenizing(self) -> int | None:
        """Version of tokenizing that made token shards; None for text."""
        return self.header["tokens"].get("tokenizing", 1) if self.header["tokens"] else None

    def url(self, shard: Shard) -> str:
        relative = ":" not in shard.url.split("/")[0] and not shard.url.startswith("/")
        return join(self.folder, shard.url) if relative else shard.url

    def place(self, block: int) -> tuple[Shard, str, int]:
        """(shard, its URL, offset) of a block."""
        shard = self.shards[int(self.columns["shard"][block])]
        return shard, self.url(shard), int(self.columns["offset"][block])

    def read(self, block: int) -> io.BytesIO:
        """The bytes of one block, a tar stream. Raises DataFault where they are not what was indexed."""
        shard, url, offset = self.place(block)
        length, crc32 = int(self.columns["length"][block]), int(self.columns["crc32"][block])
        return open_range(url, offset, length, crc32, shard.sha256, self.settings)

    def documents(self, block: int, split: Split, stream: io.BytesIO | None = None) -> list[str]:
        """The documents of one block that belong to `split`.

        Args:
            stream: the block's bytes, where they were read already.

        Raises:
            DataFault: the block's bytes or its number of documents are not what was indexed.
            UserError: token shards, which hold no text.
        """
        if self.tokenizer_fingerprint:
            raise UserError(f"{shown(self.folder)} holds token shards: there is no text in them. Name the text shards")
        shard, url, offset = self.place(block)
        # Samples that were bad when the shard was indexed were left out then, and are left out here.
        on_bad = (lambda fault: None) if self.header["bad_documents"] else None
        documents = list(
            read_documents(stream or self.read(block), shown(url), self.header["text_key"], offset, on_bad=on_bad)
        )
        self._check_count(block, len(documents))
        if shard.split != "by_hash":
            return documents if shard.split == split else []
        threshold = self.header["held_out_threshold"]
        return [text for text in documents if (text_hash(text) < threshold) == (split == "validation")]

    def token_block(self, block: int, stream: io.BytesIO | None = None) -> TokenBlock:
        """The documents of one block of token shards. Raises DataFault."""
        _, url, offset = self.place(block)
        found = read_tokens(stream or self.read(block), shown(url), offset)
        self._check_count(block, len(found.documents))
        return found

    def tokenized(self, block: int, split: Split, tokenizer: Tokenizer, stream: io.BytesIO | None = None) -> Tokenized:
        """Token ids of the documents of one block that belong to `split`, from text or token shards alike.

        Raises:
            DataFault: as `documents` and `token_block`, for text that the tokenizer cannot encode, and for ids that it does
                not have.
        """
        if not self.tokenizer_fingerprint:
            documents = self.documents(block, split, stream)
            _, url, offset = self.place(block)
            return encode_block(tokenizer, documents, shown(url), offset, split)
        found = self.token_block(block, stream)
        ids = found.documents.ids
        if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            _, url, offset = self.place(block)
            outside = ids.min() if ids.min() < 0 else ids.max()
            raise DataFault(
                f"shard {shown(url)}: the block at offset {offset} holds the token id {outside}, and the tokenizer has "
                f"{tokenizer.vocab_size}: make the token shards again",
                kind="tokens",
                shard=shown(url),
                offset=offset,
            )
        return found.documents.select(found.held_out == (split == "validation"))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises UserError where these are token shards of another tokenizer, or of another version of tokenizing."""
        if self.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
            raise UserError(
                f"the token shards in {shown(self.folder)} were made with another tokenizer (fingerprint "
                f"{str(self.tokenizer_fingerprint)[:16]}) than {tokenizer.source} ({tokenizer.fingerprint[:16]}): name that "
                "one, or make token shards with this one"
            )
        if self.tokenizing not in (None, tokenizer.tokenizing):
            raise UserError(
                f"the token shards in {shown(self.folder)} were made by version {self.tokenizing} of tokenizing, and text is "
                f"read by version {tokenizer.tokenizing} here, which can give other ids: name the text shards, or make all token "
                "shards again with `maskloom shards`"
            )

    def _check_count(self, block: int, found: int) -> None:
        expected = int(self.columns["documents"][block]) + int(self.columns["held_out"][block])
        if found != expected:
            _, url, offset = self.place(block)
            url = shown(url)
            raise DataFault(
                f"shard {url}: {found} documents in the block at offset {offset}, the index says {expected}: index it again",
                kind="count",
                shard=url,
                offset=offset,
            )


def text_hash(text: str) -> int:
    """A 32-bit hash of a document's text, white space at its ends aside."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=4).digest(), "little")


def held_out_threshold(fraction: float) -> int:
    """Documents whose `text_hash` is below this are held out."""
    return int(fraction * 2**32)


def load_index(path: str | Path, settings: Storage | None = None, finds_shards: bool = True) -> Index:
    """Open and verify the index in a folder, local or remote (or the `index.json` itself).

    Args:
        finds_shards: also see that the local shards are there, with their sizes.

    Raises:
        UserError: there is none, it is of another version, its columns do not fit, or a shard is missing.
    """
    settings = settings or Storage()
    folder, where = _folder_of(path)
    header = read_header(folder, where, settings)
    where = shown(where)
    if is_remote(folder):
        index = _open_remote(folder, header, settings, where)
    else:
        index = _open_verified(folder, header, Path(folder), settings, where)
    if finds_shards:
        _check_shards(index, where)
    return index


def corpus_digest(header: dict[str, Any], columns: dict[str, NDArray[Any]]) -> str:
    """What identifies a corpus of text: its shards' digests, its block table, how documents are found and held out."""
    identity: list[Any] = [VERSION, header["text_key"], header["held_out_threshold"]]
    identity.append([[shard["sha256"], shard["split"]] for shard in header["shards"]])
    identity += [hashlib.sha256(np.ascontiguousarray(columns[name]).data).hexdigest() for name in COLUMNS]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def table_digest(header: dict[str, Any], columns: dict[str, NDArray[Any]]) -> str:
    """Digest of everything that an index says, but for the URLs of its shards."""
    kept = {key: value for key, value in header.items() if key not in ("table_digest", "shards")}
    shards = [{key: value for key, value in shard.items() if key != "url"} for shard in header["shards"]]
    return hashlib.sha256(json.dumps([kept, shards, corpus_digest(header, columns)]).encode()).hexdigest()


def _folder_of(path: str | Path) -> tuple[str, str]:
    """(folder, `index.json` in it) as text: absolute for local paths."""
    text = str(path)
    if is_remote(text):
        address, mark, query = text.partition("?")
        folder = address.removesuffix("/index.json").rstrip("/") + mark + query
        return folder, join(folder, "index.json")
    file = local_path(text) if "://" in text else Path(text)
    file = file if file.name == "index.json" and not file.is_dir() else file / "index.json"
    return str(file.parent.absolute()), str(file)


def _open_remote(folder: str, header: dict[str, Any], settings: Storage, where: str) -> Index:
    """A remote index, whose columns are fetched once a machine and user.

    Copies that are not what the header says, perhaps fetched while the index was being uploaded, are fetched once more.
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
            # As many numbers as there are blocks, at most; a server may send more.
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
    index = _open(folder, header, files, settings)
    # A count that changed would drop documents without a word, so that the whole table is checked at every start.
    if header["table_digest"] != table_digest(header, index.columns):
        raise UserError(f"{where} and its columns in {files / 'index'} are not what was written together: {AGAIN}")
    _check_table(index, where)
    return index


def _open(folder: str, header: dict[str, Any], files: Path, settings: Storage) -> Index:
    sizes = dict.fromkeys(COLUMNS, header["blocks"])
    sizes |= {name: header[f"{name}_blocks"] for name in LISTS}
    types = {**COLUMNS, **dict.fromkeys(LISTS, np.dtype("<i4"))}
    columns: dict[str, NDArray[Any]] = {}
    for name, size in sizes.items():
        columns[name] = open_column(files / "index" / f"{name}.npy", size, types[name], folder)
    train, held_out = (columns.pop(name) for name in LISTS)
    shards = tuple(Shard(**shard) for shard in header["shards"])
    return Index(folder, header, shards, columns, train, held_out, files, settings)


def _reopen(folder: str, files: Path, digest: str, settings: Storage) -> Index:
    """Open an index that another process of this run has verified."""
    header = read_header(folder, _folder_of(folder)[1], settings)
    if header["table_digest"] != digest:
        raise UserError(f"the index in {shown(folder)} was written anew while it was in use: start again")
    return _open(folder, header, files, settings)


def _check_table(index: Index, where: str) -> None:
    if is_remote(index.folder):  # who wrote it does not choose files of this machine
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
        # All of them, not the ends: differences of int32 numbers far apart wrap round, and seem to ascend.
        is_inside = bool(((blocks >= 0) & (blocks < len(column))).all())
        is_ascending = not (np.diff(blocks) <= 0).any()
        # So many numbers of blocks with a document, none of them twice, are the numbers of all such blocks.
        if not (is_inside and is_ascending and len(blocks) == np.count_nonzero(column) and column[blocks].all()):
            raise UserError(f"{where}: the list of {name} blocks does not fit the table: {AGAIN}")


def _check_shards(index: Index, where: str) -> None:
    """Local shards are there and have their sizes: all of them, or of a great many an even sample. What is remote is
    met when it is read."""
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
        except OSError as error:  # a name that no file can have, a folder that may not be read
            raise UserError(f"shard {file}, listed in {where}: {error.strerror}") from None
        if size != shard.bytes:
            raise UserError(
                f"shard {file} has {size} bytes, {where} says {shard.bytes}: restore it, or make the corpus again"
            )
