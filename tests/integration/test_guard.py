"""Steps that are not taken, and runs that go back, on real ranks.

What spoils a step here belongs to its rows, as in a real run: the loss or the gradients of chosen rows of one lane, on the one
rank that reads it. Which rows, is told by where the lane stands after them.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskloom.config_file import load_config
from maskloom.data.cursors import LaneCursors, first_cursors
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.stream import skip_steps
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.train.checkpoint import read_state, saved_at
from tests.architectures import tiny
from tests.cluster.spoiled import InfiniteGradient
from tests.conftest import plan_for

from .conftest import batches_of, final_weights, lines, losses, note_rows, train_in_ranks

LANE = 4  # of six: the second of two ranks reads it
Spoils = dict[LaneCursors, str]


SPOILED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "loss": lambda loss: loss * torch.nan,
    "spike": lambda loss: loss * 1000,
}


def spoil(spoils: Spoils, batches: str, kill_at: int = 0, kill_before_writing: bool = False) -> None:
    """Patch this process: what `spoils` says becomes of the steps that leave LANE there. Each rank lists the rows that it was
    given in files that begin with `batches`, and kills itself at step `kill_at` once the run has gone back."""
    from maskloom.models.masked_lm import MaskedLM, PackedLayer, layers_of
    from maskloom.train import loop, recovery

    now: dict[str, Any] = {"kind": ""}
    old_forward, old_step, old_back = MaskedLM.forward, loop.train_step, loop.roll_back

    old_layer = PackedLayer.forward

    def forward(self: Any, *arguments: Any) -> Any:
        now["first layer"] = layers_of(self)[0]
        loss, hits = old_forward(self, *arguments)
        return (SPOILED[now["kind"]](loss) if now["kind"] in SPOILED and self.training else loss), hits

    def layer(self: Any, *arguments: Any) -> Any:
        """The gradients of the first layer and the embeddings are not finite, those behind it are."""
        output = old_layer(self, *arguments)
        is_spoiled = now["kind"] == "gradient" and self.training and self is now.pop("first layer", None)
        return InfiniteGradient.apply(output) if is_spoiled else output

    def train_step(batch: Any, trainer: Any, engine: Any) -> Any:
        if kill_at and batch.number + 1 == kill_at and trainer.passed_over:
            os.kill(os.getpid(), signal.SIGKILL)
        now["kind"] = spoils.get(batch.cursors.get(LANE), "")
        note_rows(batches, batch, trainer)
        before, bad_steps = snapshot(engine.deepspeed), trainer.guard.bad_steps
        result = old_step(batch, trainer, engine)
        assert (result.refusal is not None) == (trainer.guard.bad_steps > bad_steps)
        if result.refusal or not engine.deepspeed.was_step_applied():
            after = snapshot(engine.deepspeed)
            if not result.refusal:  # fp16's own overflow
                before.pop("scaler"), after.pop("scaler")
            assert before.keys() == after.keys(), before.keys() ^ after.keys()
            for name, value in before.items():
                same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
                assert same, f"{name} changed in a step that was not taken"
        return result

    def roll_back(*arguments: Any) -> None:
        before_bytes = tensor_bytes()
        old_back(*arguments)
        assert tensor_bytes() < 1.5 * before_bytes, "the engine that was left holds its memory"

    def write_intervals(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    PackedLayer.forward = layer
    MaskedLM.forward, loop.train_step, loop.roll_back = forward, train_step, roll_back
    if kill_before_writing:
        recovery.write_intervals = write_intervals


def snapshot(engine: Any) -> dict[str, Any]:
    """Copies of what an optimizer step changes: weights, their copies in fp32, moments, counts, the loss scale."""
    from maskloom.train.engine.reshape import own_part

    found: dict[str, Any] = {name: own_part(part).clone() for name, part in engine.module.named_parameters()}
    optimizer = engine.basic_optimizer
    for each in (optimizer, getattr(optimizer, "aux_optimizer", None)):
        # Not by `param_groups`: ZeRO-3 puts a part there for the time of its update only.
        for number, (parameter, state) in enumerate(each.state.items() if each else ()):
            name = f"{type(each).__name__} {number}"
            found[name] = parameter.detach().clone()
            for key, value in state.items():
                found[f"{name} {key}"] = value.clone() if isinstance(value, torch.Tensor) else value
    found["scaler"] = dict(vars(getattr(engine.optimizer, "loss_scaler", gc.callbacks.__class__)))
    return found


def tensor_bytes() -> int:
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    return sum({id(part): part.nbytes() for part in (item.untyped_storage() for item in tensors)}.values())


def plan_of(config: Path) -> DataPlan:
    loaded = load_config(config)
    return plan_for(loaded, open_corpora(loaded.data), load_tokenizer(loaded.tokenizer))


def spoils_of(config: Path, kinds: dict[int, str]) -> Spoils:
    """What becomes of the rows that a run that never goes back reads in these steps, which count from 1."""
    plan = plan_of(config)
    start = first_cursors(plan.lanes, len(plan.corpora))
    return {skip_steps(plan, start, 0, step)[LANE]: kind for step, kind in kinds.items()}


MUON = {"name": "muon", "lr": 1e-3, "warmup_steps": 2, "gradient_clipping": 0.0}
LAMB = {"name": "lamb", "lr": 1e-3, "warmup_steps": 2}
# Stage, precision, optimizer, rows of a micro-batch, architecture
ENGINES: list[tuple[int, str, dict, int, str]] = [
    (0, "fp32", {}, 4, "bert"),
    (0, "bf16", {}, 12, "bert"),
    (1, "fp32", {}, 4, "bert"),
    (1, "bf16", {}, 12, "bert"),
    (1, "bf16", {}, 4, "bert"),  # DeepSpeed's BF16_Optimizer
    (1, "fp16", {}, 4, "bert"),
    (2, "bf16", {}, 4, "bert"),
    (3, "fp32", {}, 4, "bert"),
    (3, "fp16", {}, 4, "bert"),
    (0, "fp32", LAMB, 4, "bert"),
    (1, "bf16", LAMB, 4, "bert"),
    (3, "bf16", LAMB, 4, "bert"),
    (1, "bf16", MUON, 4, "bert"),
    (2, "fp32", MUON, 12, "bert"),
    (3, "bf16", MUON, 4, "bert"),
    (1, "fp16", {}, 4, "roberta"),
    (3, "bf16", LAMB, 4, "roberta"),
    (0, "fp32", LAMB, 4, "modernbert"),
    (1, "bf16", {}, 4, "modernbert"),
    (3, "fp32", MUON, 4, "modernbert"),
]


def test_a_step_that_is_not_taken_changes_nothing(
    run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """A NaN in the loss, a spike, and gradients that are not finite: weights, moments, counts and loss scale stay bit for bit,
    at every stage and precision; and nothing of the step is left in the next one."""
    configs = []
    for number, (stage, precision, optimizer, rows, architecture) in enumerate(ENGINES):
        tree = {
            **run_config,
            "run_dir": str(tmp_path / f"run{number}"),
            "model": tiny(architecture, dropout=0.1),
            "engine": {"zero_stage": stage, "precision": precision},
            "optimizer": optimizer or run_config["optimizer"],
            "phases": [{"steps": 15, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": rows}],
            "guard": {"spike_sigma": 6.0, "window_steps": 8},
            "checkpoint": {"every_steps": 0},
        }
        if precision == "fp16":
            tree["deepspeed"] = {"fp16": {"initial_scale_power": 6, "hysteresis": 1}}
        configs.append(write_config(tree, f"{number}.yaml"))
    spoils = spoils_of(configs[0], {3: "loss", 10: "gradient", 12: "spike", 14: "loss"})
    patch = functools.partial(spoil, spoils, str(tmp_path / "batches"))
    output = train_in_ranks(configs, 2, tmp_path / "output.log", fake_fp16=True, compiles=False, patch=patch)
    for number, (_, precision, *_) in enumerate(ENGINES):
        found = {line["step"]: line for line in lines(tmp_path / f"run{number}")}
        where = f"{ENGINES[number]}\n{output}"
        is_fp16 = precision == "fp16"  # whose gradients may overflow: the scale is lowered, and all is well
        bad_steps = [found[step]["bad_steps"] for step in (2, 3, 10, 12, 14, 15)]
        assert bad_steps == ([0, 1, 1, 2, 3, 3] if is_fp16 else [0, 1, 2, 3, 4, 4]), where
        assert [step for step, line in found.items() if line["loss"] is None] == [3, 14], where
        if is_fp16:
            assert [found[step]["skipped_steps"] for step in (3, 9, 10, 15)] == [0, 0, 1, 1], where
            assert [found[step]["loss_scale"] for step in (3, 9, 10, 15)] == [64, 64, 32, 32], where
    assert "step 3 was not taken: its loss is nan (1 in a row)" in output
    assert "step 10 was not taken: its gradients are not finite" in output
    assert "is a spike, above" in output


@pytest.fixture
def going_back(run_config: dict) -> dict:
    """A run of two ranks that goes back to step 4: the rows of its steps 6 to 8 give NaN."""
    return {
        **run_config,
        "model": {**run_config["model"], "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        "checkpoint": {"every_steps": 4, "keep_last": 9},
    }


def test_a_run_rolls_back_and_skips_the_data_also_when_it_is_killed(
    going_back: dict, write_config: Callable[..., Path], maskloom: Callable[..., Any], tmp_path: Path
) -> None:
    """Killed after it went back, with readers and without: the rest is that of a run that was not, bit for bit."""
    batches, log = tmp_path / "batches", tmp_path / "output.log"
    engines = [{"zero_stage": 0}, {"zero_stage": 1, "precision": "bf16"}, {"zero_stage": 3}]

    def config(kind: str, number: int) -> Path:
        tree = {**going_back, "run_dir": str(tmp_path / f"{kind}{number}"), "engine": engines[number]}
        tree["data"] = {**tree["data"], "workers": int(number == 0)}
        return write_config(tree, f"{kind}{number}.yaml")

    numbers = range(len(engines))
    spoils = spoils_of(config("whole", 0), dict.fromkeys((6, 7, 8), "loss"))
    patch = functools.partial(spoil, spoils, str(batches))
    output = train_in_ranks([config("whole", number) for number in numbers], 2, log, patch=patch)
    assert "rolling back to step 4, and skipping the rows of steps 5 to 8 (48 rows)" in output

    for number in numbers:
        assert -signal.SIGKILL in expect_a_death(config("killed", number), log, functools.partial(patch, kill_at=6))
    train_in_ranks([config("killed", number) for number in numbers], 2, log, patch=patch)

    for number in numbers:
        whole, killed = tmp_path / f"whole{number}", tmp_path / f"killed{number}"
        assert [line["step"] for line in lines(whole)] == list(range(1, 13)), "every step is logged once"
        board = EventAccumulator(str(whole / "tensorboard")).Reload()
        assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 13)), "and shown once"
        restarts = board.Tensors("run/restarts")[-1].tensor_proto.string_val[0].decode()
        said = "rolled back to step 4; the rows of steps 5 to 8 were skipped (48 rows), as `step 8: its loss is nan`"
        assert said in restarts
        assert all(line["loss"] is not None for line in lines(whole))
        assert losses(killed) == losses(whole)
        for name in ("bad_steps", "rollbacks", "tokens_seen"):
            assert [line[name] for line in lines(killed)] == [line[name] for line in lines(whole)], name
        assert [(line["bad_steps"], line["rollbacks"]) for line in lines(whole)] == [(0, 0)] * 4 + [(3, 1)] * 8
        assert batches_of(batches, killed.name) == batches_of(batches, whole.name)
        one, other = final_weights(whole), final_weights(killed)
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())

    whole = tmp_path / "whole0"
    (interval,) = json.loads((whole / "passed_over.json").read_text())
    assert {name: value for name, value in interval.items() if name != "cursors"} == {
        "after_step": 4,
        "rows_of_steps": [5, 8],
        "rows": 48,
        "bad_steps": 3,
        "reason": "step 8: its loss is nan",
    }
    assert [len(read_state(saved_at(whole, step)).passed_over) for step in (4, 8, 12)] == [0, 1, 1]

    # Other world sizes from the checkpoint before; and the same from the beginning, where the interval is known already.
    for number, (size, removed) in enumerate([(1, ("08", "12")), (3, ("08", "12")), (2, ("04", "08", "12"))]):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(whole, copy)
        for step in removed:
            shutil.rmtree(copy / f"checkpoints/step-000000{step}")
        (copy / "status.json").unlink()  # it names a checkpoint
        train_in_ranks(
            [write_config({**going_back, "run_dir": str(copy), "engine": engines[0]})], size, log, patch=patch
        )
        found = batches_of(batches, whole.name) | batches_of(batches, copy.name)
        assert found == batches_of(batches, whole.name), f"{size} ranks"
        assert losses(copy).keys() == losses(whole).keys()
    assert losses(copy) == losses(whole), "from the beginning, at the same world size"

    plain = maskloom("peek", config("whole", 0), "--steps", "8:12", "--digest").stdout
    assert plain != maskloom("peek", config("whole", 0), "--steps", "4:8", "--digest").stdout
    assert maskloom("peek", whole, "--steps", "4:8", "--digest", "--world", "2").stdout == plain
    (whole / "passed_over.json").unlink()
    assert maskloom("peek", whole, "--steps", "4:8", "--digest").stdout == plain, "data.json knows it too"


def test_killed_before_the_interval_is_noted(
    going_back: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """The run meets the same steps again, and goes back again; where it has no checkpoint yet, to its beginning. Rows that
    fail behind the first interval make a second one from the same place."""
    batches, log = tmp_path / "batches", tmp_path / "output.log"
    tree = {**going_back, "checkpoint": {"every_steps": 0}, "guard": {"skips_before_rollback": 2}}
    whole = write_config({**tree, "run_dir": str(tmp_path / "whole")}, "whole.yaml")
    killed = write_config({**tree, "run_dir": str(tmp_path / "killed")}, "killed.yaml")
    patch = functools.partial(spoil, spoils_of(whole, dict.fromkeys((2, 3, 5, 6), "gradient")), str(batches))
    train_in_ranks([whole], 2, log, patch=patch)
    first, second = json.loads((tmp_path / "whole/passed_over.json").read_text())
    assert (first["after_step"], first["rows_of_steps"], first["bad_steps"]) == (0, [1, 3], 2)
    assert (second["after_step"], second["rows_of_steps"], second["bad_steps"]) == (0, [1, 3], 2)
    assert lines(tmp_path / "whole")[-1]["bad_steps"] == 4
    assert lines(tmp_path / "whole")[-1]["rollbacks"] == 2
    # Rank 0 is killed while it writes the note; the other waits for it, until its connection breaks.
    codes = expect_a_death(killed, log, functools.partial(patch, kill_before_writing=True))
    assert -signal.SIGKILL in codes
    assert not (tmp_path / "killed/passed_over.json").exists()
    train_in_ranks([killed], 2, log, patch=patch)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert batches_of(batches, "killed") == batches_of(batches, "whole")


def expect_a_death(config: Path, log: Path, patch: Callable[[], None]) -> list[int]:
    """Exit codes of two ranks, of which some fail."""
    with pytest.raises(AssertionError, match="exit codes") as failure:
        train_in_ranks([config], 2, log, patch=patch)
    return json.loads(str(failure.value).split("exit codes ")[1].split(":\n")[0])


def test_a_run_that_keeps_diverging_ends_and_never_saves_what_is_not_finite(
    run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Weights without bounds: it goes back as often as it may, and the last good checkpoint stays."""
    tree = {**run_config, "guard": {"rollbacks": 1}, "checkpoint": {"every_steps": 2, "keep_last": 2}}
    config = write_config(tree)
    spoils = spoils_of(config, dict.fromkeys(range(4, 13), "loss"))
    output = train_in_ranks(
        [config],
        2,
        tmp_path / "output.log",
        expect=1,
        patch=functools.partial(spoil, spoils, str(tmp_path / "batches")),
    )
    assert output.count("rolling back to step 2") == 1
    assert "the run diverged: step 5 was not taken, as its loss is nan" in output
    assert "was rolled back to step 2 1 time(s) already (guard.rollbacks)" in output
    assert "Traceback" not in output
    run = Path(run_config["run_dir"])
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert [folder.name for folder in (run / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert all(torch.isfinite(weight).all() for weight in final_weights(run).values())
