"""`MaskedStream`: the batches of a run for other trainers, its state, and what it refuses."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import DataLoaderDispatcher, IterableDatasetShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from maskloom import MaskedStream, cli, masked_stream
from maskloom.data.forms import FORMS
from maskloom.data.index.loading import load_index
from maskloom.data.rows import Rows
from maskloom.data.stream_state import join
from maskloom.errors import DataFault, UserError
from maskloom.tokenizers.base import Tokenizer

from .data.corpora import flip

SETTINGS: dict[str, Any] = {"seq_len": 32, "global_batch_rows": 12, "seed": 3, "lanes": 6}
"""Those of the fixture `run_config`."""
STEPS = 6


@pytest.fixture(autouse=True)
def rows_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form of the tests: the rows themselves, which have a digest."""
    monkeypatch.setitem(FORMS, "rows", lambda rows, *_: {"rows": rows})


@pytest.fixture(scope="module")
def stream_of(corpus_dir: Path, tokenizer: Tokenizer) -> Callable[..., MaskedStream]:
    def make(**more: Any) -> MaskedStream:
        return MaskedStream(corpus_dir, tokenizer, **{**SETTINGS, "form": "rows", **more})

    return make


def take(streams: Sequence[MaskedStream], count: int) -> list[str]:
    """The digests of the next global batches: the rows of all ranks."""
    found = []
    for _, *parts in zip(range(count), *streams, strict=False):
        digest = hashlib.sha256()
        Rows.concatenate([part["rows"] for part in parts]).update(digest)
        found.append(digest.hexdigest())
    return found


@pytest.fixture(scope="module")
def whole(corpus_dir: Path, tokenizer: Tokenizer) -> list[str]:
    """The digests of the first steps."""
    FORMS["rows"] = lambda rows, *_: {"rows": rows}
    try:
        return take([MaskedStream(corpus_dir, tokenizer, **SETTINGS, form="rows")], STEPS)  # type: ignore[arg-type]
    finally:
        del FORMS["rows"]


def test_the_batches_are_those_of_maskloom_train(
    run_config: dict, write_config: Any, stream_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["peek", str(write_config(run_config)), "--steps", "0:3", "--digest"]) == 0
    digest = hashlib.sha256()
    for _, item in zip(range(3), stream_of(), strict=False):
        item["rows"].update(digest)
    assert capsys.readouterr().out.split() == [digest.hexdigest()]


@settings(max_examples=8, deadline=None)
@given(before=st.integers(1, 4), after=st.integers(1, 6), stop=st.integers(0, STEPS), goes_through_json=st.booleans())
def test_stopped_anywhere_and_resumed_on_any_number_of_ranks(
    before: int, after: int, stop: int, goes_through_json: bool, stream_of: Any, whole: list[str]
) -> None:
    streams = [stream_of(rank=rank, world_size=before) for rank in range(before)]
    assert take(streams, stop) == whole[:stop]
    states = [stream.state_dict() for stream in streams]
    resumed = [stream_of(rank=rank, world_size=after) for rank in range(after)]
    for stream in resumed:
        stream.load_state_dict(json.loads(json.dumps(states)) if goes_through_json else states)
        assert stream.step == stop
    assert take(resumed, STEPS - stop) == whole[stop:]
    assert join([stream.state_dict() for stream in resumed])["step"] == STEPS


def test_lanes_that_no_state_knows_are_read_again(
    stream_of: Any, whole: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    streams = [stream_of(rank=rank, world_size=2) for rank in range(2)]
    take(streams, 4)
    alone = stream_of()
    alone.load_state_dict(streams[0].state_dict())
    assert "3 of the 6 lanes of rank 0 are not in the given state" in capsys.readouterr().err
    assert take([alone], 2) == whole[4:6]


def test_all_ranks_gather_one_state(stream_of: Any, whole: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [stream_of(rank=rank, world_size=3) for rank in range(3)]
    with pytest.raises(UserError, match=r"3 ranks of this stream are not those of torch\.distributed"):
        streams[0].gather_state_dict()
    take(streams, 2)
    with monkeypatch.context() as within:
        within.setattr(torch.distributed, "is_initialized", lambda: True)
        within.setattr(torch.distributed, "get_world_size", lambda: 3)
        within.setattr(masked_stream, "gather_objects", lambda *_: [stream.state_dict() for stream in streams])
        gathered = [stream.gather_state_dict() for stream in streams]
    assert gathered[0] == gathered[1] == gathered[2]
    alone = stream_of(rank=0, world_size=1)
    alone.load_state_dict(gathered[0])
    assert take([alone], 2) == whole[2:4]
    assert alone.gather_state_dict() == alone.state_dict()


def test_what_was_read_ahead_does_not_count(stream_of: Any, whole: list[str]) -> None:
    stream = stream_of(workers=2, steps=STEPS)
    assert take([stream], 2) == whole[:2]
    state = stream.state_dict()
    assert state["step"] == 2
    stream.close()
    again = stream_of()
    again.load_state_dict(state)
    assert take([again], 1) == whole[2:3]
    loader = iter(stream)  # one that takes two batches ahead
    next(loader), next(loader), next(loader)
    assert stream.step == 5
    again.load_state_dict(stream.state_dict(step=3))
    assert take([again], 1) == whole[3:4]
    with pytest.raises(UserError, match="step 6: this stream knows its states of steps 0 to 5 only"):
        stream.state_dict(step=6)
    next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    assert len(stream) == STEPS


def test_iterating_again_continues(stream_of: Any, whole: list[str]) -> None:
    stream = stream_of()
    first = iter(stream)
    next(first)
    assert take([stream], 1) == whole[1:2]
    with pytest.raises(UserError, match="Use the newest iterator"):
        next(first)
    with pytest.raises(TypeError, match="has no end"):
        len(stream)
    assert bool(stream)


def test_the_callers_generator_is_left_alone(stream_of: Any) -> None:
    """Or a run that resumes would have other dropout than one that did not stop."""
    before = torch.get_rng_state()
    take([stream_of(), stream_of(workers=1)], 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_length_begins_a_phase_of_a_run(
    run_config: dict, write_config: Any, stream_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    phase = run_config["phases"][0]
    run_config["phases"] = [{**phase, "steps": 3}, {**phase, "steps": 3, "seq_len": 64, "global_batch_rows": 6}]
    assert cli.main(["peek", str(write_config(run_config)), "--steps", "3:6", "--digest"]) == 0
    short, long = stream_of(), stream_of(seq_len=64, global_batch_rows=6)
    take([short], 3)
    long.load_state_dict(short.state_dict())
    last = stream_of(seq_len=64, global_batch_rows=6)
    digest = hashlib.sha256()
    next(iter(long))["rows"].update(digest)
    last.load_state_dict(long.state_dict())
    for _, item in zip(range(2), last, strict=False):
        item["rows"].update(digest)
    assert capsys.readouterr().out.split() == [digest.hexdigest()]
    assert [phase["steps"] for phase in last.state_dict()["phases"]] == [3, 3]


def test_smaller_items_hold_the_rows_of_a_large_one(stream_of: Any) -> None:
    """So gradients can be accumulated."""
    large = next(iter(stream_of()))["rows"]
    small = [item["rows"] for _, item in zip(range(2), stream_of(global_batch_rows=6), strict=False)]
    for name in ("input_ids", "chosen"):
        expected = sorted(row.tobytes() for row in getattr(large, name))
        assert sorted(row.tobytes() for row in getattr(Rows.concatenate(small), name)) == expected


def test_lanes_come_with_the_state(stream_of: Any, whole: list[str]) -> None:
    stream = stream_of()
    take([stream], 1)
    other = stream_of(lanes=None)
    assert other.lanes != stream.lanes
    other.load_state_dict(stream.state_dict())
    assert other.lanes == stream.lanes
    assert take([other], 1) == whole[1:2]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"form": []}, "form=.. is not a form"),
    ({"form": "flat"}, "form='flat' is not a form of batches: choose one of packed, padded"),
    ({"seq_len": 1 << 21}, "seq_len = 2097152: .*1048576"),
    ({"seq_len": "long"}, "seq_len"),
    ({"global_batch_rows": 0}, "global_batch_rows"),
    ({"global_batch_rows": 9}, "global_batch_rows 9"),
    ({"lanes": 4, "rank": 4, "world_size": 5}, "5 ranks are more than the 4 lanes.*or set lanes"),
    ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2: ranks are whole numbers from 0"),
    ({"rank": -1, "world_size": 2}, "rank=-1"),
    ({"rank": 1}, "rank=1 and world_size=None: give both, or neither"),
    ({"workers": -1}, "workers"),
    ({"steps": 0}, "steps"),
    ({"seed": -1}, "seed"),
    ({"masking": {"rat": 0.2}}, "rat.*rate"),
    ({"masking": {"unit": "word"}}, "whole_word"),
    ({"masking": 0.3}, "masking"),
    ({"masking": {"final_rate": 0.1}}, "set steps too"),
    ({"masking": {"rate": 0.01}}, "predicts no token"),
    ({"form": "padded", "position_ids_start": 2}, "is for form='packed'"),
    ({"position_ids_start": -2}, "is not a position"),
    ({"storage": {"cashe": "x"}}, "cashe.*cache"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_wrong_arguments(wrong: dict[str, Any], message: str, stream_of: Any) -> None:
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        stream_of(**wrong)
    assert "phases." not in str(caught.value) and "data." not in str(caught.value)


def test_whole_numbers_may_be_numpys_or_end_in_a_zero(stream_of: Any, whole: list[str]) -> None:
    one = np.int64(1)
    stream = stream_of(
        seq_len=np.int64(32), lanes=6.0, steps=2.0, rank=0 * one, world_size=one, position_ids_start=0 * one
    )
    assert len(stream) == 2
    assert take([stream], 3) == whole[:2]
    json.dumps(stream.state_dict())


def test_a_copy_reads_for_itself(stream_of: Any, whole: list[str]) -> None:
    stream = stream_of()
    batches = iter(stream)
    next(batches)
    for copied in (copy.copy(stream), copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert take([copied], 2) == whole[1:3]
    assert stream.step == 1 and take([stream], 1) == whole[1:2]
    next(batches := iter(stream))
    copied = copy.copy(stream)
    take([copied], 1)
    next(batches)
    assert stream.state_dict() == copied.state_dict()


def test_variables_of_callers_are_not_kept_alive(stream_of: Any) -> None:
    class Large: ...

    large = Large()
    seen = weakref.ref(large)
    iter(stream_of())
    del large
    assert seen() is None


def test_wrong_corpora_and_tokenizers(corpus_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for corpus, message in (
        (tmp_path, "index.json"),
        (7, "corpus: .*neither a folder or URL nor a list"),
        ([corpus_dir, corpus_dir], "twice"),
        ([{"path": str(corpus_dir), "wait": 1}], "wait.*weight"),
    ):
        with pytest.raises(UserError, match=f"(?s){message}"):
            MaskedStream(corpus, tokenizer, seq_len=32, global_batch_rows=12)  # type: ignore[arg-type]
    for wrong, message in ((None, "tokenizer is a NoneType"), (tmp_path / "none", "no tokenizer")):
        with pytest.raises(UserError, match=message):
            MaskedStream(corpus_dir, wrong, seq_len=32, global_batch_rows=12)  # type: ignore[arg-type]
    stream = MaskedStream([{"path": corpus_dir, "weight": 2}], tokenizer, seq_len=32, global_batch_rows=12)
    assert next(iter(stream))["input_ids"].dtype == torch.int64


def test_states_that_do_not_fit(stream_of: Any) -> None:
    stream = stream_of()
    take([stream], 2)
    state = stream.state_dict()
    other = {**state, "identity": {**state["identity"], "corpus 0": "0" * 64}}
    for saved, more, message in (
        (state, {"seed": 4}, "seed: 3 in the state, 4 now"),
        (other, {}, "corpus 0: 0000"),
        (state, {"lanes": 3}, "lanes: 6 in the state, 3 now"),
        (state, {"lanes": None, "global_batch_rows": 10}, "global_batch_rows 10 is not a multiple of the 6 lanes"),
        (state, {"lanes": None, "rank": 6, "world_size": 12, "global_batch_rows": 12}, "12 ranks are more than the"),
        (state, {"steps": 1}, "steps=1: the state has 2 done already"),
        ({**state, "format": 9}, {}, "not the state of a MaskedStream"),
        ({**state, "step": 3}, {}, "damaged"),
        ({**state, "phases": "none"}, {}, "damaged"),
        ({**state, "cursors": {"0": [[-1]]}}, {}, "damaged"),
        ({**state, "cursors": {"0": []}}, {}, "damaged"),
        ({**state, "cursors": {"0": [[0, [0, 2]]]}}, {}, "damaged"),
        ([state, {**state, "step": 3}], {}, r"not of the same moment: they differ in step \(2 and 3\)"),
        ("state", {}, "a str is not a state"),
        ([], {}, "a list is not a state"),
        ([7], {}, "a int is not a state"),
    ):
        with pytest.raises(UserError, match=message):
            stream_of(**more).load_state_dict(saved)
    with pytest.raises(UserError, match="seed"):
        stream.load_state_dict({**state, "identity": {**state["identity"], "seed": 5}})
    assert stream.state_dict() == state


def test_loaders_that_would_change_batches_are_refused(stream_of: Any) -> None:
    stream = stream_of(form="packed")
    for loader, message in (
        (DataLoader(stream, batch_size=None, num_workers=1), r"MaskedStream\(\.\.\., workers=N\)"),
        (DataLoader(stream), r"use DataLoader\(stream, batch_size=None\)"),
        (DataLoaderDispatcher(stream, batch_size=None), "cut the batches"),
        (IterableDatasetShard(stream, num_processes=2), "keep one of 2 batches"),
    ):
        with pytest.raises(UserError, match=message):
            next(iter(loader))
    batch = next(iter(DataLoader(stream, batch_size=None)))
    assert batch["input_ids"].shape[0] == 1
    assert stream.step == 1


def test_bad_data_is_an_error_with_its_place(corpus_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    copy = load_index(shutil.copytree(corpus_dir, tmp_path / "copy"))
    for block in copy.train_blocks:
        flip(copy, int(block))
    with pytest.raises(DataFault) as caught:
        next(iter(MaskedStream(tmp_path / "copy", tokenizer, seq_len=32, global_batch_rows=12)))
    assert caught.value.kind == "checksum" and "on_bad_data" not in str(caught.value)


SCRIPT = """
from maskloom import MaskedStream
stream = MaskedStream({corpus!r}, {tokenizer!r}, seq_len=32, global_batch_rows=12, workers=1, steps=1)
{guard}print("STEPS", sum(1 for batch in stream))
"""


def test_scripts_without_a_guard(corpus_dir: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    def script(guard: str) -> str:
        return SCRIPT.format(corpus=str(corpus_dir), tokenizer=str(tokenizer_dir), guard=guard)

    def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], input=given, capture_output=True, text=True, timeout=120)

    file = tmp_path / "script.py"
    file.write_text(script(""))
    unguarded = run(str(file))
    assert unguarded.returncode == 1 and "STEPS" not in unguarded.stdout
    assert f"{file}, line 4: reader processes import this script again" in unguarded.stderr
    assert 'if __name__ == "__main__":' in unguarded.stderr
    file.write_text(script('if __name__ == "__main__": '))
    assert run(str(file)).stdout == "STEPS 1\n"
    from_input = run("-", given=script('if __name__ == "__main__": '))
    assert from_input.returncode == 1 and "save it as a .py file" in from_input.stderr
