"""What a checkpoint holds of the data, and what is refused on resuming from it; without an engine."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import Masking
from maskloom.data import order
from maskloom.data.index import Index
from maskloom.data.masking import MaskRule
from maskloom.data.order import VERSIONS, Cursor, first_cursors
from maskloom.data.plan import DataPlan, PhasePlan
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.files import write_atomically
from maskloom.tokenizer import Tokenizer, train_tokenizer
from maskloom.train import checkpoint
from maskloom.train.checkpoint import State, check_fits, damage, fingerprint
from tests.conftest import sentences
from tests.data.reading import corpus_of

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


def refusal(state: State, plan: DataPlan, zero_stage: int = 1, precision: str = "fp32") -> list[str]:
    """The lines that say what does not fit, each `KEY: ...`."""
    with pytest.raises(UserError, match="does not fit this run") as error:
        check_fits(state, plan, zero_stage, precision, HERE)
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
    check_fits(state_of(plan), plan, 1, "fp32", HERE)
    stored = State(**json.loads(json.dumps(asdict(state_of(plan)))))
    check_fits(stored, plan, 1, "fp32", HERE)


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


@pytest.mark.parametrize("part", VERSIONS)
def test_another_version_of_a_part_is_refused_with_the_reason(
    part: str, plan: DataPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of(plan)
    monkeypatch.setitem(order.VERSIONS, part, VERSIONS[part] + 1)
    said, why = refusal(state, plan)
    assert said == f"version of {part}: {VERSIONS[part] - 1} in the checkpoint, {VERSIONS[part]} now"
    assert (
        why == "(this maskloom reads other rows from the same data: go on with the version that wrote the checkpoint)"
    )


def test_everything_that_does_not_fit_is_listed(plan: DataPlan, documents: list[str]) -> None:
    other = replace(plan, lanes=3, tokenizer=train_tokenizer(documents[:50], 100), phases=(PhasePlan(3, 32, 2),))
    lines = refusal(state_of(plan), other, 3, "bf16")
    assert [line.partition(":")[0] for line in lines] == [
        "tokenizer",
        "lanes",
        "engine.zero_stage",
        "engine.precision",
        "steps",
    ]


@pytest.mark.parametrize(
    ("saved", "now", "fits"),
    [(0, 0, True), (1, 2, True), (2, 1, True), (0, 1, False), (3, 2, False), (2, 3, False)],
)
def test_stages_one_and_two_exchange(plan: DataPlan, saved: int, now: int, fits: bool) -> None:
    state = state_of(plan, zero_stage=saved)
    if fits:
        check_fits(state, plan, now, "fp32", HERE)
    else:
        assert refusal(state, plan, now)[0].startswith(f"engine.zero_stage: {saved} in the checkpoint, {now} now")


@pytest.mark.parametrize(("stage", "size", "universal"), [(0, 3, False), (1, 2, False), (1, 3, True), (3, 1, True)])
def test_a_state_that_is_spread_is_converted_for_another_number_of_ranks(
    plan: DataPlan, stage: int, size: int, universal: bool
) -> None:
    assert checkpoint.needs_universal(state_of(plan, zero_stage=stage), World(0, size)) is universal


def saved(run: Path, plan: DataPlan, steps: list[int]) -> list[Path]:
    """Checkpoints without an engine's files."""
    folders = []
    for step in steps:
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_atomically(folder / "data.json", json.dumps(asdict(state_of(plan, step=step))))
        files = {"data.json": checkpoint._digest(folder / "data.json")}
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


def test_where_a_step_is_read_from_is_the_checkpoint_before_it(plan: DataPlan, tmp_path: Path) -> None:
    saved(tmp_path, plan, [4, 8])
    assert checkpoint.resumable_cursors(tmp_path, 3, plan) is None
    for step, begin in ((4, 4), (7, 4), (8, 8), (11, 8)):
        found = checkpoint.resumable_cursors(tmp_path, step, plan)
        assert found == (begin, first_cursors(6, 2))
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoint.resumable_cursors(tmp_path, 8, replace(plan, lanes=3))


def test_a_state_of_another_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps({"step": 3, "cursors": []}))
    with pytest.raises(UserError, match=r"written by another version of maskloom \(step, cursors in its data\.json\)"):
        checkpoint.read_state(tmp_path)
