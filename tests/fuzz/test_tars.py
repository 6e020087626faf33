"""Tars: headers and members, when they are indexed and when their blocks are read; `.tokens` members."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import webdataset

from maskloom.data.index.indexing import index_shard
from maskloom.data.reading.samples import TOKENS_MAGIC, read_documents, read_tokens, tokens_member
from maskloom.data.writing.token_shards import _first_key
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenized
from tests.data.reading.test_tars import HOSTILE

from .harness import fuzz

MEMORY_BYTES = 64 << 20
"""Far above what the inputs need, which have a few KiB, and far below what their headers can ask for."""
WORDS = [
    b"ustar\x0000",
    b"ustar  \0",
    b"././@LongLink\0",
    b"\x80" + bytes(3) + b"\xff" * 8,
    b"\xff" * 10 + b"\xfe\0",
    b"77777777777\0",
    b"00000000000\0",
    b"GNU.sparse.map=0,1\n",
    b"GNU.sparse.major=1\n",
    b"18 GNU.sparse.size=",
    b"14 size=-512\n",
    b"13 path=../a\n",
    b"21 hdrcharset=BINARY\n",
    b"LLLL",
    b"xxxx",
    b"gggg",
    b"SSSS",
    bytes(512),
    *(content for content in HOSTILE.values() if len(content) < 8192),
]


def tar(form: int, members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as written:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            written.addfile(info, io.BytesIO(data))
    return stream.getvalue()


MEMBERS = {
    "a.txt": b"some text",
    "b.json": b'{"text": "of one"}',
    "c.jsonl": b'{"text": "a line"}\n{"text": "and another"}\n',
    "d" * 120 + ".txt": b"long",
    "g\u00e9.0.txt": b"accents",
}
SEEDS = [tar(form, MEMBERS) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def fix_checksums(data: bytes) -> bytes:
    """Most edits of a header would end at its checksum: half of the inputs get the right ones."""
    if not data or data[-1] % 2:
        return data
    fixed = bytearray(data)
    for at in range(0, len(data) - 511, 512):
        if any(fixed[at : at + 512]) and fixed[at + 257 : at + 262] == b"ustar":
            fixed[at + 148 : at + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(fixed[at : at + 512]))[0]
    return bytes(fixed)


def test_tars_that_are_indexed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def index(data: bytes) -> None:
        path.write_bytes(fix_checksums(data))
        index_shard(path, 1, "text", "train")

    fuzz(index, SEEDS, WORDS, folder=tmp_path, inputs=1000, memory_bytes=MEMORY_BYTES)


def test_tars_that_are_indexed_without_their_bad_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def index(data: bytes) -> None:
        path.write_bytes(fix_checksums(data))
        found = index_shard(path, 1, "text", "by_hash", 1 << 31, skip_bad=True)
        for offset, length, documents, held_out, _ in found.blocks.tolist():  # each block is read as it was indexed
            block = io.BytesIO(path.read_bytes()[offset : offset + length])
            assert (
                sum(1 for _ in read_documents(block, "a.tar", "text", offset, lambda fault: None))
                == documents + held_out
            )

    fuzz(index, SEEDS, WORDS, folder=tmp_path, inputs=500, memory_bytes=MEMORY_BYTES)


def test_blocks_that_are_read() -> None:
    def read(data: bytes) -> None:
        stream = io.BytesIO(fix_checksums(data))
        _first_key(stream, "shard a.tar", 0)
        for _ in read_documents(stream, "a.tar", "text"):
            pass

    fuzz(read, SEEDS, WORDS, inputs=1000, memory_bytes=MEMORY_BYTES)


def test_what_is_indexed_is_what_webdataset_reads(tmp_path: Path) -> None:
    """A tar that is taken holds for the whole field what it holds here."""
    path = tmp_path / "a.tar"

    def compare(data: bytes) -> None:
        data = fix_checksums(data)
        path.write_bytes(data)
        index_shard(path, 1, "text", "train")
        ours = list(read_documents(io.BytesIO(data), "a.tar", "text"))
        samples = webdataset.DataPipeline(
            lambda: [{"url": "a.tar", "stream": io.BytesIO(data)}],
            webdataset.tariterators.tar_file_expander,
            webdataset.tariterators.group_by_keys,
        )
        texts = []
        for sample in samples:
            for kind in ("txt", "jsonl", "json"):
                fields = [sample[name] for name in sample if not name.startswith("__") and name.split(".")[-1] == kind]
                lines = [line for field in fields for line in field.split(b"\n") if line.strip()]
                if kind == "txt":
                    texts += [field.decode() for field in fields]
                else:
                    texts += [json.loads(line)["text"] for line in (lines if kind == "jsonl" else fields)]
                if fields:
                    break
        assert ours == texts

    fuzz(compare, SEEDS, WORDS, folder=tmp_path, inputs=500, memory_bytes=MEMORY_BYTES)


def test_tokens() -> None:
    documents = Tokenized(np.arange(12) * 9, np.asarray([5, 0, 7]))
    held_out = np.asarray([False, True, True])
    seeds = [tokens_member(documents, held_out, size) for size in (100, 1 << 17)]
    words = [TOKENS_MAGIC, b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\3\0\0\0"]

    def read(data: bytes) -> None:
        found = read_tokens(io.BytesIO(tar(tarfile.GNU_FORMAT, {"a.tokens": data})), "a.tar")
        assert found.documents.lengths.sum() == len(found.documents.ids)
        assert len(found.documents.lengths) == len(found.held_out)

    fuzz(read, seeds, words, inputs=1000, memory_bytes=MEMORY_BYTES, allowed=(UserError,))
