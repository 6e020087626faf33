"""A corpus as its index describes it: which blocks its shards hold, with lengths, counts and checksums.

A block is a run of whole consecutive webdataset samples with about `block_bytes` of text. It is the unit of shuffling, reading
and resuming. The columns of the index have one entry a block. They are memory-mapped, so a node holds them once, however many
processes read.

Held-out documents: a shard is wholly for training, wholly for validation, or split by a hash of each document's text
(`by_hash`, for tars that someone else wrote). Exact duplicates always fall on one side.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskloom.config import Storage
from maskloom.data.index.files import COLUMNS, LISTS, Shard, Split, folder_of, open_column, read_header
from maskloom.data.reading.samples import TokenBlock, encode_block, read_documents, read_tokens
from maskloom.data.reading.storage import join, open_range
from maskloom.errors import DataFault, UserError
from maskloom.redaction import shown
from maskloom.tokenizers.base import Tokenized, Tokenizer


@dataclass(frozen=True)
class Index:
    """A corpus as its index describes it. Picklable: the other process opens the files again.

    Attributes:
        folder: path or URL of the folder where `index.json` stands; relative URLs start there.
        header: `index.json`.
        columns: one array a column, each [blocks].
        train_blocks, held_out_blocks: numbers of the blocks that have a document for training, and a held-out one.
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

    def __reduce__(self) -> tuple[object, ...]:
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
        """The bytes of one block, a tar stream. Raises DataFault if they are not what was indexed."""
        shard, url, offset = self.place(block)
        length, crc32 = int(self.columns["length"][block]), int(self.columns["crc32"][block])
        return open_range(url, offset, length, crc32, shard.sha256, self.settings)

    def texts(self, block: int, stream: io.BytesIO | None = None) -> list[str]:
        """All documents of one block, held out or not, in order. Takes and raises what `documents` does."""
        if self.tokenizer_fingerprint:
            raise UserError(f"{shown(self.folder)} holds token shards, which have no text: name the text shards")
        _, url, offset = self.place(block)
        # Indexing left out samples that were bad then, so reading must leave them out too.
        on_bad = (lambda fault: None) if self.header["bad_documents"] else None
        documents = list(
            read_documents(stream or self.read(block), shown(url), self.header["text_key"], offset, on_bad=on_bad)
        )
        self._check_count(block, len(documents))
        return documents

    def documents(self, block: int, split: Split, stream: io.BytesIO | None = None) -> list[str]:
        """The documents of one block that belong to `split`.

        Args:
            stream: the block's bytes, if they were read already.

        Raises:
            DataFault: the block's bytes or its number of documents are not what was indexed.
            UserError: token shards, which hold no text.
        """
        documents = self.texts(block, stream)
        shard = self.place(block)[0]
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
            DataFault: as `documents` and `token_block`. Also for text that the tokenizer cannot encode, and for ids that it
                does not have.
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
        """Raises UserError if these are token shards of another tokenizer, or of another version of tokenizing."""
        if self.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
            raise UserError(
                f"the token shards in {shown(self.folder)} were made with another tokenizer (fingerprint "
                f"{str(self.tokenizer_fingerprint)[:16]}) than {tokenizer.source} ({tokenizer.fingerprint[:16]}): name that "
                "one, or make token shards with this one"
            )
        if self.tokenizing not in (None, tokenizer.tokenizing):
            raise UserError(
                f"the token shards in {shown(self.folder)} were made by version {self.tokenizing} of tokenizing, and text is "
                f"read by version {tokenizer.tokenizing} here. That can give other ids: name the text shards, or make all token "
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
    """A 32-bit hash of a document's text. White space at its ends does not count."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=4).digest(), "little")


def held_out_threshold(fraction: float) -> int:
    """The bound below which a document's `text_hash` has to be for the document to be held out."""
    return int(fraction * 2**32)


def open_unverified(folder: str, header: dict[str, Any], files: Path, settings: Storage) -> Index:
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
    """Open an index that another process of this run has verified already."""
    header = read_header(folder, folder_of(folder)[1], settings)
    if header["table_digest"] != digest:
        raise UserError(f"the index in {shown(folder)} was written anew while it was in use: start again")
    return open_unverified(folder, header, files, settings)
