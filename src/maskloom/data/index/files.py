"""What the files of an index hold: `index.json`, the columns beside it, and the digests over both.

`index.json` is the header. Beside it, `index/NAME.npy` are columns with one entry a block.

Anyone may have written these files. So every value of a header has to have the kind and the bounds that an index gives it,
and a column is opened by its head alone, without pickle. Everything else is refused by name.

There are two digests. `digest` identifies the text: order, packing and masks follow from it. It knows shards by their own
digests, never by their URLs, so a corpus that moved is the same corpus. Token shards carry the digest of the text that they
were made from, so both give the same rows. `table_digest` covers this index's own header and columns.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from maskloom.config import Storage
from maskloom.data.reading.storage import is_remote, join, local_path, read_whole
from maskloom.errors import DataFault, UserError
from maskloom.redaction import shown

FORMAT, VERSION = "maskloom-index", 2
LARGEST_INDEX_JSON_BYTES = 1 << 30  # some five million shards
LARGEST_NPY_HEAD_BYTES = 16 << 10  # numpy reads no more than 10,000 bytes of it
AGAIN = "restore it, or write the index again with `maskloom index` (a corpus of `maskloom shards`: write it again)"
BLOCK = np.dtype(
    [("offset", "<i8"), ("length", "<i8"), ("documents", "<i4"), ("held_out", "<i4"), ("crc32", "<u4")]
)  # a row of a shard's block table
COLUMNS: dict[str, Any] = {"shard": np.dtype("<i4"), **{name: BLOCK[name] for name in BLOCK.names or ()}}
LISTS = {"train": "documents", "validation": "held_out"}  # the numbers of the blocks in which a column is not 0, int32
Split = Literal["train", "validation"]
ShardSplit = Literal["train", "validation", "by_hash"]


def _plain(text: str) -> str:
    """Refuse what JSON can write but text cannot hold: half of a surrogate pair, and the character 0."""
    text.encode()
    if "\0" in text:
        raise ValueError("it holds the character 0")
    return text


Text = Annotated[str, pydantic.AfterValidator(_plain)]
Count = Annotated[int, pydantic.Field(ge=0, lt=1 << 62)]  # sums of them are int64
Size = Annotated[int, pydantic.Field(gt=0, lt=1 << 62)]


class Header(pydantic.BaseModel):
    """What `index.json` holds."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    class ShardEntry(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid", strict=True)
        url: Text
        bytes: Size
        sha256: Text
        split: ShardSplit

    class TokensEntry(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid", strict=True)
        tokenizer: Text
        tokenizing: Size = 1

    format: Text
    version: int
    digest: Text
    table_digest: Text
    documents: Size
    held_out_documents: Count
    bad_documents: Count
    text_bytes: Count
    block_bytes: Size
    blocks: Size
    train_blocks: Size
    validation_blocks: Count
    text_key: Text
    held_out_threshold: Count
    tokens: TokensEntry | None
    shards: list[ShardEntry] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class Shard:
    url: str
    bytes: int
    sha256: str
    split: ShardSplit


@dataclass(frozen=True)
class Tokens:
    """What made the ids of token shards: the tokenizer's fingerprint and the version of tokenizing. Old shards lack the version:
    it is 1."""

    tokenizer: str
    tokenizing: int = 1

    @staticmethod
    def of(mark: str) -> Tokens:
        """From `Tokenizer.tokens_mark`."""
        fingerprint, _, version = mark.partition(":")
        return Tokens(fingerprint, int(version or 1))

    def to_json(self) -> dict[str, object]:
        return {"tokenizer": self.tokenizer, **({"tokenizing": self.tokenizing} if self.tokenizing != 1 else {})}


def corpus_digest(header: dict[str, Any], columns: Mapping[str, NDArray[np.generic]]) -> str:
    """The digest of a corpus of text, over its shards' digests, its block table, and how documents are found and held out."""
    identity: list[Any] = [VERSION, header["text_key"], header["held_out_threshold"]]
    identity.append([[shard["sha256"], shard["split"]] for shard in header["shards"]])
    identity += [hashlib.sha256(np.ascontiguousarray(columns[name]).data).hexdigest() for name in COLUMNS]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def table_digest(header: dict[str, Any], columns: Mapping[str, NDArray[np.generic]]) -> str:
    """Digest of all that an index says, except the URLs of its shards."""
    kept = {key: value for key, value in header.items() if key not in ("table_digest", "shards")}
    shards = [{key: value for key, value in shard.items() if key != "url"} for shard in header["shards"]]
    return hashlib.sha256(json.dumps([kept, shards, corpus_digest(header, columns)]).encode()).hexdigest()


def folder_of(path: str | Path) -> tuple[str, str]:
    """(folder, `index.json` in it) as text: absolute for local paths."""
    text = str(path)
    if is_remote(text):
        address, mark, query = text.partition("?")
        folder = address.removesuffix("/index.json").rstrip("/") + mark + query
        return folder, join(folder, "index.json")
    file = local_path(text) if "://" in text else Path(text)
    file = file if file.name == "index.json" and not file.is_dir() else file / "index.json"
    return str(file.parent.absolute()), str(file)


def read_header(folder: str, where: str, settings: Storage) -> dict[str, Any]:
    """The header of the index in `folder`, as plain values; messages call it `where`. Raises UserError if it is not one."""
    try:
        data = read_whole(join(folder, "index.json"), settings, LARGEST_INDEX_JSON_BYTES)
        where = shown(where)
        header = json.loads(data)
    except DataFault as fault:
        if is_remote(folder):
            raise UserError(f"no index at {shown(where)}: {fault}") from None
        given = shlex.quote(folder)
        what = f"write shards with `maskloom shards TEXT {given}`"
        if Path(folder).is_dir():
            what = f"if it holds text, write shards of it with `maskloom shards {given} OUT`"
        tars = f"index webdataset tars that exist with `maskloom index {given}`"
        raise UserError(f"no index at {where}: {what}, or {tars}") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
        raise UserError(f"{where} is not a {FORMAT} of version {VERSION}: {AGAIN}")
    try:
        return Header.model_validate(header).model_dump(exclude_unset=True)
    except pydantic.ValidationError as error:
        detail = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, detail['loc']))}: {detail['msg'].lower()}: {AGAIN}") from None


def open_column(file: Path, size: int, dtype: Any, folder: str) -> NDArray[Any]:
    """An array of numbers, memory-mapped. Raises UserError if the file is not one of this size and type."""
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a file: {AGAIN}")
        with file.open("rb") as column:
            # `np.load` would also open archives and pickles, and would allocate as many numbers as the head claims.
            if np.lib.format.read_magic(column) != (1, 0):
                raise ValueError("not an array as it is written here")
            shape, _, found = np.lib.format.read_array_header_1_0(column)
            start = column.tell()
    except UserError:
        raise
    except Exception as error:  # numpy parses the head as Python, with errors of many kinds
        raise UserError(f"{file}: {str(error) or type(error).__name__}: {AGAIN}") from None
    if shape != (size,) or found != dtype:
        raise UserError(f"{file} does not fit {shown(join(folder, 'index.json'))}: {AGAIN}")
    if file.stat().st_size < start + size * dtype.itemsize:
        raise UserError(f"{file} is cut off: {AGAIN}")
    return np.memmap(file, dtype, "r", start, shape) if size else np.empty(0, dtype)
