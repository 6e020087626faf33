"""`maskloom index`: an index for tars that someone else wrote."""

from __future__ import annotations

import errno
import functools
import gzip
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from maskloom.cli import main
from maskloom.commands import index as command
from maskloom.data.index.corpus import text_hash
from maskloom.data.index.loading import load_index

from .conftest import Command


@pytest.fixture
def tars(documents: list[str], tmp_path: Path) -> Path:
    """Two tars of one document a member, as webdataset writes them."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(2):
        with webdataset.TarWriter(str(folder / f"part-{number}.tar")) as writer:
            for place, text in enumerate(documents[number * 100 : number * 100 + 100]):
                writer.write({"__key__": f"{place:04d}", "json": {"content": text, "lang": "en"}})
    return folder


def held(folder: Path) -> tuple[list[str], list[str]]:
    """The documents for training and those held out, each sorted."""
    index = load_index(folder)
    trained = [text for block in index.train_blocks for text in index.documents(int(block), "train")]
    return sorted(trained), sorted(
        text for block in index.held_out_blocks for text in index.documents(int(block), "validation")
    )


def test_the_tars_are_read_where_they_are(tars: Path, documents: list[str], tmp_path: Path, succeeds: Command) -> None:
    before = {path.name: path.read_bytes() for path in tars.iterdir()}
    printed = succeeds("index", tars, "--text-key", "content", "--block-bytes", "8K", "--processes", 1)
    assert "200 documents for training and 0 held out" in printed
    assert held(tars) == (sorted(documents[:200]), [])
    assert {name: (tars / name).read_bytes() for name in before} == before

    succeeds("index", tars, "--text-key", "content", "--block-bytes", "8K", "--out", tmp_path / "elsewhere")
    assert held(tmp_path / "elsewhere") == held(tars)
    assert load_index(tmp_path / "elsewhere").digest == load_index(tars).digest


def test_the_held_out_share_follows_the_hash_of_the_text(tars: Path, documents: list[str], succeeds: Command) -> None:
    printed = succeeds("index", tars, "--text-key", "content", "--val-fraction", 0.25, "--processes", 1)
    expected = [text for text in documents[:200] if text_hash(text) < 2**30]  # a quarter of 32 bits
    assert expected
    assert held(tars) == (sorted(set(documents[:200]) - set(expected)), sorted(expected))
    assert f"{200 - len(expected)} documents for training and {len(expected)} held out" in printed


def test_a_key_that_is_not_there_is_named(tars: Path, fails: Command) -> None:
    message = fails("index", tars, "--processes", 1)
    assert "no 'text' in the object; it has 'content', 'lang': use --text-key" in message
    assert "part-0.tar" in message
    assert not (tars / "index.json").exists()


def test_what_is_not_a_tar_is_refused(tmp_path: Path, fails: Command) -> None:
    assert "no .tar file" in fails("index", tmp_path)
    assert "no file or folder" in fails("index", tmp_path / "absent")
    (tmp_path / "notes.tar").write_text("a text\n" * 200)
    assert "is not a tar" in fails("index", tmp_path, "--processes", 1)
    (tmp_path / "part.tar.gz").write_bytes(b"")
    assert "part.tar.gz is compressed" in fails("index", tmp_path)


def test_compressed_tars_are_refused_with_what_to_do(tars: Path, tmp_path: Path, fails: Command) -> None:
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        (tmp_path / name).write_bytes(b"")
        for given in (tmp_path / name, f"https://localhost/{name}?signed=1"):
            message = fails("index", given, "--out", tmp_path / "out")
            assert f"{name} is compressed" in message
            assert "decompress it first (gunzip, unzstd, bunzip2)" in message
    part = tars / "part-1.tar"
    part.write_bytes(gzip.compress(part.read_bytes()))  # whatever its name is
    assert f"{part} is compressed" in fails("index", tars, "--text-key", "content", "--processes", 1)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("/etc/passwd.txt", tarfile.REGTYPE, "names a place outside the tar"),
        ("a/../../b.txt", tarfile.REGTYPE, "names a place outside the tar"),
        ("a.txt", tarfile.SYMTYPE, "is a link, a device or a sparse file"),
        ("a.txt", tarfile.LNKTYPE, "is a link, a device or a sparse file"),
        ("a.txt", tarfile.CHRTYPE, "is a link, a device or a sparse file"),
        ("a.txt", tarfile.FIFOTYPE, "is a link, a device or a sparse file"),
    ],
)
def test_members_that_are_not_plain_text_files_are_named(
    name: str, kind: bytes, said: str, tmp_path: Path, fails: Command
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "good.txt"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"text"))
        tar.addfile(member)
    message = fails("index", tmp_path / "a.tar", "--processes", 1)
    assert f"member '{name}'" in message
    assert said in message
    assert not (tmp_path / "index.json").exists()


def test_a_tar_of_empty_documents_is_refused(tmp_path: Path, fails: Command) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": str(number), "txt": ""})
    assert "every document is empty" in fails("index", tmp_path, "--processes", 1)
    assert not (tmp_path / "index.json").exists()
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "picture", "jpg": b"no text"})
    assert "no document for training" in fails("index", tmp_path, "--processes", 1)


def test_bad_samples_are_left_out_and_counted(
    tars: Path, documents: list[str], succeeds: Command, fails: Command
) -> None:
    with webdataset.TarWriter(str(tars / "part-2.tar")) as writer:
        writer.write({"__key__": "good", "json": {"content": "a good one"}})
        writer.write({"__key__": "bad", "json": b'{"content": '})
        writer.write({"__key__": "worse", "json": b'{"content": "\xff"}'})
    options = ("--text-key", "content", "--processes", 1)
    message = fails("index", tars, *options)
    assert "part-2.tar" in message
    assert "sample 'bad'" in message
    printed = succeeds("index", tars, *options, "--on-bad-data", "skip")
    assert "201 documents for training" in printed
    assert "2 of 203 documents cannot be read and are left out" in printed
    assert held(tars) == (sorted([*documents[:200], "a good one"]), [])


@pytest.fixture
def served(tars: Path) -> Iterator[str]:
    """The tars over http, from this machine."""
    handler = functools.partial(Quiet, directory=str(tars))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_tars_elsewhere_are_indexed_by_their_urls(
    served: str, tars: Path, tmp_path: Path, succeeds: Command, fails: Command
) -> None:
    urls = [f"{served}/part-{number}.tar" for number in range(2)]
    assert "name the folder of the index with --out" in fails("index", *urls)
    assert "is given twice" in fails("index", urls[0], urls[0], "--out", tmp_path / "out")
    printed = succeeds("index", *urls, "--out", tmp_path / "out", "--text-key", "content", "--processes", 1)
    assert "200 documents for training and 0 held out" in printed
    succeeds("index", tars, "--text-key", "content", "--processes", 1)
    there, here = load_index(tmp_path / "out"), load_index(tars)
    assert there.digest == here.digest
    assert [shard.url for shard in there.shards] == urls


def test_corpora_are_joined_where_they_are(tars: Path, documents: list[str], succeeds: Command, fails: Command) -> None:
    """In a folder above them by relative paths, so that all can move together; elsewhere by absolute ones."""
    base = tars / "base"
    options = ("--text-key", "content", "--processes", 1)
    for number in range(2):
        folder = base / str(number)
        folder.mkdir(parents=True)
        (tars / f"part-{number}.tar").rename(folder / "a.tar")
        succeeds("index", folder, *options)
    printed = succeeds("index", "--merge", base / "0", base / "1", "--out", base)
    assert "200 documents for training" in printed
    succeeds("index", "--merge", base / "0", base / "1", "--out", tars / "other")
    assert load_index(base).digest == load_index(tars / "other").digest
    base.rename(tars / "moved")
    assert held(tars / "moved")[0] == sorted(documents[:200])
    assert "2 fault(s) in 2 of 2 shard(s)" in fails("index", "--check", tars / "other")
    moved = tars / "moved"
    assert "holds an index already" in fails("index", "--merge", moved / "0", moved / "1", "--out", moved)
    assert "hold the same documents" in fails("index", "--merge", moved / "0", moved / "0", "--out", tars / "new")
    assert "needs --out" in fails("index", "--merge", moved / "0", moved / "1")
    assert "needs two corpora" in fails("index", "--merge", moved / "0", "--out", tars / "new")
    assert "--merge cannot be combined with --text-key: leave it out" in fails(
        "index", "--merge", moved / "0", "--text-key", "content"
    )
    succeeds("index", moved / "1", *options, "--val-fraction", 0.5)
    message = fails("index", "--merge", moved / "0", moved / "1", "--out", tars / "new")
    assert "cannot be joined: --val-fraction 0.5 in the one and --val-fraction 0" in message
    assert not (tars / "new").exists()


def test_a_check_of_a_good_corpus_says_so(tars: Path, succeeds: Command, fails: Command) -> None:
    succeeds("index", tars, "--text-key", "content", "--block-bytes", "8K", "--processes", 1)
    printed = succeeds("index", "--check", tars)
    assert f"{tars} is what was indexed: 2 shard(s)" in printed
    assert "200 documents" in printed
    assert "one corpus at a time" in fails("index", "--check", tars, tars)


def test_a_check_names_every_fault(
    tars: Path, succeeds: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds("index", tars, "--text-key", "content", "--block-bytes", "8K", "--processes", 1)
    index = load_index(tars)
    blocks = [number for number in range(index.header["blocks"]) if index.columns["shard"][number] == 1]
    assert len(blocks) > 3
    offsets = {block: int(index.columns["offset"][block]) for block in blocks}
    part = tars / "part-1.tar"
    data = bytearray(part.read_bytes())
    data[data.index(b'"content"', offsets[blocks[1]])] = 0  # the first sample of a block: no JSON any more
    word = data.index(b"document", offsets[blocks[3]])
    data[word] ^= 1  # another text
    part.write_bytes(data)
    first = tars / "part-0.tar"
    damaged = bytearray(first.read_bytes())
    damaged[-1] = 1  # behind all blocks
    first.write_bytes(damaged)
    assert main(["index", "--check", str(tars), "--processes", "2"]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("shard ")]
    with tarfile.open(part, ignore_zeros=True) as tar:
        key = next(member.name for member in tar if member.offset == offsets[blocks[1]]).removesuffix(".json")
    assert len(lines) == 3
    assert lines[0].startswith(f"shard 0: checksum: shard {first}")
    assert lines[1].startswith(f"shard 1, block {blocks[1]}: checksum: shard {part}")
    assert f"offset {offsets[blocks[1]]}" in lines[1]
    assert lines[1].endswith(f"the first sample that cannot be read is '{key}'")
    assert lines[2].startswith(f"shard 1, block {blocks[3]}: checksum:")
    assert "cannot be read is" not in lines[2]
    assert captured.err.strip().endswith(f"3 fault(s) in 2 of 2 shard(s) of {tars}")
    monkeypatch.setattr(command, "FAULTS_SHOWN", 1)
    assert main(["index", "--check", str(tars), "--processes", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("checksum") == 1
    assert "and 2 more" in captured.out


def test_a_check_continues_after_shards_that_are_missing_or_cut_off(
    tars: Path, succeeds: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    succeeds("index", tars, "--text-key", "content", "--block-bytes", "8K", "--processes", 1)
    index = load_index(tars)
    part = tars / "part-0.tar"
    os.truncate(part, 20_000)
    ends = (index.columns["offset"] + index.columns["length"])[index.columns["shard"] == 0]
    cut = int((ends > 20_000).sum())
    assert cut > 1
    (tars / "part-1.tar").unlink()
    assert main(["index", "--check", str(tars), "--processes", "1"]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("shard ")]
    assert lines[0].startswith(f"shard 0: truncated: shard {part} has 20000 bytes")
    assert all(line.startswith("shard 0, block ") and ": truncated: " in line for line in lines[1:-1])
    assert lines[-1].startswith(f"shard 1: missing: shard {tars / 'part-1.tar'}")
    assert f"{cut + 2} fault(s) in 2 of 2 shard(s)" in captured.err


def test_names_with_a_colon_are_paths(tars: Path, monkeypatch: pytest.MonkeyPatch, succeeds: Command) -> None:
    (tars / "part-0.tar").rename(tars / "10:00.tar")
    (tars / "part-1.tar").unlink()
    folder = tars.rename(tars.with_name("a:b"))
    monkeypatch.chdir(folder)
    options = ("--text-key", "content", "--processes", 1)
    for given, *out in ((".",), ("./10:00.tar",), ("./10:00.tar", "--out", "c:d")):
        succeeds("index", given, *out, *options)
        assert len(held(folder / (out or ".")[-1])[0]) == 100
        (folder / (out or ".")[-1] / "index.json").unlink()
    monkeypatch.chdir(folder.parent)
    succeeds("index", "./a:b", *options)
    succeeds("index", "--check", "./a:b")
    assert [shard.url for shard in load_index("./a:b").shards] == ["./10:00.tar"]


def test_a_file_url_names_a_folder(tars: Path, monkeypatch: pytest.MonkeyPatch, succeeds: Command) -> None:
    options = ("--text-key", "content", "--processes", 1)
    monkeypatch.chdir(tars)
    for given in (f"file://{tars}", f"file://{tars}/part-0.tar"):
        succeeds("index", given, *options)
        assert load_index(tars)
        (tars / "index.json").unlink()
    succeeds("index", tars, "--out", f"file://{tars}/other", *options)
    assert load_index(tars / "other")
    assert not (tars / "file:").exists()


def test_held_out_text_does_not_become_training_text(
    corpus_dir: Path, tmp_path: Path, succeeds: Command, fails: Command
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_dir, folder)
    before = (folder / "index.json").read_bytes()
    for given in (folder, folder / "train-000000.tar", folder / "validation-000000.tar"):
        message = fails("index", given, "--processes", 1)
        assert f"{folder / 'index.json'} was written by `maskloom shards`" in message
        assert "write the corpus again, remove index.json first, or give another --out" in message
    assert (folder / "index.json").read_bytes() == before
    succeeds("index", folder, "--out", tmp_path / "elsewhere", "--processes", 1)
    header = json.loads(before)
    header["tokens"], header["shards"] = {"tokenizer": "x"}, header["shards"][:1]
    (folder / "index.json").write_text(json.dumps(header))
    assert "held out or tokenised" in fails("index", folder, "--processes", 1)
    (folder / "index.json").unlink()
    succeeds("index", folder, "--processes", 1)
    succeeds("index", folder, "--processes", 1)  # its own index is replaced


def test_a_link_that_leads_nowhere_is_refused(tars: Path, tmp_path: Path, fails: Command) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    message = fails("index", tars, "--out", tmp_path / "out")  # before it sees that the tars have no 'text'
    assert "out is a link that leads nowhere" in message


def test_a_full_disk_is_reported_with_the_folder(tars: Path, monkeypatch: pytest.MonkeyPatch, fails: Command) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "index_tars", full)
    assert f"No space left on device: '{tars}'" in fails("index", tars, "--text-key", "content")


def test_a_tar_that_is_cut_off_is_refused(tars: Path, fails: Command) -> None:
    part = tars / "part-1.tar"
    part.write_bytes(part.read_bytes()[:5000])
    assert "part-1.tar" in fails("index", tars, "--text-key", "content", "--processes", 1)
    assert not (tars / "index.json").exists()
