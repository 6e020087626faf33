"""What the files of an index hold, as anyone may have written them: `index.json`, and the columns beside it.

Values have the kinds and bounds that an index has; a column is opened by its head alone. All else is refused by name.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from maskloom.config import Storage
from maskloom.data.reading.storage import is_remote, join, read_whole
from maskloom.errors import DataFault, UserError
from maskloom.redaction import shown

FORMAT, VERSION = "maskloom-index", 2
LARGEST_HEADER_BYTES = 1 << 30  # of `index.json`: some five million shards
LARGEST_NPY_HEAD_BYTES = 16 << 10  # numpy reads no more than 10,000 bytes of it
AGAIN = "restore it, or write the index again with `maskloom index` (a corpus of `maskloom shards`: write it again)"
ShardSplit = Literal["train", "validation", "by_hash"]


def _plain(text: str) -> str:
    """JSON can write what is not text: half of a surrogate pair."""
    text.encode()
    if "\0" in text:
        raise ValueError("it holds the character 0")
    return text


Text = Annotated[str, pydantic.AfterValidator(_plain)]
Count = Annotated[int, pydantic.Field(ge=0, lt=1 << 62)]  # all of them are counted in int64
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


def read_header(folder: str, where: str, settings: Storage) -> dict[str, Any]:
    """The header of the index in `folder`, as plain values; messages call it `where`. Raises UserError if it is not one."""
    try:
        data = read_whole(join(folder, "index.json"), settings, LARGEST_HEADER_BYTES)
        where = shown(where)
        header = json.loads(data)
    except DataFault as fault:
        if is_remote(folder):
            raise UserError(f"no index at {shown(where)}: {fault}") from None
        raise UserError(
            f"no index at {where}: write shards with `maskloom shards TEXT {shlex.quote(folder)}`, or index webdataset tars "
            f"that exist with `maskloom index {shlex.quote(folder)}`"
        ) from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
        raise UserError(f"{where} is no {FORMAT} of version {VERSION}: {AGAIN}")
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
            # `np.load` would open archives and pickles too, and make room for as many numbers as the head names.
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
