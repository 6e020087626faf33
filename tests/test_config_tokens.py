"""Lengths in tokens: the steps that they become, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from maskloom.config import RunConfig
from maskloom.config_file import dump_config, load_config, parse_config
from maskloom.config_tokens import rows_of_growth
from maskloom.errors import UserError
from tests.trees import tree_with

ROWS = {"global_batch_rows": 8, "seq_len": 16}  # 128 slots a step
LANES = {"train": "corpus", "lanes": 4}


def read(*phases: dict[str, Any], **more: Any) -> RunConfig:
    return parse_config(tree_with(phases=[{**ROWS, **phase} for phase in phases], **more), "here")


def slots(config: RunConfig, number: int, steps: int) -> int:
    """Token slots of a phase's first steps, step by step."""
    phase, lanes = config.phases[number], config.data.lanes or 1
    growth, count = phase.batch_warmup, 0
    for done in range(steps):
        rows = phase.global_batch_rows
        if growth and done < growth.steps:
            first = growth.from_rows // lanes
            rows = lanes * (first + done * (rows // lanes - first) // growth.steps)
        count += rows * phase.seq_len
    return count


@given(some.integers(1, 60), some.integers(0, 90), some.integers(1, 80), some.data())
def test_the_rows_of_a_growing_batch_are_those_of_its_steps(first: int, more: int, steps: int, data: Any) -> None:
    done = data.draw(some.integers(0, steps))
    expected = sum(first + number * more // steps for number in range(done))
    assert rows_of_growth(first, first + more, steps, done) == expected


@pytest.mark.parametrize(
    ("tokens", "steps"),
    [("128", 1), ("1", 1), ("129", 2), ("1280", 10), ("1.28K", 10), ("12.8M", 100_000), ("1e6", 7813)],
)
def test_tokens_become_the_least_steps_that_reach_them(tokens: str, steps: int, tmp_path: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(read({"steps": 5})))
    config = load_config(path, ["phases.0.steps=null", f"phases.0.tokens={tokens}"])
    assert config.phases[0].steps == config.total_steps == steps


@given(
    some.integers(1, 4),
    some.integers(1, 6),
    some.integers(1, 30_000),
    some.integers(1, 60_000),
)
def test_a_growing_batch_is_counted_as_it_grows(first: int, more: int, ramp_tokens: int, rest_tokens: int) -> None:
    rows = {"global_batch_rows": 4 * (first + more)}
    total = 2 * ramp_tokens + rest_tokens + 5000
    growth = {"from_rows": 4 * first, "tokens": ramp_tokens}
    config = read({**rows, "tokens": total, "batch_warmup": growth}, data=LANES)
    (phase,) = config.phases
    assert phase.batch_warmup
    ramp = phase.batch_warmup.steps
    assert slots(config, 0, ramp) >= ramp_tokens
    assert slots(config, 0, phase.steps - 1) < total <= slots(config, 0, phase.steps)
    if ramp > 1:  # one step fewer would not reach them
        shorter = 16 * 4 * rows_of_growth(first, first + more, ramp - 1, ramp - 1)
        assert shorter < ramp_tokens


def test_a_configuration_is_written_in_steps_and_read_back() -> None:
    """So a run's config.yaml does not depend on how its file said it, and resumes with either."""
    growth = {"batch_warmup": {"from_rows": 4, "tokens": 960}}
    counted = read({"tokens": 2000, **growth}, {"tokens": "1K"}, data=LANES, optimizer={"warmup_tokens": 500})
    ramp = counted.phases[0].batch_warmup
    assert ramp
    steps = [phase.steps for phase in counted.phases]
    written = read(
        {"steps": steps[0], "batch_warmup": {"from_rows": 4, "steps": ramp.steps}},
        {"steps": 8},
        data=LANES,
        optimizer={"warmup_steps": counted.optimizer.warmup_steps},
    )
    assert counted == written
    assert "tokens" not in dump_config(counted)
    assert dump_config(counted) == dump_config(written)


def test_warm_ups_are_counted_over_phases_and_while_the_batch_grows() -> None:
    phases = [{"steps": 3}, {"steps": 40, "seq_len": 32}]  # 384 slots, then 256 a step
    assert read(*phases, optimizer={"warmup_tokens": 384}).optimizer.warmup_steps == 3
    assert read(*phases, optimizer={"warmup_tokens": 385}).optimizer.warmup_steps == 4
    growing = {"steps": 40, "batch_warmup": {"from_rows": 4, "steps": 20}}
    config = read(growing, optimizer={"warmup_tokens": 900}, data=LANES)
    warmup = config.optimizer.warmup_steps
    assert slots(config, 0, warmup - 1) < 900 <= slots(config, 0, warmup)
    again = read({"steps": 5}, {"steps": 9, "rewarm_up": {"lr": 1.0, "warmup_tokens": 257}})
    assert again.phases[1].rewarm_up and again.phases[1].rewarm_up.warmup_steps == 3


def test_decays_are_counted_from_the_end() -> None:
    phases = [{"steps": 30}, {"steps": 4, "seq_len": 32}]  # the last 4 steps have 1,024 slots
    wsd = {"schedule": "wsd", "warmup_steps": 1}
    for tokens, steps in ((1, 1), (256, 1), (257, 2), (1024, 4), (1025, 5), (1153, 6)):
        assert read(*phases, optimizer={**wsd, "decay_tokens": tokens}).optimizer.decay_steps == steps


def test_each_schedule_of_a_run_decays_over_as_many_tokens() -> None:
    phases = [{"steps": 30}, {"steps": 40, "seq_len": 32, "rewarm_up": {"lr": 1.0}}]
    config = read(*phases, optimizer={"schedule": "wsd", "decay_tokens": 1280})
    assert config.optimizer.decay_steps == 10
    own = config.phases[1].rewarm_up
    assert own and (own.schedule, own.decay_steps) == ("wsd", 5)


@pytest.mark.parametrize(
    ("phase", "more", "said"),
    [
        ({"steps": 5, "tokens": 640}, {}, "phases.0: steps 5 and tokens 640 are both set"),
        ({}, {}, "phases.0: 'steps' is missing: set it, or tokens"),
        ({"tokens": "5 B"}, {}, "phases.0.tokens = '5 B': not a number of tokens, such as 500M"),
        ({"tokens": "1.0005K"}, {}, "phases.0.tokens = '1.0005K': not a whole number of tokens"),
        ({"tokens": 0}, {}, "phases.0.tokens = 0: input should be greater than or equal to 1"),
        ({"tokens": "2000000T"}, {}, "phases.0.tokens = 2000000000000000000: input should be less than or equal to"),
        ({"tokens": "999999T"}, {}, "phases.0.tokens 999,999,000,000,000,000 are more than 1,000,000,000,000 steps"),
        (
            {"tokens": 640, "batch_warmup": {"from_rows": 4, "steps": 2}},
            {},
            "phases.0.batch_warmup: the batch grows in multiples of data.lanes, so a count of tokens needs data.lanes too",
        ),
        (
            {"tokens": 640, "batch_warmup": {"from_rows": 4, "steps": 20}},
            {"data": LANES},
            "phases.0.batch_warmup takes 20 steps, and the whole phase 10",
        ),
        (
            {"steps": 9, "batch_warmup": {"from_rows": 4, "steps": 2, "tokens": 300}},
            {"data": LANES},
            "phases.0.batch_warmup: steps 2 and tokens 300 are both set",
        ),
        ({"steps": 9, "batch_warmup": {"from_rows": 4}}, {"data": LANES}, "batch_warmup: 'steps' is missing"),
        (
            {"tokens": 640, "batch_warmup": {"from_rows": 5, "steps": 6}},
            {"data": LANES},
            "phases.0.batch_warmup.from_rows 5 is not a multiple of data.lanes 4",
        ),
        (
            {"steps": 5},
            {"optimizer": {"warmup_steps": 2, "warmup_tokens": 128}},
            "optimizer: warmup_steps 2 and warmup_tokens 128 are both set",
        ),
        (
            {"steps": 5},
            {"optimizer": {"warmup_tokens": 641}},
            "optimizer.warmup_tokens 641 is more than the 640 token slots of its schedule",
        ),
        (
            {"steps": 5},
            {"optimizer": {"warmup_tokens": 640}},
            "optimizer.warmup_steps 5 must be less than the run's 5 steps",
        ),
        (
            {"steps": 5},
            {"optimizer": {"schedule": "wsd", "decay_tokens": 641}},
            "optimizer.decay_tokens 641 is more than the 640 token slots of its schedule",
        ),
        (
            {"steps": 5},
            {"optimizer": {"schedule": "linear", "decay_tokens": 128}},
            "decay_tokens means nothing for schedule linear",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(phase: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        read(phase, **more)
    assert said in str(error.value)
