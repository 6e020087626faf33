"""From the bytes of a block, or of a whole tar, to documents, as webdataset reads them.

A byte range of a tar from member to member is a tar stream itself. So a block is read as a shard is: `tars.py` finds its members,
and webdataset's `group_by_keys` joins them to samples. `.decode()` is never used, for it unpickles.

A sample's text is in its `.txt` field, or under `text_key` in its `.jsonl` (a JSON object a line) or `.json` field. A key with
dots ("doc.0.txt", "doc.1.txt") is one sample to webdataset: every such field is read.

A `.tokens` member holds documents that were tokenised beforehand: plain arrays behind a small head, no pickle.
"""

from __future__ import annotations

import functools
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from maskloom.data.reading.tars import members, tar_fault
from maskloom.errors import DataFault, UserError
from maskloom.redaction import brief, shortened
from maskloom.tokenizers.base import Tokenized, Tokenizer

TEXT_FIELDS = ("txt", "jsonl", "json")  # the first that a sample has is its text; a .json beside a .txt is metadata
TOKENS = "tokens"
TOKENS_HEAD = struct.Struct("<8sHHI")  # magic, version, bytes an id, documents
TOKENS_MAGIC, TOKENS_VERSION = b"MLTOKENS", 1
HELD_OUT_BIT = np.uint32(1 << 31)
MOST_KEYS = 10  # of an object that are named
OnBad = Callable[[DataFault], None]


@dataclass(frozen=True)
class TokenBlock:
    """A block that was tokenised beforehand: its documents, and which of them are held out (bool [documents])."""

    documents: Tokenized
    held_out: NDArray[np.bool_]


def read_documents(
    stream: IO[bytes], url: str, text_key: str, offset: int = 0, on_bad: OnBad | None = None
) -> Iterator[str]:
    """The documents in a tar stream, in order.

    Args:
        offset: where the stream begins in the shard, for messages.
        on_bad: called with the fault of each document that cannot be read, which is then skipped. None: raise.

    Raises:
        DataFault: naming shard, sample and fault, for text that is not UTF-8, JSON that does not parse, a missing text.
    """
    for sample in _samples(stream, url, offset):
        yield from _documents_of(sample, url, text_key, offset, on_bad)


def encode_block(tokenizer: Tokenizer, documents: Sequence[str], url: str, offset: int, split: str = "") -> Tokenized:
    """Token ids of the documents of a block.

    Args:
        split: the one that they all belong to, for messages. Empty: they are all documents of the block.

    Raises:
        DataFault: the tokenizer's library fails at one of them. The message has its number, from 1.
    """
    try:
        return tokenizer.encode(documents)
    except UserError as error:
        # Encode one at a time to find the bad one. It may fail only together with others.
        which, why = f"one of the {len(documents):,} documents", error
        for number, text in enumerate(documents, start=1):
            try:
                tokenizer.encode([text])
            except UserError as own:
                which, why = f"document {number:,} of {len(documents):,}", own
                break
        raise DataFault(
            f"shard {url}: {which}{split and f' for {split}'} in the block at offset {offset}: {why}: change the text, or "
            "leave it out",
            kind="tokens",
            shard=url,
            offset=offset,
        ) from None


def tokens_member(documents: Tokenized, held_out: NDArray[np.bool_], vocab_size: int) -> bytes:
    """The content of a `.tokens` member: head, uint32 lengths (highest bit: held out), ids as uint16 if they fit."""
    width = 2 if vocab_size <= 1 << 16 else 4
    lengths = documents.lengths.astype("<u4") | np.where(held_out, HELD_OUT_BIT, np.uint32(0)).astype("<u4")
    head = TOKENS_HEAD.pack(TOKENS_MAGIC, TOKENS_VERSION, width, len(lengths))
    content: bytes = head + lengths.tobytes() + documents.ids.astype(f"<u{width}").tobytes()
    return content


def read_tokens(stream: IO[bytes], url: str, offset: int = 0) -> TokenBlock:
    """The tokenised documents in a tar stream of `.tokens` members, in order.

    Raises:
        DataFault: no such member, or one whose parts do not fit its size.
    """
    lengths, ids = [], []
    for sample in _samples(stream, url, offset):
        key = sample["__key__"]
        data = sample.get(TOKENS)
        if not isinstance(data, bytes) or len(data) < TOKENS_HEAD.size:
            raise _tokens_fault(url, key, offset, "there is none, or it is cut off")
        magic, version, width, count = TOKENS_HEAD.unpack_from(data)
        begin = TOKENS_HEAD.size + 4 * count
        if magic != TOKENS_MAGIC or version != TOKENS_VERSION or width not in (2, 4) or len(data) < begin:
            raise _tokens_fault(url, key, offset, "it is of another format")
        lengths.append(np.frombuffer(data, "<u4", count, TOKENS_HEAD.size))
        if len(data) - begin != width * int((lengths[-1] & ~HELD_OUT_BIT).sum(dtype=np.int64)):
            raise _tokens_fault(url, key, offset, "its size does not fit the documents it lists")
        ids.append(np.frombuffer(data, f"<u{width}", offset=begin).astype(np.int32))
    if not lengths:
        raise _tokens_fault(url, "", offset, "there is none")
    table = np.concatenate(lengths)
    documents = Tokenized(np.concatenate(ids), (table & ~HELD_OUT_BIT).astype(np.int64))
    return TokenBlock(documents, (table & HELD_OUT_BIT) != 0)


def document_from_json(line: bytes | str, text_key: str, where: str) -> str:
    """The text of one JSON object. Raises DataFault that begins with `where`."""
    try:
        # Decode first: given bytes, json would look for UTF-16 and UTF-32, which lines cannot be.
        value = json.loads(line.decode().removeprefix("\ufeff") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        raise DataFault(f"{where}: not valid UTF-8 at byte {error.start} ({error.reason})", kind="utf-8") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number with too many digits for Python
        raise DataFault(f"{where}: not valid JSON: {error}", kind="json") from None
    if isinstance(value, dict) and isinstance(value.get(text_key), str):
        text = str(value[text_key])
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, UTF-8 cannot
            raise DataFault(
                f"{where}: '{text_key}' holds the lone surrogate \\u{ord(text[error.start]):04x} at character "
                f"{error.start}, which is not text: replace it",
                kind="utf-8",
            ) from None
        return text
    if not isinstance(value, dict):
        raise DataFault(f"{where}: a JSON object is needed, not {type(value).__name__}", kind="json")
    if text_key in value:
        raise DataFault(f"{where}: '{text_key}' holds {type(value[text_key]).__name__}, not text", kind="json")
    keys = ", ".join(map(brief, itertools.islice(value, MOST_KEYS))) or "no key at all"
    if len(value) > MOST_KEYS:
        keys += f" and {len(value) - MOST_KEYS:,} more"
    raise DataFault(f"{where}: no '{text_key}' in the object; it has {keys}: use --text-key", kind="json")


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 text. Raises DataFault that begins with `where` and names the byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataFault(
            f"{where}: not valid UTF-8 at byte {error.start} ({error.reason}): convert the file, for example with iconv",
            kind="utf-8",
        ) from None


def _samples(stream: IO[bytes], url: str, offset: int) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import group_by_keys  # it imports torch, which takes a second

    where = f"shard {url}, block at offset {offset}"
    try:
        yield from group_by_keys(_files(stream, where, url, offset))
    except DataFault as fault:
        fault.shard, fault.offset = url, offset
        raise
    except (ValueError, AssertionError) as error:  # two members of one name
        raise DataFault(
            f"{where}: cannot be read as a webdataset tar: {error.args[0] if error.args else error}",
            kind="tar",
            shard=url,
            offset=offset,
        ) from error


def _files(stream: IO[bytes], where: str, url: str, offset: int) -> Iterator[dict[str, Any]]:
    """The members of a block as webdataset's `tar_file_expander` gives them."""
    for member in members(stream, where, offset):
        if member.is_read:
            stream.seek(member.start)
            data = stream.read(member.size)
            if len(data) < member.size:
                raise tar_fault(
                    f"{where}: member '{shortened(member.name, 200)}' at byte {offset + member.offset} is cut off: "
                    f"{len(data)} of {member.size} bytes"
                )
            yield {"fname": member.name, "data": data, "__url__": url}


def _documents_of(sample: dict[str, Any], url: str, text_key: str, offset: int, on_bad: OnBad | None) -> Iterator[str]:
    where = f"shard {url}, sample '{shortened(sample['__key__'], 200)}'"
    fields = {name: data for name, data in sample.items() if not name.startswith("__")}
    for kind in TEXT_FIELDS:
        names = [name for name in fields if name.rpartition(".")[2] == kind]
        for name in names:
            for read in _readers(kind, fields[name], text_key, f"{where}.{name}"):
                try:
                    text = read()
                except DataFault as fault:
                    fault.shard, fault.offset, fault.key = url, offset, sample["__key__"]
                    if on_bad is None:
                        raise
                    on_bad(fault)
                else:
                    yield text
        if names:
            return


def _readers(kind: str, data: bytes, text_key: str, where: str) -> Iterator[Callable[[], str]]:
    """One function for each document of a field, so that each can fail alone."""
    if kind == "txt":
        yield functools.partial(decode_text, data, where)
    elif kind == "json":
        yield functools.partial(document_from_json, data, text_key, where)
    else:
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                yield functools.partial(document_from_json, line, text_key, f"{where} line {number}")


def _tokens_fault(url: str, key: str, offset: int, what: str) -> DataFault:
    return DataFault(
        f"shard {url}, sample '{shortened(key, 200)}', block at offset {offset}: no good .tokens member: {what}",
        kind="tokens",
        shard=url,
        offset=offset,
        key=key,
    )
