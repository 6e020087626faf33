"""Token shards: the blocks of text shards, tokenised beforehand.

Each block has the same documents in the same order, in one `.tokens` member under the key of its first sample. So both kinds of
shards give the same rows, and the digest of the text identifies both.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from maskloom.data.index.corpus import Index, text_hash
from maskloom.data.index.files import BLOCK, COLUMNS, Shard, Tokens, corpus_digest
from maskloom.data.index.indexing import IndexedShard, write_index
from maskloom.data.reading.samples import TOKENS, OnBad, encode_block, read_documents, tokens_member
from maskloom.data.reading.tars import members
from maskloom.data.writing.work import Entry, JobPart, WorkFolder, WorkPlan, begin, is_finished
from maskloom.errors import DataFault, UserError
from maskloom.processes import Pool
from maskloom.redaction import shown
from maskloom.tokenizers.base import Tokenizer

ReadBlock = Callable[[int], io.BytesIO]


def tokenize_corpus(
    corpus: Index,
    out: Path,
    tokenizer: Tokenizer,
    part: JobPart,
    processes: int,
    on_stage: Callable[[str, float], Callable[[float], None]],
) -> None:
    """Write one part's share of the token shards of a corpus. Does nothing if `out` is what they make already.

    Raises:
        UserError: `out` exists, other work on it was begun, or `corpus` holds token shards already.
        DataFault: a block of `corpus` is not what was indexed.
    """
    if corpus.tokenizer_fingerprint:
        raise UserError(f"{corpus.folder} holds token shards already: name the text shards")
    names = tuple(f"{shard.split.replace('_', '-')}-{number:06d}" for number, shard in enumerate(corpus.shards))
    header = corpus.header
    # The plan holds what the index of the token shards copies from that of the text.
    kept = ("text_key", "held_out_threshold", "block_bytes", "text_bytes", "bad_documents")
    options = {name: header[name] for name in kept}
    files = (("index.json", header["table_digest"]),)
    plan = WorkPlan((corpus.folder,), options, tokenizer.tokens_mark, corpus.digest, 0, names, files)
    if is_finished(out, plan):
        return
    work = begin(out, plan, part)
    with work.locked(), Pool(processes, __name__, "webdataset") as pool:
        mine = [number for number in work.unwritten() if part.takes(number)]
        advance = on_stage("writing", len(mine))
        for _ in pool.map(functools.partial(_tokenize_shard, work=work, corpus=corpus, tokenizer=tokenizer), mine):
            advance(1)


def index_of_tokens(work: WorkFolder) -> Index:
    """Write the index of the token shards of a corpus that exists."""
    plan, options = work.plan, work.plan.options
    indexed = [entry.indexed for number in range(len(plan.names)) if (entry := work.read_entry(number)).indexed]
    # These two are known only of the whole corpus, so the first shard carries them.
    totals = {name: options[name] for name in ("text_bytes", "bad_documents")}
    return write_index(
        work.folder / "corpus",
        [replace(indexed[0], **totals), *(replace(entry, text_bytes=0, bad_documents=0) for entry in indexed[1:])],
        text_key=options["text_key"],
        block_bytes=options["block_bytes"],
        threshold=options["held_out_threshold"],
        tokens=Tokens.of(plan.tokenizer),
        digest=plan.corpus,
    )


def write_token_shard(
    work: WorkFolder,
    path: Path,
    text: IndexedShard,
    read_block: ReadBlock,
    tokenizer: Tokenizer,
    *,
    text_key: str,
    threshold: int,
) -> IndexedShard:
    """Write the token shard of one text shard.

    Args:
        text: the text shard and its blocks. `bad_documents` says whether indexing left some out.
        read_block: the bytes of its i-th block.

    Raises:
        DataFault: a block does not hold the documents that were indexed, or one that cannot be encoded.
    """
    rows = text.blocks.copy()
    # Indexing left out samples that were bad then, so reading must leave them out too.
    on_bad: OnBad | None = (lambda fault: None) if text.bad_documents else None
    with work.writing(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for place, row in enumerate(rows):
            stream, offset = read_block(place), int(row["offset"])
            key = _first_key(stream, f"shard {shown(text.shard.url)}", offset) or f"block-{place:06d}"
            documents = list(read_documents(stream, text.shard.url, text_key, offset, on_bad))
            held_out = _held_out(documents, text.shard, threshold)
            if (len(documents) - held_out.sum(), held_out.sum()) != (row["documents"], row["held_out"]):
                raise DataFault(
                    f"shard {text.shard.url}: {len(documents)} documents in the block at offset {offset}, the index says "
                    f"{row['documents'] + row['held_out']}: index it again",
                    kind="count",
                    shard=text.shard.url,
                    offset=offset,
                )
            data = tokens_member(
                encode_block(tokenizer, documents, shown(text.shard.url), offset), held_out, tokenizer.vocab_size
            )
            row["offset"] = file.tell()
            _add(tar, f"{key}.{TOKENS}", data)
            row["length"] = file.tell() - row["offset"]
    return _indexed(path, rows, text)


def text_digest_of(texts: Sequence[IndexedShard], text_key: str, threshold: int) -> str:
    """The digest of the text corpus that these shards would make."""
    table = np.concatenate([text.blocks for text in texts]) if texts else np.empty(0, BLOCK)
    columns: dict[str, NDArray[Any]] = {name: table[name] for name in COLUMNS if name != "shard"}
    columns["shard"] = np.repeat(np.arange(len(texts), dtype=COLUMNS["shard"]), [len(text.blocks) for text in texts])
    shards = [asdict(text.shard) for text in texts]
    header = {"text_key": text_key, "held_out_threshold": threshold, "shards": shards}
    return corpus_digest(header, columns)


def _tokenize_shard(number: int, work: WorkFolder, corpus: Index, tokenizer: Tokenizer) -> None:
    shard = corpus.shards[number]
    blocks = np.flatnonzero(corpus.columns["shard"] == number)
    table = np.empty(len(blocks), BLOCK)
    for name in BLOCK.names or ():
        table[name] = corpus.columns[name][blocks]
    text = IndexedShard(replace(shard, url=corpus.url(shard)), table, 0, corpus.header["bad_documents"])

    def read_block(place: int) -> io.BytesIO:
        return corpus.read(int(blocks[place]))

    header = corpus.header
    how = {"text_key": header["text_key"], "threshold": header["held_out_threshold"]}
    tokens = write_token_shard(work, work.shard(number), text, read_block, tokenizer, **how)
    work.write_entry(number, Entry(tokens, None, 0, 0))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444
    tar.addfile(member, io.BytesIO(data))


def _first_key(stream: IO[bytes], where: str, offset: int) -> str | None:
    """The key of the first sample of a block. Rewinds the stream. Raises DataFault."""
    from webdataset.tariterators import base_plus_ext  # it imports torch, which takes a second

    names = (member.name for member in members(stream, where, offset) if member.is_read)
    key = next((base for name in names if (base := base_plus_ext(name)[0]) is not None), None)
    stream.seek(0)
    return key


def _held_out(documents: Iterable[str], shard: Shard, threshold: int) -> NDArray[np.bool_]:
    if shard.split == "by_hash":
        return np.array([text_hash(text) < threshold for text in documents], dtype=bool)
    return np.array([shard.split == "validation" for _ in documents], dtype=bool)


def _indexed(path: Path, rows: NDArray[np.void], text: IndexedShard) -> IndexedShard:
    """The rows with their checksums."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for row in rows:
            data = file.read(int(row["length"]))
            row["crc32"] = zlib.crc32(data)
            digest.update(data)
        digest.update(file.read())  # the end of the tar
        size = file.tell()
    shard = Shard(str(path.absolute()), size, digest.hexdigest(), text.shard.split)
    return IndexedShard(shard, rows, text.text_bytes, text.bad_documents)
