"""train(config): build the row of objects left to right, then the loop.

batch of rows -> micro-batches -> loss -> backward -> step -> what is due: log, evaluate, checkpoint
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from maskloom.config import RunConfig
from maskloom.config_file import rechecked
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.skew import notes_on_run
from maskloom.distributed import World, barrier, gather_objects, set_timeouts
from maskloom.models.bert import check_size
from maskloom.models.warm_start import tokenizer_of
from maskloom.processes import temporary_folder
from maskloom.progress import say, warn
from maskloom.status import EXIT_DONE, EXIT_STOPPED
from maskloom.train.batches import ReadyStep
from maskloom.train.checkpoint.fit import stored_tokenizing
from maskloom.train.checkpoint.state import identity
from maskloom.train.engine.device import device_of, notes_on_device, resolve_kernels, resolve_precision
from maskloom.train.engine.engine import start_distributed
from maskloom.train.metrics import Metrics
from maskloom.train.rank.watch import Watch
from maskloom.train.run_dir import RunDir, check_model, reconcile
from maskloom.train.time_left import TimeLeft
from maskloom.train.trainer import Trainer, deepspeed_settings


def train(config: RunConfig, world: World, watch: Watch | None = None) -> int:
    """Train, from the run's newest checkpoint where it has one. How it ended is in the run's status, and was said.

    Returns:
        the exit code: EXIT_DONE, EXIT_STOPPED after a request to stop, EXIT_FAILED.
    """
    with contextlib.nullcontext(watch) if watch else Watch() as watch:
        with watch.opening:
            run = RunDir(config, world)
            watch.take_up(run, config.timeouts)
        try:
            return attempt(config, world, run, watch)
        except BaseException as error:
            return watch.fail(error)


def attempt(config: RunConfig, world: World, run: RunDir, watch: Watch) -> int:
    """From the meeting of the ranks to the end of the run, or to a stop; the exit code."""
    traffic = start_distributed(world, config.timeouts.start_s, config.engine.deterministic)
    run.meet()
    watch.join()
    if why := agreed_to_stop(watch, world):
        return stopped(why, run.step, run)
    asked = config.engine
    config, plan = prepare(config, world)
    for note in notes_on_device(asked) if world.is_first else ():
        warn(note)
    torch.set_num_threads(run.threads(world, len(os.sched_getaffinity(0))))
    with watch.section("load", set_timeouts):
        trainer = Trainer(config, plan, world, traffic, watch.pulse)
    run.begin(trainer.config, trainer.engine.model, plan.tokenizer, world, trainer.step)
    why = agreed_to_stop(watch, world)
    watch.log_to(run)
    time_left = TimeLeft(plan.phases, plan.lanes)
    metrics = Metrics(run.folder, trainer.step, time_left, trainer.tokens_seen(), world, trainer.peak_flops)
    if not why:
        catch_up(config, plan, trainer, metrics, world)
        if loop(config, plan, run, trainer, metrics, watch):
            why = agreed_to_stop(watch, world)
    with watch.section("save", set_timeouts):
        trainer.saver.finish(must_succeed=True)
    if why and trainer.step == plan.total_steps:
        catch_up(config, plan, trainer, metrics, world)
    metrics.close()
    if why and trainer.step < plan.total_steps:
        return stopped(why, trainer.step, run)
    run.record("done", trainer.step)
    barrier()
    if world.is_first:
        say(f"done: step {trainer.step:,} of {plan.total_steps:,}; the run is in {run.folder}")
    return EXIT_DONE


def loop(config: RunConfig, plan: DataPlan, run: RunDir, trainer: Trainer, metrics: Metrics, watch: Watch) -> bool:
    """Step by step from where the trainer stands to the end of the run. Returns whether it stopped before, because a rank was
    asked to; then too the last step is saved."""
    save_is_due = False
    for batch in timed(trainer.steps(), metrics, plan, watch):
        trainer.notices.mine["stop"] = int(watch.requests.reason is not None)
        values = trainer.train_step(batch)
        if trainer.must_go_back:
            with watch.section("load", set_timeouts):
                trainer.go_back()
            metrics.begin_at(trainer.step, trainer.tokens_seen())
            run.record("running", trainer.step)
            save_is_due = False
            continue
        step = trainer.step
        metrics.time_left.stepped(step)
        watch.keep_limits(set_timeouts)
        if is_due(step, config.logging.every_steps, plan.total_steps):
            metrics.log_step(step, trainer.tokens_seen(), *values())
        stops = trainer.notices.heard()["stop"] > 0
        began_s = time.perf_counter()
        if not stops and evaluation_is_due(
            config, plan, step
        ):  # `catch_up` does it later: who stops a run may not wait for it
            metrics.log_evaluation(step, trainer.evaluate())
        save_is_due |= is_due(step, config.checkpoint.every_steps, plan.total_steps)
        # Not amid steps that are not taken: the run may have to go back to before them.
        if stops or (save_is_due and (trainer.guard.in_a_row == 0 or step == plan.total_steps)):
            save_is_due = False
            with watch.section("save", set_timeouts):
                trainer.save()
            run.record("running", step)
        if stops:
            return True
        metrics.paused(time.perf_counter() - began_s)
    return False


def evaluation_is_due(config: RunConfig, plan: DataPlan, step: int) -> bool:
    return config.evaluation.every_steps > 0 and is_due(step, config.evaluation.every_steps, plan.total_steps)


def catch_up(config: RunConfig, plan: DataPlan, trainer: Trainer, metrics: Metrics, world: World) -> None:
    """Evaluate after the step that the run's newest checkpoint stands at, where that is due and a stop left it out."""
    if trainer.saver.last_good is None or not evaluation_is_due(config, plan, trainer.step):
        return
    if not gather_objects(metrics.has_evaluation(trainer.step), world)[0]:
        metrics.log_evaluation(trainer.step, trainer.evaluate())


def agreed_to_stop(watch: Watch, world: World) -> str:
    """Why a rank was asked to stop, on all ranks alike; empty where none was."""
    reasons = gather_objects(watch.requests.reason, world)
    by_reason = {reason: [rank for rank, said in enumerate(reasons) if said == reason] for reason in reasons if reason}
    return "; ".join(
        f"{reason} on {'all ranks' if len(ranks) == world.size > 1 else 'rank ' + ', '.join(map(str, ranks))}"
        for reason, ranks in by_reason.items()
    )


def stopped(why: str, step: int, run: RunDir) -> int:
    """All ranks end at the same time, with everything saved; returns the exit code."""
    run.stop(why, step)
    barrier()
    if run.is_writer:
        say(f"stopped after step {step:,} of {run.total_steps:,}: {why}. The same command goes on from there")
    return EXIT_STOPPED


def prepare(config: RunConfig, world: World) -> tuple[RunConfig, DataPlan]:
    """Check everything that can be checked without starting: a run that begins should not fail on its input.

    Returns:
        the configuration with what was derived (lanes, precision, kernels) filled in, and the plan of its data.
    """
    temporary_folder()
    tokenizer, corpora = tokenizer_of(config.tokenizer, config.model.init), open_corpora(config.data)
    config = reconcile(config, identity(corpora, tokenizer))
    if check_model(config, tokenizer) is None:
        check_size(config.model, tokenizer.vocab_size)
    plan = DataPlan.of(config, corpora, tokenizer, stored_tokenizing(Path(config.run_dir), config.from_))
    plan.check_world(world)
    for note in notes_on_run(plan) if world.is_first else ():
        warn(note)
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
    engine = {
        "precision": resolve_precision(config.engine.precision),
        "kernels": resolve_kernels(config.engine.kernels),
    }
    config = config.model_copy(update={"data": data, "engine": config.engine.model_copy(update=engine)})
    config = rechecked(config, config.run_dir)
    deepspeed_settings(config, plan, world)
    return config, plan


def is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def timed(steps: Iterator[ReadyStep], metrics: Metrics, plan: DataPlan, watch: Watch) -> Iterator[ReadyStep]:
    """Pass steps on, counting the time spent waiting for each."""
    has_begun = False
    while True:
        began_s = time.perf_counter()
        watch.pulse.tick("data")
        step = next(steps, None)
        if step is None:
            return
        waited_s = time.perf_counter() - began_s
        if not has_begun:  # the start of the readers is no step's time
            metrics.mark(metrics.marked_step, metrics.marked_tokens)
            has_begun, waited_s = True, 0.0
        metrics.waited(waited_s, plan.lanes * plan.lane_rows(step.number))
        yield step
