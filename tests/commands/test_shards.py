"""`maskloom shards`: text in, shards with an index out, and the counts it prints."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import datasets
import pytest

from maskloom.cli import main
from maskloom.data.index.loading import load_index
from maskloom.data.writing import shards

from .conftest import Command


def written(folder: Path) -> list[str]:
    """All documents of a corpus, white space at their ends aside, sorted."""
    index = load_index(folder)
    splits = (("train", index.train_blocks), ("validation", index.held_out_blocks))
    return sorted(
        text.strip() for split, blocks in splits for block in blocks for text in index.documents(int(block), split)
    )


@pytest.fixture
def source(documents: list[str], tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))
    return file


def test_every_document_is_written_once(source: Path, documents: list[str], tmp_path: Path, succeeds: Command) -> None:
    out = tmp_path / "corpus"
    printed = succeeds("shards", source, out, "--text-key", "body", "--val-fraction", 0.2, "--processes", 1)
    assert written(out) == sorted(text.strip() for text in documents)
    header = load_index(out).header
    assert header["held_out_documents"] > 0
    assert f"{header['documents']:,} documents for training and {header['held_out_documents']:,} held out" in printed
    assert "0 empty documents left out, 0 long documents split, 0 exact duplicates kept" in printed


def test_the_report_is_printed_and_kept(source: Path, documents: list[str], tmp_path: Path, succeeds: Command) -> None:
    printed = succeeds("shards", source, tmp_path / "corpus", "--text-key", "body", "--processes", 1)
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    sizes = [len(text.strip().encode()) for text in documents]
    assert (report["documents"], report["bytes"], report["longest_bytes"]) == (len(sizes), sum(sizes), max(sizes))
    assert report["lengths"] == {
        str(1 << place): sum(size.bit_length() - 1 == place for size in sizes)
        for place in sorted({size.bit_length() - 1 for size in sizes})
    }
    assert report["letters"] == {"Latin": sum(letter.isalpha() for text in documents for letter in text)}
    assert f"longest document: {max(sizes) / 1024:.1f} KiB ({source}, the line at byte " in printed
    assert "letters by script: Latin 100.00%" in printed


def test_text_files_are_documents_or_hold_some_between_blank_lines(tmp_path: Path, succeeds: Command) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text("first\n\nsecond\n")
    (folder / "two.txt").write_text("third")
    succeeds("shards", folder, tmp_path / "files", "--val-fraction", 0, "--processes", 1)
    assert written(tmp_path / "files") == ["first\n\nsecond", "third"]
    succeeds("shards", folder, tmp_path / "blank", "--blank-line", "--val-fraction", 0, "--processes", 1)
    assert written(tmp_path / "blank") == ["first", "second", "third"]


def test_duplicates_and_empty_documents_are_counted(tmp_path: Path, succeeds: Command) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ["same", "same", "", "  ", "other", "same"])
    )
    kept = succeeds("shards", source, tmp_path / "kept", "--val-fraction", 0, "--processes", 1)
    assert "2 empty documents left out" in kept
    assert "2 exact duplicates kept" in kept
    assert len(written(tmp_path / "kept")) == 4
    dropped = succeeds("shards", source, tmp_path / "dropped", "--deduplicate", "--val-fraction", 0, "--processes", 1)
    assert "2 exact duplicates dropped" in dropped
    assert len(written(tmp_path / "dropped")) == 2


def test_sizes_are_obeyed(source: Path, documents: list[str], tmp_path: Path, succeeds: Command) -> None:
    options = ("--text-key", "body", "--val-fraction", 0, "--processes", 1)
    succeeds("shards", source, tmp_path / "one", *options)
    succeeds("shards", source, tmp_path / "many", *options, "--shard-bytes", "64K", "--block-bytes", "4K")
    one, many = load_index(tmp_path / "one"), load_index(tmp_path / "many")
    assert len(one.shards) == 1
    assert len(many.shards) > 1
    assert len(many.train_blocks) > len(one.train_blocks)
    assert written(tmp_path / "many") == sorted(text.strip() for text in documents)


def test_three_parts_and_a_merge_make_the_corpus_of_one_run(
    source: Path, tmp_path: Path, succeeds: Command, fails: Command
) -> None:
    lines = source.read_text().splitlines(keepends=True)
    inputs = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for number, path in enumerate(inputs):
        path.write_text("".join(lines[number::3]) * 8)  # more than the smallest batch
    options = ("--text-key", "body", "--processes", 1, "--shard-bytes", "300K", "--deduplicate")
    out, one = tmp_path / "parts", tmp_path / "one"
    whole = succeeds("shards", *inputs, one, *options)
    assert "has read its input. Its shards wait for part(s) 2/3, 3/3" in succeeds(
        "shards", *inputs, out, *options, "--part", "1/3"
    )
    message = fails("index", "--merge", out)
    assert "2 piece(s) are not read yet. Run part(s) 2/3, 3/3 of `maskloom shards` again" in message
    succeeds("shards", *inputs, out, *options, "--part", "2/3")
    assert f"part 3/3 is written. When all parts are, complete the corpus: maskloom index --merge {out}" in succeeds(
        "shards", *inputs, out, *options, "--part", "3/3", "--wait"
    )
    for number in (1, 2):
        succeeds("shards", *inputs, out, *options, "--part", f"{number}/3")
    assert succeeds("index", "--merge", out).replace(str(out), str(one)) == whole
    for path in one.rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(one)).read_bytes() == path.read_bytes()
    assert "there is nothing left to finish" in fails("index", "--merge", out)
    assert f"{out} exists" in fails("shards", *inputs, out, *options, "--part", "1/3")


def test_a_corpus_and_its_text_give_the_same_token_shards(
    source: Path, tmp_path: Path, tokenizer_dir: Path, succeeds: Command, fails: Command
) -> None:
    options = ("--text-key", "body", "--processes", 1, "--val-fraction", 0.2)
    succeeds("shards", source, tmp_path / "text", *options)
    succeeds("shards", source, tmp_path / "direct", *options, "--tokenizer", tokenizer_dir)
    printed = succeeds("shards", tmp_path / "text", tmp_path / "later", "--tokenizer", tokenizer_dir, "--processes", 1)
    assert "KiB of tokenised text in" in printed
    text, direct, later = (load_index(tmp_path / name) for name in ("text", "direct", "later"))
    assert text.digest == direct.digest == later.digest
    assert direct.header["table_digest"] == later.header["table_digest"]
    message = fails("shards", tmp_path / "text", tmp_path / "x", "--tokenizer", tokenizer_dir, "--val-fraction", 0.2)
    assert "leave out --val-fraction" in message
    message = fails("shards", tmp_path / "text", source, tmp_path / "x", "--tokenizer", tokenizer_dir)
    assert "token shards are made of one at a time" in message
    assert "no tokenizer at" in fails("shards", source, tmp_path / "x", "--tokenizer", tmp_path / "none")


def test_datasets_are_inputs(documents: list[str], tmp_path: Path, succeeds: Command) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"body": documents}).save_to_disk(tmp_path / "saved")
    datasets.Dataset.from_dict({"body": documents}).to_parquet(tmp_path / "a.parquet")
    for name in ("saved", "a.parquet"):
        succeeds("shards", tmp_path / name, tmp_path / f"from_{name}", "--text-key", "body", "--processes", 1)
        assert written(tmp_path / f"from_{name}") == sorted(text.strip() for text in documents)


def test_a_failure_says_that_the_work_can_be_resumed(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: Command,
    succeeds: Command,
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as broken:
        broken.setattr(shards, "write_index", full)
        assert main(["shards", str(source), str(out), "--text-key", "body", "--processes", "1"]) == 1
    said = capsys.readouterr().err
    assert f"the finished part is in {tmp_path / '.out.work'}: start the same command again to resume" in said
    assert "maskloom shards: No space left on device" in said
    assert "seed: 0 then, 5 here" in fails("shards", source, out, "--text-key", "body", "--seed", 5)
    succeeds("shards", source, out, "--text-key", "body", "--processes", 1)
    assert load_index(out)
    assert not (tmp_path / ".out.work").exists()


def test_names_with_a_colon_are_paths(
    source: Path, tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, succeeds: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--text-key", "body", "--processes", 1)
    assert "a:b: " in succeeds("shards", source, "a:b", *options)
    succeeds("shards", "a:b", "./c:d", "--tokenizer", tokenizer_dir, "--processes", 1)
    assert load_index("./c:d").digest == load_index("./a:b").digest
    (tmp_path / "e:f.jsonl").write_bytes(source.read_bytes())
    succeeds("shards", "e:f.jsonl", "g", *options, "--tokenizer", tokenizer_dir)
    assert load_index("g").digest == load_index("./a:b").digest
    assert not list(tmp_path.glob(".*.work"))


def test_a_tokenizer_goes_with_every_input(
    documents: list[str], tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, succeeds: Command
) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    datasets.Dataset.from_dict({"text": documents}).to_parquet(tmp_path / "in" / "train.parquet")
    options = ("--tokenizer", tokenizer_dir, "--processes", 1)
    succeeds("shards", f"hf:{tmp_path / 'in'}:train", tmp_path / "tokens", *options)
    assert load_index(tmp_path / "tokens").tokenizer_fingerprint
    (tmp_path / "c.py").write_text('"""' + "This is the text of it, and it is as long as it is. " * 9 + '"""')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    succeeds("shards", "documentation:", tmp_path / "docs", *options, "--val-fraction", 0)
    assert load_index(tmp_path / "docs").header["documents"] == 1


def test_out_is_a_folder_on_this_machine(source: Path, tmp_path: Path, succeeds: Command) -> None:
    options = ("--text-key", "body", "--processes", 1)
    succeeds("shards", source, f"file://{tmp_path}/out", *options)
    assert load_index(tmp_path / "out")
    with pytest.raises(SystemExit, match="2"):
        succeeds("shards", source, "s3://bucket/out", *options)


def test_a_part_of_a_corpus_that_is_complete_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeeds: Command, fails: Command
) -> None:
    out, options = tmp_path / "out", ("--text-key", "body", "--processes", 1)
    with monkeypatch.context() as broken:
        broken.setattr(shards, "remove_finished", lambda out: False)
        succeeds("shards", source, out, *options, "--part", "1/1")
        succeeds("index", "--merge", out)
    assert (tmp_path / ".out.work").exists()
    said = succeeds("shards", source, out, *options, "--part", "1/1", "--wait")
    assert f"{out} is complete: another process finished it" in said
    assert not (tmp_path / ".out.work").exists()
    assert "exists: the last argument names the folder to write" in fails(
        "shards", source, out, *options, "--part", "1/1"
    )


def test_waiting_is_for_parts(source: Path, tmp_path: Path, fails: Command) -> None:
    assert "--wait is for --part" in fails("shards", source, tmp_path / "out", "--wait")


def test_a_folder_that_exists_is_refused(source: Path, tmp_path: Path, fails: Command) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    assert f"{out} exists" in fails("shards", source, out)
    assert not list(out.iterdir())


def test_bad_input_is_named_and_leaves_nothing(tmp_path: Path, fails: Command) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text('{"text": "good"}\n{"text": 3}\n')
    message = fails("shards", source, tmp_path / "out", "--processes", 1)
    assert str(source) in message
    assert "'text' holds int, not text" in message
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


def test_an_input_that_is_missing_is_named(tmp_path: Path, fails: Command) -> None:
    assert "no file or folder" in fails("shards", tmp_path / "absent.txt", tmp_path / "out")


@pytest.mark.parametrize(
    "option",
    [
        ("--val-fraction", "1"),
        ("--val-fraction", "x"),
        ("--shard-bytes", "many"),
        ("--processes", "0"),
        ("--part", "0/3"),
        ("--part", "4/3"),
        ("--part", "1"),
        ("--part", "a/b"),
    ],
)
def test_values_out_of_range_are_wrong_usage(
    option: tuple[str, str], source: Path, tmp_path: Path, succeeds: Command
) -> None:
    with pytest.raises(SystemExit, match="2"):
        succeeds("shards", source, tmp_path / "out", *option)


def test_documents_are_taken_out_and_it_is_proved(
    corpus_dir: Path, documents: list[str], tokenizer_dir: Path, tmp_path: Path, succeeds: Command, fails: Command
) -> None:
    person, new, file = documents[::100], tmp_path / "new", tmp_path / "person.jsonl"
    file.write_text("".join(json.dumps({"note": text}) + "\n" for text in person))
    found = fails("index", "--check", corpus_dir, "--without", file, "--text-key", "note", "--processes", 1)
    assert f"{len(person)} of {len(person)} documents, or parts of them, are in {corpus_dir}" in found
    printed = succeeds("shards", corpus_dir, new, "--without", file, "--text-key", "note", "--processes", 1)
    assert f"{len(documents)} documents before, {len(person)} taken out" in printed
    assert written(new) == sorted(text.strip() for text in documents if text not in person)
    proved = succeeds("index", "--check", new, "--without", file, "--text-key", "note", "--processes", 1)
    assert f"none of the {len(person)} documents is in {new}: all of its {len(documents) - len(person)}" in proved
    missing = fails("shards", new, tmp_path / "again", "--without", file, "--text-key", "note", "--processes", 1)
    assert f"{len(person)} of {len(person)} documents are not in {new}: {file}, the line at byte 0" in missing
    assert "nothing was written" in succeeds(
        "shards", new, tmp_path / "again", "--without", file, "--text-key", "note", "--missing-ok", "--processes", 1
    )
    assert not (tmp_path / "again").exists()
    tokens = tmp_path / "tokens"
    succeeds("shards", new, tokens, "--tokenizer", tokenizer_dir, "--processes", 1)
    assert "name the text shards" in fails("index", "--check", tokens, "--without", file, "--text-key", "note")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--missing-ok"], "--missing-ok is for --without"),
        (["--without", "LIST", "--tokenizer", "x"], "leave out --tokenizer. Token shards are made of the new"),
        (["--without", "LIST", "--part", "1/2"], "leave out --part"),
        (["--without", "LIST", "--text-key", "content"], "--text-key"),
        (["--without", "nowhere.jsonl"], "no file or folder nowhere.jsonl"),
    ],
)
def test_what_cannot_be_taken_out(
    arguments: list[str], message: str, corpus_dir: Path, tmp_path: Path, fails: Command
) -> None:
    (tmp_path / "list.jsonl").write_text('{"text": "one"}\n')
    given = [str(tmp_path / "list.jsonl") if word == "LIST" else word for word in arguments]
    assert message in fails("shards", corpus_dir, tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_documents_are_taken_out_of_a_corpus_only(source: Path, tmp_path: Path, fails: Command) -> None:
    assert f"{source} is not one" in fails("shards", source, tmp_path / "out", "--without", source)
    assert "--without is for --check" in fails("index", source, "--without", source)
