"""train(config): build the row of objects left to right, then the loop.

batch of rows -> micro-batches -> loss -> backward -> step -> what is due: log, evaluate, checkpoint
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch

from maskloom.config import RunConfig, rechecked
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.stream import Step
from maskloom.distributed import World
from maskloom.progress import say, warn
from maskloom.tokenizer import load_tokenizer
from maskloom.train.engine.building import start_distributed
from maskloom.train.engine.configuration import device_of, resolve_precision
from maskloom.train.metrics import Metrics
from maskloom.train.run_dir import RunDir, reconcile
from maskloom.train.trainer import Trainer, deepspeed_settings


def train(config: RunConfig, world: World) -> None:
    """Train, from the run's newest checkpoint where it has one.

    Raises:
        UserError: bad input, before anything is written; or a loss that is no number.
    """
    config, plan = prepare(config, world)
    run = RunDir(config, world)
    torch.set_num_threads(run.threads(world, len(os.sched_getaffinity(0))))
    try:
        trainer = Trainer(config, plan, world, start_distributed(world))
        run.begin(config, trainer.engine.module, plan.tokenizer, world, trainer.step)
        loop(
            config,
            plan,
            run,
            trainer,
            Metrics(run.folder, trainer.step, plan.total_steps, trainer.tokens_seen(), world, trainer.peak_flops),
        )
    except BaseException as error:
        run.fail(error)
        raise
    run.record("done", trainer.step)
    if world.is_first:
        say(f"done: step {trainer.step:,} of {plan.total_steps:,}; the run is in {run.folder}")


def loop(config: RunConfig, plan: DataPlan, run: RunDir, trainer: Trainer, metrics: Metrics) -> None:
    """Step by step from where the trainer stands to the end of the run."""
    save_is_due = False
    for batch in timed(trainer.steps(), metrics, plan):
        values = trainer.train_step(batch)
        if trainer.must_go_back:
            trainer.go_back()
            metrics.begin_at(trainer.step, trainer.tokens_seen())
            run.record("running", trainer.step)
            save_is_due = False
            continue
        step = trainer.step
        if is_due(step, config.logging.every_steps, plan.total_steps):
            metrics.log_step(step, trainer.tokens_seen(), *values())
        began_s = time.perf_counter()
        if config.evaluation.every_steps and is_due(step, config.evaluation.every_steps, plan.total_steps):
            metrics.log_evaluation(step, trainer.evaluate())
        save_is_due |= is_due(step, config.checkpoint.every_steps, plan.total_steps)
        # Not amid steps that are not taken: the run may have to go back to before them.
        if save_is_due and (trainer.guard.in_a_row == 0 or step == plan.total_steps):
            save_is_due = False
            trainer.save(run.folder)
            run.record("running", step)
        metrics.paused(time.perf_counter() - began_s)
    metrics.close()


def prepare(config: RunConfig, world: World) -> tuple[RunConfig, DataPlan]:
    """Check everything that can be checked without starting: a run that begins should not fail on its input.

    Returns:
        the configuration with what was derived (lanes, precision) filled in, and the plan of its data.
    """
    config = reconcile(config)
    tokenizer = load_tokenizer(config.tokenizer)
    plan = DataPlan.of(config, open_corpora(config.data), tokenizer)
    plan.check_world(world)
    if config.evaluation.every_steps and world.is_first:
        for index in plan.corpora:
            if not len(index.held_out_blocks) and len(plan.corpora) > 1:
                warn(f"no held-out documents in {index.folder}: the evaluation says nothing about it")
    if config.evaluation.every_steps and not any(len(index.held_out_blocks) for index in plan.corpora):
        if world.is_first:
            folders = ", ".join(index.folder for index in plan.corpora)
            warn(f"no held-out documents in {folders}: no evaluation (see --val-fraction)")
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"every_steps": 0})})
    device_of(world)
    data = config.data.model_copy(update={"lanes": plan.lanes})
    engine = config.engine.model_copy(update={"precision": resolve_precision(config.engine.precision)})
    config = config.model_copy(update={"data": data, "engine": engine})
    config = rechecked(config, config.run_dir)
    deepspeed_settings(config, plan, world)
    return config, plan


def is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def timed(steps: Iterator[Step], metrics: Metrics, plan: DataPlan) -> Iterator[Step]:
    """Pass steps on, counting the time spent waiting for each."""
    has_begun = False
    while True:
        began_s = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        waited_s = time.perf_counter() - began_s
        if not has_begun:  # the start of the readers is no step's time
            metrics.mark(metrics.marked_step, metrics.marked_tokens)
            has_begun, waited_s = True, 0.0
        metrics.waited(waited_s, plan.lanes * plan.lane_rows(step.number))
        yield step
