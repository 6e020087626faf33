"""Tars to an index, several indexes to one, and a corpus checked against its index."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import math
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskloom.data.index.corpus import Index, text_hash
from maskloom.data.index.indexing import check_shard, index_shard, index_tars, merge_indexes, write_index
from maskloom.data.index.loading import load_index
from maskloom.data.reading import tars
from maskloom.errors import UserError
from tests.conftest import sentences

from .making import RECORD, index_here, texts_of, three_members, write_tar


@example([[6], [6]], 10)  # "0.0 xxxxxx" fills a block to the byte
@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1500), min_size=1, max_size=3), min_size=1, max_size=8), st.integers(1, 4000))
def test_blocks_are_whole_samples_and_hold_every_document_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], block_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    documents = [[f"{n}.{m} " + "x" * size for m, size in enumerate(sample)] for n, sample in enumerate(sizes)]
    path = write_tar(folder / "a.tar", [{f"{m}.txt": text for m, text in enumerate(sample)} for sample in documents])
    index = index_here([path], folder, block_bytes=block_bytes)
    assert texts_of(index) == [text for sample in documents for text in sample]
    offsets, lengths = index.columns["offset"].tolist(), index.columns["length"].tolist()
    assert offsets == [0, *np.cumsum(lengths)[:-1].tolist()]  # the blocks tile the shard
    blocks = [index.documents(block, "train") for block in range(len(offsets))]
    for block in blocks[:-1]:  # a block ends with the sample that fills it
        assert sum(len(text.encode()) for text in block) >= block_bytes
    for block in blocks:  # and with no later one
        last = block[-1].split(".")[0]
        assert sum(len(text.encode()) for text in block if text.split(".")[0] != last) < block_bytes
    whose = [{text.split(".")[0] for text in block} for block in blocks]
    assert sum(map(len, whose)) == len(set().union(*whose)) == len(sizes)


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "dotted", "nested"])
def test_shards_by_webdatasets_writer(tmp_path: Path, kind: str) -> None:
    documents = [f"document {number} é" for number in range(20)]
    with webdataset.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=6, verbose=0) as writer:
        for number, text in enumerate(documents):
            key = f"folder/{number:03d}" if kind == "nested" else f"{number:03d}"
            sample: dict[str, Any] = {"__key__": key}
            if kind == "json":
                sample["json"] = {"text": text, "id": number}
            elif kind == "jsonl":
                sample["jsonl"] = (json.dumps({"text": text}) + "\n").encode()
            elif kind == "dotted":
                sample = {"__key__": f"doc.{number}", "txt": text}  # to webdataset one sample, "doc"
            else:
                sample |= {"txt": text, "json": {"source": "metadata"}}
            writer.write(sample)
    paths = sorted(tmp_path.glob("*.tar"))
    assert len(paths) == math.ceil(20 / 6)
    index = index_here(paths, tmp_path)
    assert texts_of(index) == documents
    assert index.header["documents"] == 20
    assert index.header["text_bytes"] == sum(len(text.encode()) for text in documents)


def test_indexing_in_processes_is_the_same(tmp_path: Path) -> None:
    rng = random.Random(1)
    paths = [write_tar(tmp_path / f"{n}.tar", [{"txt": sentences(rng, 30)} for _ in range(9)]) for n in range(3)]
    here = index_here(paths, tmp_path / "here", split="by_hash", fraction=0.3)
    seen: list[int] = []
    there = index_tars(paths, tmp_path / "there", block_bytes=1000, fraction=0.3, processes=2, on_bytes=seen.append)
    assert here.digest == there.digest
    assert seen == [path.stat().st_size for path in paths]


def test_a_tar_cut_off_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    """At a member's border, inside a header, inside data, at the mark of the end."""
    _, borders = three_members(tmp_path / "whole.tar")
    data = (tmp_path / "whole.tar").read_bytes()
    cuts = {place + shift for place in borders for shift in (-513, -512, -1, 0, 1, 100, 511)} | set(range(0, 3000, 97))
    path = tmp_path / "cut.tar"
    for cut in sorted(cuts & set(range(borders[-1] + 1))):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"cut\.tar"):
            index_here([path], tmp_path)


def test_a_damaged_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """Never does a document go missing in silence: tarfile ends without a word at a header that it cannot read."""
    documents, borders = three_members(tmp_path / "whole.tar")
    data = (tmp_path / "whole.tar").read_bytes()
    path = tmp_path / "damaged.tar"
    refused = 0
    for place in range(borders[1], borders[1] + RECORD, 3):
        damaged = bytearray(data)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        try:
            assert texts_of(index_here([path], tmp_path)) == documents
        except UserError as error:
            assert "damaged.tar" in str(error)
            refused += 1
    assert refused > 150  # the checksum covers every byte but its own padding


def test_a_header_of_zeros_inside_a_tar_is_refused(tmp_path: Path) -> None:
    _, borders = three_members(tmp_path / "zeros.tar")
    data = bytearray((tmp_path / "zeros.tar").read_bytes())
    data[borders[1] : borders[1] + RECORD] = bytes(RECORD)
    (tmp_path / "zeros.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"zeros\.tar has data after its end-of-archive mark"):
        index_here([tmp_path / "zeros.tar"], tmp_path)


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    """Every reader, webdataset's as well, would leave the second out."""
    three_members(tmp_path / "one.tar")
    (tmp_path / "two.tar").write_bytes((tmp_path / "one.tar").read_bytes() * 2)
    with pytest.raises(UserError, match=r"two\.tar has data after its end-of-archive mark"):
        index_here([tmp_path / "two.tar"], tmp_path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, zstandard.compress])
def test_a_compressed_tar_is_refused(tmp_path: Path, compress: Any) -> None:
    three_members(tmp_path / "plain.tar")
    (tmp_path / "packed.tar").write_bytes(compress((tmp_path / "plain.tar").read_bytes()))
    with pytest.raises(UserError, match=r"packed\.tar is compressed.*decompress it first"):
        index_here([tmp_path / "packed.tar"], tmp_path)


def test_a_name_that_begins_like_a_compressed_file_is_a_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [{"__key__": "BZh0001", "txt": "text"}])
    assert texts_of(index_here([path], tmp_path)) == ["text"]


def test_a_shard_whose_name_has_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "10:00.tar", [{"txt": "text"}])
    assert texts_of(index_here([path], tmp_path)) == ["text"]
    monkeypatch.chdir(tmp_path)
    assert texts_of(index_here([Path("10:00.tar")], Path())) == ["text"]


@pytest.mark.parametrize("content", [b"", b"text\n" * 300, b"PK\x03\x04" + bytes(2000)])
def test_a_file_that_is_not_a_tar_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "not.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"shard .*not\.tar is"):
        index_here([tmp_path / "not.tar"], tmp_path)


@pytest.mark.parametrize("samples", [[], [{"jpg": b"\xff"}], [{"__key__": "__meta__/a", "txt": "a"}]])
def test_a_corpus_without_a_document_is_refused(tmp_path: Path, samples: list[dict[str, Any]]) -> None:
    path = write_tar(tmp_path / "a.tar", samples)
    with pytest.raises(UserError, match=r"no document for training in 1 shard\(s\)"):
        index_here([path], tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_bad_text_names_shard_sample_and_place(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [{"txt": "good"}, {"txt": b"ab\xff"}])
    with pytest.raises(UserError, match=r"a\.tar, sample '000001'\.txt: not valid UTF-8 at byte 2"):
        index_here([path], tmp_path)


def test_columns_of_an_unfinished_index_are_never_read_by_an_older_header(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = index_shard(corpus / "0.tar", 1, "text", "train")
    written: list[str] = []

    def save(file: Path, *arguments: Any, **options: Any) -> None:
        if len(written) == 3:
            raise OSError("No space left on device")
        written.append(str(file))
        real_save(file, *arguments, **options)

    real_save = np.save
    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match="No space"):
        write_index(corpus, [entry], text_key="text", block_bytes=1, threshold=0)
    with pytest.raises(UserError, match="no index at"):
        load_index(corpus)


def one_member(path: Path, change: Callable[[tarfile.TarInfo], None], name: str = "0.txt") -> Path:
    """A tar of a good sample and one member that was changed."""
    with tarfile.open(path, "w") as tar:
        for member_name, altered in (("a.txt", False), (name, True)):
            member = tarfile.TarInfo(member_name)
            member.size = 4
            if altered:
                change(member)
            tar.addfile(member, io.BytesIO(b"text"))
    return path


def typed(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, "a.txt"
        member.size = 0

    return change


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    path = one_member(tmp_path / "a.tar", typed(kind))
    with pytest.raises(UserError, match=r"a\.tar: member '0\.txt' at byte 1024 is a link, a device or a sparse file"):
        index_here([path], tmp_path)


@pytest.mark.parametrize("name", ["/etc/a.txt", "../a.txt", "b/../../a.txt", "..\\a.txt", "b/..", "\\a\\..\\b.txt"])
def test_names_that_leave_the_tar_are_refused(tmp_path: Path, name: str) -> None:
    path = one_member(tmp_path / "a.tar", lambda member: None, name)
    with pytest.raises(UserError, match="names a place outside the tar"):
        index_here([path], tmp_path)


@pytest.mark.parametrize("name", ["./b.txt", "b/..c/d.txt", "b..txt"])
def test_names_that_only_look_so_are_read(tmp_path: Path, name: str) -> None:
    path = one_member(tmp_path / "a.tar", lambda member: None, name)
    assert texts_of(index_here([path], tmp_path)) == ["text", "text"]


def test_a_member_too_large_for_a_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", [{"txt": "a" * 100}, {"txt": "b" * 101}])
    monkeypatch.setattr(tars, "LARGEST_MEMBER_BYTES", 100)
    with pytest.raises(UserError, match=r"member '000001\.txt' .* has 101 bytes, more than 100: .*split it"):
        index_here([path], tmp_path)


def test_folders_inside_a_tar_are_not_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        member = tarfile.TarInfo("b/c.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
    assert texts_of(index_here([tmp_path / "a.tar"], tmp_path)) == ["text"]


BAD_LINES = [b'{"text": "ab\xff"}', b'{"text": 3}', b"{", b'{"other": "a"}']


def test_documents_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    """When they are indexed and whenever they are read, so that nothing moves."""
    rng = random.Random(4)
    good = [sentences(rng, 8) for _ in range(60)]
    lines = [json.dumps({"text": text}).encode() for text in good]
    for place, bad in zip((0, 13, 40, 64), BAD_LINES, strict=True):
        lines.insert(place, bad)
    samples: list[dict[str, Any]] = [{"jsonl": b"\n".join(lines[i : i + 8])} for i in range(0, 64, 8)]
    samples += [{"txt": b"ab\xff"}, {"txt": "last"}]
    path = write_tar(tmp_path / "a.tar", samples)
    with pytest.raises(UserError, match=r"a\.tar, sample '000000'\.jsonl line 1: not valid UTF-8"):
        index_tars([path], tmp_path / "strict", block_bytes=1000)
    index = index_tars([path], tmp_path / "skipping", block_bytes=1000, fraction=0.3, skip_bad=True)
    kept = [*good, "last"]
    assert (index.header["bad_documents"], len(texts_of(index)) + len(texts_of(index, "validation"))) == (5, 61)
    assert sorted(texts_of(index) + texts_of(index, "validation")) == sorted(kept)
    assert texts_of(index) == [text for text in kept if text_hash(text) >= index.header["held_out_threshold"]]
    assert (index.header["documents"], index.header["held_out_documents"]) == (
        len(texts_of(index)),
        len(texts_of(index, "validation")),
    )
    assert index.header["text_bytes"] == sum(len(text.encode()) for text in kept)
    assert check_shard(index, 0) == []


class TestMerge:
    def parts(self, folder: Path, **options: Any) -> list[Index]:
        rng = random.Random(6)
        parts = []
        for name, size in (("a", 7), ("b", 12)):
            (folder / name).mkdir()
            paths = [
                write_tar(folder / name / f"{n}.tar", [{"txt": sentences(rng, 30)} for _ in range(size)])
                for n in range(2)
            ]
            parts.append(index_here(paths, folder / name, **options))
        return parts

    def test_the_whole_holds_the_documents_of_its_parts(self, tmp_path: Path) -> None:
        one, other = self.parts(tmp_path, split="by_hash", fraction=0.3)
        merged = merge_indexes([one, other], tmp_path)
        for split in ("train", "validation"):
            assert texts_of(merged, split) == texts_of(one, split) + texts_of(other, split)  # type: ignore[arg-type]
        for key in ("documents", "held_out_documents", "text_bytes", "blocks", "train_blocks", "validation_blocks"):
            assert merged.header[key] == one.header[key] + other.header[key]
        assert [shard.url for shard in merged.shards] == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
        assert [check_shard(merged, number) for number in range(4)] == [[]] * 4

    def test_a_whole_that_moves_with_its_parts_is_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        merged = merge_indexes(self.parts(tmp_path / "old"), tmp_path / "old")
        texts = texts_of(merged)
        shutil.move(tmp_path / "old", tmp_path / "new")
        moved = load_index(tmp_path / "new")
        assert (moved.digest, texts_of(moved)) == (merged.digest, texts)

    def test_the_digest_depends_on_the_parts_and_their_order(self, tmp_path: Path) -> None:
        one, other = self.parts(tmp_path)
        wholes = [[one, other], [other, one], [one], [one, one]]
        digests = [merge_indexes(parts, tmp_path / str(n)).digest for n, parts in enumerate(wholes)]
        assert len({one.digest, other.digest, *digests}) == 6
        again = merge_indexes([one, other], tmp_path / "again")
        assert again.digest == digests[0]

    def test_parts_that_read_text_in_other_ways_are_refused(self, tmp_path: Path) -> None:
        one, other = self.parts(tmp_path)
        held_out = index_here([tmp_path / "a" / "0.tar"], tmp_path / "c", split="by_hash", fraction=0.5)
        with pytest.raises(UserError, match=r"c and .*a cannot be joined: --val-fraction 0\.5 .* --val-fraction 0 "):
            merge_indexes([one, held_out], tmp_path / "merged")
        other.header["tokens"] = {"tokenizer": "f"}
        with pytest.raises(UserError, match=r"token shards .* text shards"):
            merge_indexes([one, other], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


class TestCheck:
    def test_a_good_shard_has_no_fault(self, corpus: Path) -> None:
        index = load_index(corpus)
        assert [check_shard(index, number) for number in range(2)] == [[], []]

    def test_each_damaged_block_is_named(self, corpus: Path) -> None:
        index = load_index(corpus)
        data = bytearray((corpus / "1.tar").read_bytes())
        offsets = index.columns["offset"][3:].tolist()
        for offset in (offsets[0], offsets[2]):
            data[offset + 600 if offset == offsets[0] else offset] ^= 4
        (corpus / "1.tar").write_bytes(data)
        faults = check_shard(index, 1)
        assert [(fault.kind, fault.shard, fault.offset) for fault in faults] == [
            ("checksum", str(corpus / "1.tar"), offset) for offset in (offsets[0], offsets[2])
        ]
        assert check_shard(index, 0) == []

    def test_a_flipped_bit_between_the_blocks_is_found(self, corpus: Path) -> None:
        """No block holds the mark at the end of a tar."""
        index = load_index(corpus)
        data = bytearray((corpus / "0.tar").read_bytes())
        data[-1] ^= 1
        (corpus / "0.tar").write_bytes(data)
        (fault,) = check_shard(index, 0)
        assert fault.kind == "checksum"
        assert "its sha256 is not what was indexed" in str(fault)

    def test_a_shard_cut_short_and_one_that_is_gone(self, corpus: Path) -> None:
        index = load_index(corpus)
        offset = int(index.columns["offset"][1])
        path = corpus / "0.tar"
        path.write_bytes(path.read_bytes()[: offset + 100])
        faults = check_shard(index, 0)
        assert [fault.kind for fault in faults] == ["truncated"] * 3  # the shard, and the two blocks that it lost
        assert [fault.offset for fault in faults[1:]] == index.columns["offset"][1:3].tolist()
        path.unlink()
        (fault,) = check_shard(index, 0)
        assert (fault.kind, fault.shard) == ("missing", str(path))

    def test_a_shard_that_grew_is_another(self, corpus: Path) -> None:
        index = load_index(corpus)
        with (corpus / "0.tar").open("ab") as file:
            file.write(bytes(512))
        (fault,) = check_shard(index, 0)
        assert fault.kind == "changed"
