"""The folder that TensorBoard looks into: which runs it has, and under which names."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.runs import BOARD
from maskloom.viewing.links import Links, names_of


def make_run(folder: Path, content: bytes = b"train/loss") -> Path:
    """What a run has at its beginning."""
    (folder / BOARD / "held-out").mkdir(parents=True)
    (folder / BOARD / "events.out.tfevents.1.host").write_bytes(content)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss_mean": 2.5}\n')
    return folder


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ({"/a/one": 1, "/b/two": 1}, ["one", "two"]),
        ({"/a/x/run": 1, "/a/y/run": 1}, ["x/run", "y/run"]),
        ({"/a/x/run": 1, "/b/x/run": 1, "/c/run": 1}, ["a/x/run", "b/x/run", "c/run"]),
        ({"/runs/lr/1": 2, "/runs/lr/2": 2}, ["lr/1", "lr/2"]),
        ({"/a/run": 1, "/b/run/inner": 2}, ["a/run", "b/run/inner"]),  # a link cannot hold another
        ({"/a": 1, "/a/b": 2}, ["a", "a-b"]),  # has no more parts
    ],
)
def test_names_are_as_short_as_tells_runs_apart(runs: dict[str, int], names: list[str]) -> None:
    assert list(names_of({Path(run): least for run, least in runs.items()}).values()) == names


def test_a_later_run_leaves_the_names_of_others_alone() -> None:
    assert names_of({Path("/b/run"): 1}, ["run"]) == {Path("/b/run"): "b/run"}


def test_a_folder_stands_for_its_runs_and_new_ones_appear(tmp_path: Path) -> None:
    first = make_run(tmp_path / "runs" / "first")
    with Links([tmp_path / "runs", first / BOARD]) as links:
        assert links.refresh() == ["first"], "named twice, it is shown once"
        assert (links.folder / "first").readlink() == first / BOARD
        make_run(tmp_path / "runs" / "sweep" / "lr-1")
        make_run(tmp_path / "runs" / ".hidden")
        (tmp_path / "runs" / "early").mkdir()
        (tmp_path / "runs" / "early" / "status.json").write_text("{}")  # has logged nothing yet
        assert links.refresh() == ["early", "sweep/lr-1"]
        assert not (links.folder / "early").exists()
        make_run(tmp_path / "runs" / "early")
        assert links.refresh() == []
        assert (links.folder / "early").is_symlink()
        folder = links.folder
    assert not folder.exists()
    assert (first / BOARD).is_dir(), "the links went, not the runs"


def test_other_programs_event_files_are_shown_too(tmp_path: Path) -> None:
    make_run(tmp_path / "trainer")
    with Links([tmp_path / "trainer" / BOARD / "held-out" / ".."]) as links:
        assert links.refresh() == ["trainer"]
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "events.out.tfevents.1.host").touch()
    with Links([plain]) as links:
        assert links.refresh() == ["plain"]
        assert (links.folder / "plain").readlink() == plain


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        Links([tmp_path])
    with pytest.raises(UserError, match="no run directory"):
        Links([make_run(tmp_path / "run"), tmp_path / "none"])
