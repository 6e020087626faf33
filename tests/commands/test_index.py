"""`maskloom index`: an index for tars that someone else wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdataset

from maskloom.data.index import load_index, text_hash

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


def test_what_is_no_tar_is_refused(tmp_path: Path, fails: Command) -> None:
    assert "no .tar file" in fails("index", tmp_path)
    assert "no file or folder" in fails("index", tmp_path / "absent")
    (tmp_path / "notes.tar").write_text("a text\n" * 200)
    assert "is not a tar" in fails("index", tmp_path, "--processes", 1)
    (tmp_path / "part.tar.gz").write_bytes(b"")
    assert "part.tar.gz is compressed" in fails("index", tmp_path)


def test_a_tar_that_is_cut_off_is_refused(tars: Path, fails: Command) -> None:
    part = tars / "part-1.tar"
    part.write_bytes(part.read_bytes()[:5000])
    assert "part-1.tar" in fails("index", tars, "--text-key", "content", "--processes", 1)
    assert not (tars / "index.json").exists()
