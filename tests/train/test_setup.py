"""What is checked and derived before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskloom.config import Evaluation
from maskloom.config_file import load_config
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.train.setup import checked_evaluation, deepspeed_settings, phase_layouts, prepare

Write = Callable[[dict], Path]


def test_what_was_derived_is_filled_in(run_config: dict, write_config: Write) -> None:
    run_config["data"].pop("lanes", None)
    config, plan = prepare(load_config(write_config(run_config)), World())
    assert config.data.lanes == plan.lanes
    assert config.engine.precision != "auto"
    assert config.engine.kernels != "auto"


def test_nothing_is_written(run_config: dict, write_config: Write) -> None:
    config, _ = prepare(load_config(write_config(run_config)), World())
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize(
    ("held_out", "every_steps", "said"),
    [
        ({"a": 3}, 4, []),
        ({"a": 0}, 0, ["no held-out documents in a: no evaluation"]),
        ({"a": 3, "b": 0}, 4, ["no held-out documents in b: the evaluation says nothing about it"]),
        ({"a": 0, "b": 0}, 0, ["in a: the eval", "in b: the eval", "no held-out documents in a, b: no evaluation"]),
    ],
)
def test_an_evaluation_needs_held_out_documents(
    held_out: dict[str, int], every_steps: int, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    corpora: Any = [SimpleNamespace(folder=folder, held_out_blocks=[0] * n) for folder, n in held_out.items()]
    for world, expected in ((World(), said), (World(1, 2), [])):  # the first rank speaks
        assert checked_evaluation(Evaluation(every_steps=4), corpora, world).every_steps == every_steps
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == len(expected)
        assert all(text in line for text, line in zip(expected, warnings, strict=True))


def test_more_ranks_than_lanes_are_refused(run_config: dict, write_config: Write) -> None:
    config = load_config(write_config(run_config))
    with pytest.raises(UserError, match="lanes"):
        prepare(config, World(size=64))


def test_micro_batches_follow_from_the_world(run_config: dict, write_config: Write) -> None:
    phase = {"steps": 5, "seq_len": 32, "global_batch_rows": 24, "micro_batch_rows": 5}
    run_config["phases"] = [phase]
    config, plan = prepare(load_config(write_config(run_config)), World())
    for size, micro_batches, rows in ((1, 5, 5), (2, 3, 4), (6, 1, 4)):
        (layout,) = phase_layouts(config.phases, plan, World(size=size))
        assert (layout.micro_batches, layout.micro_batch_rows) == (micro_batches, rows)
    assert deepspeed_settings(config, plan, World(size=2))["train_micro_batch_size_per_gpu"] == 4
