"""Rolling back: how often, which data is skipped, what stays in the run's folder. And what is not finite: found and explained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskloom.config import Masking
from maskloom.data.cursors import Cursor
from maskloom.data.index.corpus import Index
from maskloom.data.masking import MaskRule
from maskloom.data.plan import DataPlan, Growth, PhasePlan
from maskloom.distributed import World
from maskloom.models.masked_lm import new_model
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.recovery import Rollback, collapsed, count_not_finite, diverged, first_not_finite
from maskloom.train.refusal import PassedOver, read_intervals
from tests.models.test_bert import bucket, make_rows, tiny_config

WAY = Rollback(step=23, in_a_row=3, reason="its loss is nan", to_step=20)
CURSORS = [(Cursor(7, ((32, 4),)),), (Cursor(8, ((32, 5),)),)]


@pytest.fixture
def plan(index: Index, tokenizer: Tokenizer) -> DataPlan:
    """Two lanes; the batch grows until step 22."""
    phases = (PhasePlan(20, 32, 2), PhasePlan(20, 32, 5, growth=Growth(3, 2)))
    return DataPlan((index,), tokenizer, 3, 2, phases, Masking(), MaskRule(0.15))


def interval(after_step: int, bad_steps: int) -> PassedOver:
    return PassedOver(after_step, (after_step + 1, after_step + 9), 12, bad_steps, "its loss is nan", [])


def test_a_run_rolls_back_to_the_same_checkpoint_so_often() -> None:
    assert WAY.times([]) == 0
    assert WAY.times([interval(10, 3), interval(20, 3), interval(20, 4)]) == 2


@pytest.mark.parametrize(
    ("place", "said"),
    [("", "as its loss is nan, nor"), ("rank 1: the loss", "nan (rank 1: the loss is not finite), nor")],
)
def test_a_refusal_says_what_happened(place: str, said: str) -> None:
    message = WAY.refusal(2, place)
    assert said in message
    assert message.startswith("step 23 was not taken")
    assert message.endswith(
        "nor were the 2 before it, and the run was rolled back to step 20 2 time(s) already (guard.rollbacks)"
    )


def test_the_rows_since_the_checkpoint_are_skipped(plan: DataPlan) -> None:
    found = WAY.interval(plan, CURSORS, [], bad_steps=3, saved_bad_steps=0)
    assert (found.after_step, found.rows_of_steps, found.reason) == (20, (21, 23), "step 23: its loss is nan")
    assert found.rows == 2 * (3 + 4 + 5)
    assert [tuple(map(Cursor.from_json, lane)) for lane in found.cursors] == CURSORS


def test_bad_steps_that_are_counted_elsewhere_are_not_counted_again(plan: DataPlan) -> None:
    """By the checkpoint, and by the intervals up to it; those beyond it go with what is skipped."""
    before = [interval(10, 4), interval(20, 8), interval(21, 16)]
    assert WAY.interval(plan, CURSORS, before, bad_steps=3 + 4 + 8 + 16 + 32, saved_bad_steps=32).bad_steps == 3 + 16


def test_what_is_skipped_is_listed_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    intervals = [interval(10, 4), interval(20, 3)]
    WAY.carry_out(tmp_path, intervals, World(1, 2))
    assert read_intervals(tmp_path) == []  # the first rank writes
    WAY.carry_out(tmp_path, intervals, World())
    assert read_intervals(tmp_path) == intervals
    said = capsys.readouterr().err
    assert said.count("rolling back to step 20, and skipping the rows of steps 21 to 23 (12 rows)") == 1


@pytest.fixture
def engine(tokenizer: Tokenizer) -> Any:
    """What of an engine is looked at: a model in fp16, and its loss scale."""
    torch.manual_seed(0)
    model = new_model(tiny_config(tokenizer.vocab_size)).half().train()
    named = model.named_parameters
    return SimpleNamespace(model=model, loss_scale=1.0, parts=named, whole_parameters=lambda: dict(named()))


def test_weights_that_are_no_numbers_are_counted(engine: Any) -> None:
    assert count_not_finite(engine, torch.device("cpu")) == 0
    with torch.no_grad():
        engine.model.bert.embeddings.LayerNorm.weight[:3] = torch.nan
        engine.model.cls.predictions.bias[5] = torch.inf
    assert count_not_finite(engine, torch.device("cpu")) == 4


def test_the_first_micro_batch_that_overflows_tells_where(engine: Any, tokenizer: Tokenizer) -> None:
    buckets = [bucket(make_rows([[32], [10, 20]], tokenizer, seed), tokenizer) for seed in range(3)]
    seeded: list[int] = []
    assert first_not_finite(engine, buckets, seeded.append, 1.0, World()) == ""
    assert seeded == [0, 1, 2]
    engine.loss_scale = 1e9
    place = "rank 0: the gradient at the output of the head (cls.predictions.transform)"
    assert first_not_finite(engine, buckets, seeded.append, 1.0, World()) == place


@pytest.mark.parametrize(("precision", "advises_bf16"), [("fp16", True), ("bf16", False)])
def test_what_to_do_about_a_run_that_diverged(precision: str, advises_bf16: bool) -> None:
    said = str(diverged("3 weights are not finite", 0.25, precision))
    assert "the run diverged: 3 weights are not finite. Start again" in said
    assert "optimizer.lr (now 0.25)" in said
    assert ("or engine.precision=bf16" in said) == advises_bf16


def test_what_to_do_about_fp16_that_collapsed() -> None:
    assert "at step 7:" in (said := str(collapsed(7, "rank 1: the loss", 0.25, "runs/first", "step-00000004")))
    assert "Not finite: rank 1: the loss. Begin in another run_dir, with from=runs/first@4 and engine" in said
    assert "lower optimizer.lr (now 0.25)" in said
    said = str(collapsed(7, "", 0.25, "runs/first", None))
    assert "Not finite: the sum of the gradients. Begin in another run_dir, with engine.precision=bf16" in said
