"""What a checkpoint holds of the data, and what is refused on resuming from it; without an engine."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import Checkpoint, Masking
from maskloom.data.cursors import Cursor, first_cursors
from maskloom.data.index.corpus import Index
from maskloom.data.masking import MaskRule
from maskloom.data.plan import VERSIONS, DataPlan, PhasePlan
from maskloom.distributed import World
from maskloom.errors import SaveFailed, UserError
from maskloom.files import write_atomically
from maskloom.status import Status
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.training import train_tokenizer
from maskloom.train import checkpoint
from maskloom.train.checkpoint import Saver, State, check_fits, damage, fingerprint
from maskloom.train.checkpoint import save as saving
from maskloom.train.checkpoint.digests import digest
from maskloom.train.checkpoint.fit import is_same_origin, split_origin, stored_tokenizing
from maskloom.train.checkpoint.state import folder_of, saved_folders
from maskloom.train.checkpoint.writing import kept_steps, publish, write_parts
from maskloom.train.engine.writing import EngineFile, copied, tensor_bytes
from maskloom.train.held_out import HeldOut
from maskloom.train.rank.notices import Notices
from maskloom.train.refusal import PassedOver, write_intervals
from tests.conftest import missing, sentences
from tests.data.corpora import corpus_of

SIZES_AS_TEXT = '{"step": 8, "files": {"data.json": {"bytes": "7", "sha256": "ab"}}}'
HERE = Path("RUN/checkpoints/step-00000004")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, ...]:
    rng = random.Random(5)
    return tuple(corpus_of(tmp_path_factory.mktemp("corpus"), [sentences(rng, 9) for _ in range(5)]) for _ in range(3))


@pytest.fixture(scope="module")
def plan(corpora: tuple[Index, ...], tokenizer: Tokenizer) -> DataPlan:
    phases = (PhasePlan(12, 32, 2, (1.0, 2.0)),)
    return DataPlan(corpora[:2], tokenizer, 3, 6, phases, Masking(), MaskRule(0.15))


def state_of(plan: DataPlan, **more: Any) -> State:
    cursors = [[cursor.to_json() for cursor in lane] for lane in first_cursors(plan.lanes, len(plan.corpora))]
    return replace(State(4, 1000, cursors, 0, fingerprint(plan), 2, 1, "fp32"), **more)


def refusal(state: State, plan: DataPlan, precision: str | None = "fp32") -> list[str]:
    """The lines that say what does not fit, each `KEY: ...`."""
    with pytest.raises(UserError, match="does not fit this run") as error:
        check_fits(state, plan, precision, HERE)
    first, *lines, last = str(error.value).split("\n")
    assert first.startswith(str(HERE))
    assert "in another run_dir" in last
    return [line.strip() for line in lines]


reads_of = st.just(()) | st.tuples(st.tuples(st.just(16), st.integers(0, 9)))
cursor_of = st.builds(Cursor, st.integers(0, 2**40), reads_of)
cursors_of = st.lists(st.tuples(cursor_of, cursor_of), max_size=4)


@settings(max_examples=40, deadline=None)
@given(cursors_of)
def test_the_state_survives_json(tmp_path_factory: pytest.TempPathFactory, cursors: list[tuple[Cursor, ...]]) -> None:
    state = State(7, 99, [[cursor.to_json() for cursor in lane] for lane in cursors], 3, {"lanes": 2}, 2, 1, "fp32")
    folder = tmp_path_factory.mktemp("state")
    write_atomically(folder / "data.json", json.dumps(asdict(state)))
    found = checkpoint.read_state(folder)
    assert found == state
    assert found.lane_cursors() == cursors


def test_the_same_plan_fits(plan: DataPlan) -> None:
    check_fits(state_of(plan), plan, "fp32", HERE)
    check_fits(state_of(plan), plan, None, HERE)
    stored = State(**json.loads(json.dumps(asdict(state_of(plan)))))
    check_fits(stored, plan, "fp32", HERE)


def test_the_fingerprint_names_each_corpus_and_each_version(plan: DataPlan, corpora: tuple[Index, ...]) -> None:
    found = fingerprint(plan)
    assert (found["corpus 0"], found["corpus 1"]) == (corpora[0].digest, corpora[1].digest)
    assert {key.removeprefix("version of ") for key in found if key.startswith("version of")} == set(VERSIONS)
    assert found["tokenizer"] == plan.tokenizer.fingerprint
    assert found["lanes"] == 6


@pytest.mark.parametrize(
    ("chosen", "keys"),
    [((1, 0), ["corpus 0", "corpus 1"]), ((0, 2), ["corpus 1"]), ((0,), ["corpus 1"]), ((0, 1, 2), ["corpus 2"])],
)
def test_other_corpora_are_refused_by_their_place(
    plan: DataPlan, corpora: tuple[Index, ...], chosen: tuple[int, ...], keys: list[str]
) -> None:
    other = replace(plan, corpora=tuple(corpora[number] for number in chosen))
    assert [line.partition(":")[0] for line in refusal(state_of(plan), other)] == keys


@pytest.mark.parametrize("part", sorted(VERSIONS.keys() - {"tokenizing"}))
def test_another_version_of_a_part_is_refused_with_the_reason(
    part: str, plan: DataPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of(plan)
    monkeypatch.setitem(VERSIONS, part, VERSIONS[part] + 1)
    said, why = refusal(state, plan)
    assert said == f"version of {part}: {VERSIONS[part] - 1} in the checkpoint, {VERSIONS[part]} now"
    assert (
        why == "(this maskloom reads other rows from the same data: resume with the version that wrote the checkpoint)"
    )


def without_tokenizing(state: State) -> State:
    """As the first version of tokenizing was written."""
    return replace(
        state, fingerprint={key: state.fingerprint[key] for key in state.fingerprint if "tokenizing" not in key}
    )


def test_a_run_keeps_the_version_of_tokenizing_that_it_began_with(plan: DataPlan) -> None:
    first = replace(plan, tokenizer=plan.tokenizer.as_of(1))
    old = without_tokenizing(state_of(first))
    check_fits(old, first, "fp32", HERE)
    check_fits(state_of(first), first, "fp32", HERE)
    for state, other, then, now in ((old, plan, 1, 2), (state_of(plan), first, 2, 1)):
        said, _ = refusal(state, other)
        assert said == f"version of tokenizing: {then} in the checkpoint, {now} now"


def test_the_version_of_tokenizing_is_that_of_the_newest_checkpoint_or_of_the_origin(
    plan: DataPlan, tmp_path: Path
) -> None:
    first = state_of(replace(plan, tokenizer=plan.tokenizer.as_of(1)))
    for name, state in (("old", without_tokenizing(first)), ("first", first), ("new", state_of(plan))):
        folder = folder_of(tmp_path / name, 4)
        folder.mkdir(parents=True)
        (folder / "data.json").write_text(json.dumps(asdict(state)))
    found = {name: stored_tokenizing(tmp_path / name) for name in ("old", "first", "new", "none")}
    assert found == {"old": 1, "first": 1, "new": 2, "none": None}
    assert stored_tokenizing(tmp_path / "none", str(tmp_path / "old")) == 1
    assert stored_tokenizing(tmp_path / "none", f"{tmp_path / 'new'}@4") == 2
    assert stored_tokenizing(tmp_path / "new", str(tmp_path / "old")) == 2  # it has a checkpoint of its own
    for damaged in ('"two"', "null", "[]", "-1"):
        folder = folder_of(tmp_path / "damaged", 4)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.json").write_text(f'{{"fingerprint": {{"version of tokenizing": {damaged}}}}}')
        version = stored_tokenizing(tmp_path / "damaged")
        with pytest.raises(UserError, match="of tokenizing gave other ids"):
            plan.tokenizer.as_of(version or 0)


def test_everything_that_does_not_fit_is_listed(plan: DataPlan, documents: list[str]) -> None:
    other = replace(plan, lanes=3, tokenizer=train_tokenizer(documents[:50], 100), phases=(PhasePlan(3, 32, 2),))
    lines = refusal(state_of(plan), other, "bf16")
    assert [line.partition(":")[0] for line in lines] == ["tokenizer", "lanes", "engine.precision", "steps"]


def saved(run: Path, plan: DataPlan, steps: list[int]) -> list[Path]:
    """Checkpoints without an engine's files."""
    folders = []
    for step in steps:
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_atomically(folder / "data.json", json.dumps(asdict(state_of(plan, step=step))))
        files = {"data.json": digest(folder / "data.json")._asdict()}
        write_atomically(folder / "manifest.json", json.dumps({"step": step, "files": files}))
        folders.append(folder)
    return folders


def test_the_newest_whole_one_is_found(plan: DataPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.find(tmp_path, World()) is None
    four, eight, twelve = saved(tmp_path, plan, [4, 8, 12])
    found = checkpoint.find(tmp_path, World())
    assert found is not None
    assert (found[0], found[1].step) == (twelve, 12)
    (twelve / "data.json").write_text("{}")
    (eight / "manifest.json").unlink()
    found = checkpoint.find(tmp_path, World())
    assert found is not None
    assert found[0] == four
    assert "step-00000012 is damaged: data.json has 2 bytes" in capsys.readouterr().err
    (four / "data.json").write_text("{}")
    with pytest.raises(UserError, match="No good checkpoint is left"):
        checkpoint.find(tmp_path, World())


def test_any_byte_that_changed_is_damage(plan: DataPlan, tmp_path: Path) -> None:
    (folder,) = saved(tmp_path, plan, [4])
    assert damage(folder) is None
    data = (folder / "data.json").read_bytes()
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 1
        (folder / "data.json").write_bytes(changed)
        assert damage(folder) == "the content of data.json is not what was written"
    (folder / "data.json").unlink()
    assert damage(folder) == "data.json is missing"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "its manifest cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "its manifest cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"step": 8, "files": {}}'), "does not list data.json"),
        (lambda folder: shutil.copy(folder.with_name("step-00000004") / "manifest.json", folder), "that of step 4"),
        (lambda folder: os.truncate(folder / "rank0.pt", 100), "rank0.pt has 100 bytes instead of"),
        (lambda folder: (folder / "rank1.pt").unlink(), "rank1.pt is missing"),
        (lambda folder: (folder / "data.json").unlink(), "data.json is missing|data.json cannot be read"),
        (lambda folder: flip(folder / "rank1.pt"), "the content of rank1.pt is not what was written"),
        (lambda folder: flip(folder / "data.json"), "the content of data.json is not what was written"),
        (lambda folder: renamed_in_manifest(folder, "rank1.pt", "../../config.yaml"), "which is not a file name"),
        (lambda folder: renamed_in_manifest(folder, "rank1.pt", ".."), "which is not a file name"),
        (lambda folder: renamed_in_manifest(folder, "rank1.pt", "a\\u0000b"), "which is not a file name"),
        (lambda folder: renamed_in_manifest(folder, "rank1.pt", "\\ud800"), "which is not a file name"),
        (lambda folder: pipe_in_place_of(folder / "rank1.pt"), "rank1.pt is not a file"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "its manifest cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text(SIZES_AS_TEXT), "has no size and digest for 'data.json'"),
        (lambda folder: (folder / "manifest.json").write_text('{"step": Infinity, "files": {}}'), "that of step inf"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 99_999), "its manifest cannot be read"),
        (
            lambda folder: shutil.copy(folder / "rank1.pt", folder / "rank2.pt"),
            "an unexpected file that is not in its manifest",
        ),
    ],
)
def test_a_damaged_newest_one_is_said_and_the_one_before_it_taken(
    harm: Callable[[Path], object], said: str, plan: DataPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 8):
        whole(tmp_path, plan, step)
    newest = tmp_path / "checkpoints/step-00000008"
    harm(newest)
    found = checkpoint.find(tmp_path, World())
    assert found is not None
    assert (found[0].name, found[1].step) == ("step-00000004", 4)
    error = capsys.readouterr().err
    assert "Taking step-00000004" in error
    assert any(part in error for part in said.split("|"))
    assert newest.with_name(".damaged-step-00000008").is_dir()
    assert json.loads((newest.parent / "latest.json").read_text()) == {"name": "step-00000004", "step": 4}
    assert not newest.exists()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def pipe_in_place_of(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def renamed_in_manifest(folder: Path, name: str, to: str) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace(name, to))


def whole(
    run: Path, plan: DataPlan, step: int, settings: Checkpoint | None = None, held_out: dict[str, Any] | None = None
) -> Path:
    """A checkpoint as two ranks write it, of a tensor each."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    partial = folder.with_name(f".partial-{folder.name}")
    partial.mkdir(parents=True)
    for rank in range(2):
        write_parts(partial, [EngineFile(f"rank{rank}.pt", {"w": torch.full((999,), step)}, 3996, True)], rank)
    publish(partial, folder, state_of(plan, step=step, held_out=held_out or {}), settings or Checkpoint())
    return folder


def test_the_newest_and_every_nth_are_kept(plan: DataPlan, tmp_path: Path) -> None:
    settings = Checkpoint(keep_last=2, keep_every_steps=8)
    for step in range(4, 37, 4):
        whole(tmp_path, plan, step, settings)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["latest.json", *(f"step-{step:08d}" for step in (8, 16, 24, 32, 36))]


@pytest.mark.parametrize(
    ("losses", "newest", "kept"),
    [
        ({4: 5.0, 8: 4.0, 12: 4.5, 16: 4.2}, 16, {8, 12, 16}),
        # The best is among the newest, and the one before is kept for a run that resumes from step 12.
        ({4: 5.0, 8: 4.5, 12: 4.6, 16: 4.0}, 16, {8, 12, 16}),
        ({4: 5.0, 8: 4.5, 12: 4.2, 16: 4.0}, 16, {12, 16}),
        ({0: 1.0, 4: 5.0, 8: None, 12: 5.5}, 16, {4, 12, 16}),  # the beginning has no checkpoint
        ({}, 16, {12, 16}),
    ],
)
def test_the_best_of_each_of_the_newest_is_kept(losses: dict[int, float | None], newest: int, kept: set[int]) -> None:
    held_out = HeldOut(64, 0.15, 100)
    for step, loss in losses.items():
        held_out = held_out.with_loss(step, loss)
    steps = list(range(newest, 0, -4))
    assert kept_steps(steps, Checkpoint(keep_best=True), held_out) == kept
    assert kept_steps(steps, Checkpoint(), held_out) == {newest - 4, newest}


def test_the_best_stays_when_others_are_removed(plan: DataPlan, tmp_path: Path) -> None:
    held_out = HeldOut(64, 0.15, 100)
    for step, loss in ((4, 5.0), (8, 4.0), (12, 4.5), (16, 4.2), (20, 4.1)):
        held_out = held_out.with_loss(step, loss)
        whole(tmp_path, plan, step, Checkpoint(keep_best=True), held_out.to_json())
    assert [folder.name for folder in saved_folders(tmp_path)] == ["step-00000020", "step-00000016", "step-00000008"]
    (tmp_path / "config.yaml").touch()
    assert checkpoint.saved_at(tmp_path, "best").name == "step-00000008"
    assert checkpoint.saved_at(tmp_path).name == "step-00000020"
    flip(tmp_path / "checkpoints/step-00000008/rank1.pt")
    with pytest.raises(UserError, match=r"step-00000008 is damaged: the content of rank1\.pt"):
        checkpoint.saved_at(tmp_path, "best")


def test_without_evaluations_there_is_no_best(plan: DataPlan, tmp_path: Path) -> None:
    whole(tmp_path, plan, 4)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"no checkpoint of an evaluated step: set evaluation\.every_steps"):
        checkpoint.saved_at(tmp_path, "best")


def test_a_run_whose_checkpoints_are_out_of_sight_does_not_begin_anew(plan: DataPlan, tmp_path: Path) -> None:
    whole(tmp_path, plan, 4)
    Status("failed", 4, 12, 1, last_good_checkpoint="step-00000004").write(tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    for link in (False, True):
        if link:
            (tmp_path / "checkpoints").symlink_to(tmp_path / "not mounted")
        with pytest.raises(UserError, match=r"status\.json says that step-00000004 was the last good one: see that"):
            checkpoint.find(tmp_path, World())
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    assert checkpoint.find(tmp_path, World()) is not None


def test_a_run_that_went_back_to_its_beginning_begins_anew(plan: DataPlan, tmp_path: Path) -> None:
    Status("running", 4, 12, 1, last_good_checkpoint="step-00000004").write(tmp_path)
    write_intervals(tmp_path, [PassedOver(0, (1, 6), 72, 3, "its loss is nan", [])])
    assert checkpoint.find(tmp_path, World()) is None


def test_a_copy_under_another_name_is_left_alone(plan: DataPlan, tmp_path: Path) -> None:
    first = whole(tmp_path, plan, 4)
    names = ("step-00000004.bak", "step-00000004 (copy)", "step-4", "step-99999999.tar", "step-latest")
    for name in names:
        shutil.copytree(first, first.with_name(name))
    for step in (8, 12, 100_000_000, 100_000_004):
        whole(tmp_path, plan, step, Checkpoint(keep_last=2))
    found = checkpoint.find(tmp_path, World())
    assert found is not None
    assert found[0].name == "step-100000004"
    left = {path.name for path in first.parent.iterdir()}
    assert left == {*names, "latest.json", "step-100000000", "step-100000004"}


def test_the_manifest_says_what_the_checkpoint_is(plan: DataPlan, tmp_path: Path) -> None:
    folder = whole(tmp_path, plan, 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["world_size"], manifest["zero_stage"], manifest["precision"]) == (
        4,
        2,
        1,
        "fp32",
    )
    assert set(manifest["versions"]) == {"maskloom", "deepspeed", "torch"}
    assert (
        set(manifest["files"])
        == {"rank0.pt", "rank1.pt", "data.json"}
        == {path.name for path in folder.iterdir()} - {"manifest.json"}
    )
    latest = json.loads((tmp_path / "checkpoints/latest.json").read_text())
    assert latest == {"name": "step-00000004", "step": 4}


def test_whatever_a_save_or_a_start_is_killed_at_a_whole_checkpoint_is_found(tmp_path: Path) -> None:
    """At each write, flush, rename, removal and new file in turn: see crash/saves.py."""
    compiler = shutil.which("cc") or missing("a C compiler")
    library = tmp_path / "crash.so"
    source = Path(__file__).parent / "crash" / "crash.c"
    subprocess.run([str(compiler), "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    result = subprocess.run(
        [sys.executable, "-m", "tests.train.crash.saves", tmp_path],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    changes = [int(line.rsplit(" ", 2)[1]) for line in result.stdout.splitlines() if line.endswith(" changes")]
    # Of a save: per rank open, write, flush, and the same of its digests with a rename; then data.json and the manifest.
    assert len(changes) == 3
    assert changes[0] > 30 < changes[1]
    assert changes[2] >= 12


class TensorEngine:
    """In place of an engine: what is saved is a tensor."""

    def files(self, folder: Path, may_copy: Callable[[int], bool]) -> list[EngineFile]:
        return [EngineFile("rank0.pt", {"w": torch.ones(1000)}, 4000, may_copy(4000))]


class TestSaver:
    """One rank, without a real engine."""

    @pytest.fixture
    def saver(self, tmp_path: Path) -> Saver:
        return Saver(tmp_path, Checkpoint(), World(), Notices())

    def state(self, plan: DataPlan, step: int) -> State:
        return state_of(plan, step=step, world_size=1)

    def steps_on(self, saver: Saver) -> None:
        """A step of training, as far as the saver is concerned."""
        saver.follow()
        saver.notices.hear(saver.notices.said())

    def test_training_continues_until_all_is_on_the_disk(self, saver: Saver, plan: DataPlan, tmp_path: Path) -> None:
        saver.start(TensorEngine(), self.state(plan, 4))
        deadline = time.monotonic() + 60
        while saver.last_good is None:
            assert time.monotonic() < deadline
            self.steps_on(saver)
        assert saver.last_good == "step-00000004"
        assert damage(tmp_path / "checkpoints/step-00000004") is None
        assert saver.notices.mine["saved"] == saver.notices.mine["not_saved"] == 0

    def test_what_was_said_of_the_save_before_does_not_count(
        self, saver: Saver, plan: DataPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saver.start(TensorEngine(), self.state(plan, 4))
        while not saver.notices.mine["saved"]:
            self.steps_on(saver)
        saver.finish()
        may_write = threading.Event()

        def waits(*arguments: Any) -> None:
            may_write.wait(60)
            write_parts(*arguments)

        monkeypatch.setattr(saving, "write_parts", waits)
        saver.start(TensorEngine(), self.state(plan, 8))
        for _ in range(5):
            self.steps_on(saver)
        assert saver.last_good == "step-00000004"
        may_write.set()
        saver.finish(must_succeed=True)
        assert saver.last_good == "step-00000008"

    def test_a_save_waits_for_the_one_before(self, saver: Saver, plan: DataPlan, tmp_path: Path) -> None:
        for step in (4, 8, 12):
            saver.start(TensorEngine(), self.state(plan, step))
        assert saver.last_good == "step-00000008"
        saver.finish()
        assert saver.last_good == "step-00000012"

    def test_without_room_in_memory_it_is_written_at_once_and_said_once(
        self, saver: Saver, plan: DataPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(saving, "free_memory_bytes", lambda: 3000)
        for step in (4, 8):
            saver.start(TensorEngine(), self.state(plan, step))
            assert saver._part is not None
            assert saver._part.outcome() == ""
        saver.finish(must_succeed=True)
        assert capsys.readouterr().err.count("no room in memory for a copy of the state") == 1

    def test_without_room_on_the_disk_nothing_is_saved_and_the_third_time_ends_the_run(
        self,
        saver: Saver,
        plan: DataPlan,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        saver.start(TensorEngine(), self.state(plan, 4))
        saver.finish()
        monkeypatch.setattr(saving, "free_disk_bytes", lambda folder: 5000)
        for step in (8, 12):
            saver.start(TensorEngine(), self.state(plan, step))
            assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
                "latest.json",
                "step-00000004",
            ]
        error = capsys.readouterr().err
        assert "the checkpoint of step 8 could not be written, and nothing of it is left: it needs 0.02 GB" in error
        assert "The last good one is step-00000004. Free space on the file system of" in error
        with pytest.raises(SaveFailed, match="3 checkpoints in a row could not be written") as failed:
            saver.start(TensorEngine(), self.state(plan, 16))
        assert failed.value.can_retry
        assert "start the same command again" in str(failed.value)

    def test_a_good_one_between_begins_the_count_anew(
        self, saver: Saver, plan: DataPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step in range(4, 40, 4):
            with monkeypatch.context() as patch:
                if step % 3:
                    patch.setattr(saving, "free_disk_bytes", lambda folder: 0)
                saver.start(TensorEngine(), self.state(plan, step))
                saver.finish()
        assert saver.last_good == "step-00000036"

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            ((28, "No space left on device"), "Free space on the file system of"),
            ((13, "Permission denied"), "and all in it can be written"),
            ((30, "Read-only file system"), "and all in it can be written"),
        ],
    )
    def test_the_last_one_has_to_succeed(
        self, error: tuple[int, str], remedy: str, saver: Saver, plan: DataPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*arguments: Any) -> None:
            raise OSError(*error, "optim_states.pt")

        monkeypatch.setattr(saving, "write_parts", fails)
        saver.start(TensorEngine(), self.state(plan, 4))
        expected = rf"the last checkpoint could not be written: rank 0: .*optim_states\.pt.*{remedy}"
        with pytest.raises(SaveFailed, match=expected):
            saver.finish(must_succeed=True)

    @pytest.mark.parametrize("at", ["write_parts", "publish"])
    def test_a_failed_one_leaves_nothing_and_is_heard_of(
        self, at: str, saver: Saver, plan: DataPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = getattr(saving, at)

        def fails(partial: Path, *rest: Any) -> None:
            original(partial, *rest) if at == "write_parts" else None
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(saving, at, fails)
        saver.start(TensorEngine(), self.state(plan, 4))
        deadline = time.monotonic() + 60
        while not saver.failures:
            assert time.monotonic() < deadline
            self.steps_on(saver)
        assert "Input/output error" in saver.failures[0]
        assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_copy_shares_nothing_and_keeps_what_is_shared() -> None:
    flat = torch.arange(12.0)
    weight = torch.nn.Parameter(flat[2:8].view(2, 3))
    content = {"a": flat, "b": [weight, (flat[::2], 7)], "c": {"shape": torch.Size([2, 3])}, "d": torch.tensor(3)}
    copy = copied(content)
    assert tensor_bytes(content) == 12 * 4 + 8
    assert tensor_bytes(copy) == 12 * 4 + 8
    flat.zero_()
    assert copy["a"].tolist() == list(range(12))
    assert copy["b"][0].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert isinstance(copy["b"][0], torch.nn.Parameter)
    copy["a"][2] = 99
    assert copy["b"][0][0, 0] == 99
    assert copy["b"][1][0][1] == 99
    assert type(copy["c"]["shape"]) is torch.Size


def test_an_origin_is_a_run_and_perhaps_a_step() -> None:
    assert split_origin("runs/a@1000") == (Path("runs/a"), 1000)
    assert split_origin("runs/a") == (Path("runs/a"), None)
    assert split_origin("runs/a@best") == (Path("runs/a"), "best")
    assert split_origin("runs/me@home") == (Path("runs/me@home"), None)
    assert split_origin("runs/a@" + "9" * 5000)[1] is None, "more digits than int() takes"
    assert is_same_origin("runs/a@10", None)
    assert is_same_origin("runs/a@10", "runs/a")
    assert is_same_origin("runs/a@10", "runs/a@best")
    assert is_same_origin("runs/a@10", "runs/a@10")
    assert not is_same_origin("runs/a@10", "runs/a@11")
    assert not is_same_origin(None, "runs/a")


def test_where_a_step_is_read_from_is_the_checkpoint_before_it(plan: DataPlan, tmp_path: Path) -> None:
    saved(tmp_path, plan, [4, 8])
    assert checkpoint.resumable_cursors(tmp_path, 3, plan) is None
    for step, begin in ((4, 4), (7, 4), (8, 8), (11, 8)):
        found = checkpoint.resumable_cursors(tmp_path, step, plan)
        assert found == (begin, first_cursors(6, 2))
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoint.resumable_cursors(tmp_path, 8, replace(plan, lanes=3))


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "[" * 99_999])
def test_a_state_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        checkpoint.read_state(tmp_path)


def test_a_state_of_another_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps({"step": 3, "cursors": []}))
    with pytest.raises(UserError, match=r"written by another version of maskloom \(step, cursors in its data\.json\)"):
        checkpoint.read_state(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": "4"},
        {"step": -4},
        {"step": 4.0},
        {"tokens_seen": None},
        {"skipped": 10**30},
        {"world_size": 0},
        {"zero_stage": 4},
        {"zero_stage": [1]},
        {"precision": 32},
        {"fingerprint": []},
        {"cursors": 3},
        {"cursors": [[[]]]},
        {"cursors": [[["7"]]]},
        {"cursors": [[[7, [32, -1]]]]},
        {"cursors": [[[7, [32]]]]},
        {"guard": {"losses": ["2.5"]}},
        {"guard": {"losses": [float("nan")]}},
        {"guard": {"in_a_row": -1}},
        {"guard": []},
        {"passed_over": [{}]},
        {"passed_over": {"a": 1}},
    ],
    ids=str,
)
def test_a_state_with_a_value_that_cannot_be_is_damaged(wrong: dict[str, Any], plan: DataPlan, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(asdict(state_of(plan))))
    assert checkpoint.read_state(tmp_path) == state_of(plan)
    (tmp_path / "data.json").write_text(json.dumps({**asdict(state_of(plan)), **wrong}))
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        checkpoint.read_state(tmp_path)


def test_cursors_of_other_lanes_or_corpora_do_not_fit(plan: DataPlan) -> None:
    for cursors in (state_of(plan).cursors[1:], [lane[:1] for lane in state_of(plan).cursors], []):
        assert refusal(state_of(plan, cursors=cursors), plan) == [
            "cursors: it does not say where each of 6 lanes stands in each of 2 corpora"
        ]
