"""Documents taken out of a corpus: the new one has exactly the others, in order, and nothing of those that went."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskloom.data.index.corpus import Index, held_out_threshold, text_hash
from maskloom.data.index.indexing import check_shard, index_shard, write_index
from maskloom.data.index.loading import load_index
from maskloom.data.writing import removal
from maskloom.data.writing.passes import Options, split_document
from maskloom.data.writing.removal import look_for, missing_of, read_list, warn_of_cuts, without
from maskloom.errors import UserError
from tests.data.index.making import write_tar

from .making import files_of, write_jsonl


class InThisProcess:
    """`Pool` without its processes, which start slowly."""

    def __init__(self, processes: int, *modules: str) -> None: ...

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None: ...

    def map(self, function: Callable[..., object], *arguments: Iterable[object]) -> Iterator[object]:
        return map(function, *arguments)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "Pool", InThisProcess)


def corpus_of(folder: Path, shards: list[list[str]], fraction: float = 0.0) -> Index:
    """Shards of JSON lines in small blocks; with a fraction, documents are held out by their hash."""
    folder.mkdir()
    threshold = held_out_threshold(fraction)
    indexed = []
    for number, texts in enumerate(shards):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        path = write_tar(folder / f"{number}.tar", [{"jsonl": line.encode()} for line in lines])
        indexed.append(index_shard(path, 200, "text", "by_hash" if fraction else "train", threshold))
    return write_index(folder, indexed, text_key="text", block_bytes=200, threshold=threshold)


def texts_of(index: Index) -> list[str]:
    return [text for block in range(index.header["blocks"]) for text in index.texts(block)]


def take_out(index: Index, listed: list[str], folder: Path, **options: int) -> tuple[Index, removal.Removal]:
    wanted = read_list([str(write_jsonl(folder / "list.jsonl", listed))], Options(**options))
    return without(index, folder / "new", wanted, 1, lambda number: None)


TEXTS = st.lists(
    st.lists(st.text(st.sampled_from("ab\n\t\"'\\/\u00e9\u2028\U0001f600{}"), max_size=4), max_size=12), min_size=1
)


@example([["a", "a ", "b"], ["a"]], [0, 0], 0.5)
@settings(max_examples=25, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 30), max_size=6), st.sampled_from([0.0, 0.5]))
def test_all_other_documents_stay_in_order(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]], chosen: list[int], fraction: float
) -> None:
    folder = tmp_path_factory.mktemp("removal")
    names = (f"stays {number}" for number in range(99))
    kept = next(name for name in names if text_hash(name) >= held_out_threshold(0.5))  # for training: one is needed
    before = [kept, *(text for texts in shards for text in texts)]
    old = corpus_of(folder / "old", [[kept], *filter(None, shards)], fraction)
    listed = [before[1:][place] for place in chosen if place < len(before) - 1]
    if not any(text.strip() for text in listed):
        with pytest.raises(UserError, match="no text in"):
            take_out(old, listed, folder)
        return
    gone = {text.strip() for text in listed if text.strip()}
    after = [text for text in before if text.strip() not in gone]
    new, report = take_out(old, [*listed, *listed], folder)
    assert texts_of(new) == after
    assert (report.documents_before, report.documents_after) == (len(before), len(after))
    assert (report.removed, report.listed, report.found) == (len(before) - len(after), len(gone), len(gone))
    for split, of in (("train", ">="), ("validation", "<")):
        held = {text for text in after if (text_hash(text) < held_out_threshold(fraction)) == (of == "<")}
        found = [text for block in range(new.header["blocks"]) for text in new.documents(block, split)]
        assert set(found) == held
    assert [fault for number in range(len(new.shards)) for fault in check_shard(new, number)] == []
    assert look_for(new, read_list([str(folder / "list.jsonl")], Options()), 1, lambda number: None).counts == {}


def test_no_byte_of_a_document_is_left_in_any_file(tmp_path: Path) -> None:
    old = corpus_of(tmp_path / "old", [["Ada Lovelace, born 1815", "another"], ["a third"]])
    take_out(old, [" Ada Lovelace, born 1815\n"], tmp_path)
    assert any(b"Lovelace" in data for data in files_of(tmp_path / "old").values())
    assert not any(b"Lovelace" in data for data in files_of(tmp_path / "new").values())
    assert not list(tmp_path.glob(".new*"))


def test_a_shard_of_these_documents_alone_is_gone(tmp_path: Path) -> None:
    new, _ = take_out(corpus_of(tmp_path / "old", [["gone"], ["stays"]]), ["gone"], tmp_path)
    assert [shard.url for shard in new.shards] == ["train-000001.tar"]
    assert texts_of(load_index(tmp_path / "new")) == ["stays"]


def test_a_long_document_is_found_by_its_pieces(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten"
    pieces = split_document(long, 12)
    assert len(pieces) > 2
    old = corpus_of(tmp_path / "old", [["first", *pieces[:2]], [*pieces[2:], "last"]])
    new, report = take_out(old, [long], tmp_path, longest_document_bytes=12)
    assert texts_of(new) == ["first", "last"]
    assert (report.removed, report.found) == (len(pieces), 1)


def test_a_document_of_which_a_piece_is_missing_is_not_found(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten"
    pieces = split_document(long, 12)
    listed = str(write_jsonl(tmp_path / "list.jsonl", ["first", long]))
    wanted = read_list([listed], Options(longest_document_bytes=12))
    seen = look_for(corpus_of(tmp_path / "old", [["first", *pieces[1:]]]), wanted, 1, lambda number: None)
    (missing,) = missing_of(wanted, seen.counts)
    assert missing.place.startswith(listed)
    assert seen.longest == max(len(text) for text in ["first", *pieces[1:]])


def test_documents_that_may_have_been_cut_otherwise_get_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "one two three four five six seven eight nine ten"
    wanted = read_list([str(write_jsonl(tmp_path / "list.jsonl", ["first", long]))], Options())
    index = corpus_of(tmp_path / "old", [["first", *split_document(long, 12)]])
    warn_of_cuts(wanted, look_for(index, wanted, 1, lambda number: None), Options())
    said = capsys.readouterr().err
    assert "1 of the listed documents" in said and "--max-document-bytes" in said and "one two" not in said
    longer = corpus_of(tmp_path / "longer", [["x" * len(long)]])  # nothing as short as the list was cut
    warn_of_cuts(wanted, look_for(longer, wanted, 1, lambda number: None), Options())
    assert capsys.readouterr().err == ""


def test_the_digest_of_a_list_does_not_depend_on_its_order(tmp_path: Path) -> None:
    old = corpus_of(tmp_path / "old", [["a", "b", "c"]])
    digests = []
    for name, listed in (("one", ["a", "b"]), ("other", ["b", "a", "a"]), ("less", ["a"])):
        (tmp_path / name).mkdir()
        digests.append(take_out(old, listed, tmp_path / name)[1].list_sha256)
    assert digests[0] == digests[1] != digests[2]


def test_if_nothing_is_left_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none would be left"):
        take_out(corpus_of(tmp_path / "old", [["a"], ["b"]]), ["a", "b"], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.jsonl", "old"]
