"""The training loop: batch -> step -> what is due: log, evaluate, save, stop.

`train` leads a run from the meeting of its ranks to its exit code; `loop` is what it does in between. Where a batch becomes a
loss, see `step.py`; what makes a run ready, `setup.py`; what becomes of a loss that goes wrong, `refusal.py` and `recovery.py`;
how a signal ends the loop, `rank/stopping.py`.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator

import torch

from maskloom.config import RunConfig
from maskloom.distributed import World, barrier, set_timeouts
from maskloom.hardware import cores
from maskloom.live import show_live
from maskloom.progress import say, warn
from maskloom.status import EXIT_DONE, EXIT_STOPPED
from maskloom.train.batches import ReadyStep
from maskloom.train.describe import describe
from maskloom.train.due import (
    AFTER_EARLY,
    catch_up,
    evaluation_is_due,
    is_due,
    is_new_best,
    log_evaluation,
    log_step,
    save,
    why_early,
)
from maskloom.train.engine.device import notes_on_device
from maskloom.train.engine.engine import start_distributed
from maskloom.train.metrics import Metrics
from maskloom.train.rank.notices import agreed_reason
from maskloom.train.rank.watch import Watch
from maskloom.train.recovery import roll_back
from maskloom.train.refusal import must_roll_back
from maskloom.train.run_dir import RunDir
from maskloom.train.setup import prepare, set_up
from maskloom.train.step import train_step
from maskloom.train.timing import TimeLeft
from maskloom.train.trainer import Trainer


def loop(trainer: Trainer, run: RunDir, metrics: Metrics, watch: Watch) -> bool:
    """Train from where the trainer stands to the end of the run, which may come early (`Trainer.ends_early`).

    Returns:
        whether it stopped before, as a rank was asked to; its last step is saved then too.
    """
    config, last = trainer.config, trainer.plan.total_steps
    save_is_due = False
    for batch in timed(trainer.steps(), trainer, metrics):
        trainer.saver.follow()
        trainer.notices.mine["stop"] = int(watch.requests.reason is not None)
        result = train_step(batch, trainer, trainer.engine)
        if result.refusal and must_roll_back(trainer.guard, config.guard):
            with watch.section("load", set_timeouts):
                roll_back(trainer, batch, result.counts, result.refusal)
            catch_up(trainer, metrics)
            metrics.begin_at(trainer.step, trainer.tokens_seen())
            run.record("running", trainer.step)
            save_is_due = False
            continue
        metrics.time_left.stepped(result.step)
        show_live(loss=result.loss)
        watch.keep_limits(set_timeouts)
        if is_due(result.step, config.logging.every_steps, last):
            log_step(trainer, result, metrics)
        began_s, must_stop = time.perf_counter(), result.must_stop
        # Whoever stops a run does not wait for an evaluation: `catch_up` makes it when the run resumes.
        if evaluation_is_due(trainer) and not must_stop:
            log_evaluation(trainer, metrics)
            save_is_due |= is_new_best(trainer)
        is_last = result.step == last or trainer.ends_early
        save_is_due |= is_last or is_due(result.step, config.checkpoint.every_steps, last)
        # Not amid refused steps: the run may have to roll back to before them.
        may_save = trainer.guard.in_a_row == 0 or is_last
        if must_stop or (save_is_due and may_save):
            with watch.section("save", set_timeouts):
                save(trainer)
            run.record("running", result.step)
            save_is_due = False
        if must_stop or trainer.ends_early:
            return must_stop
        metrics.paused(time.perf_counter() - began_s)
    return False


def train(config: RunConfig, world: World, watch: Watch | None = None) -> int:
    """Train as one rank, from the run's newest checkpoint if it has one. The run's status says how it ended.

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
    if why := agreed_reason(watch.requests.reason, world):
        return stopped(why, run.step, run)
    asked = config.engine
    config, plan = prepare(config, world)
    for note in notes_on_device(asked) if world.is_first else ():
        warn(note)
    torch.set_num_threads(run.threads(world, cores()))
    with watch.section("load", set_timeouts):
        trainer, peak_flops = set_up(config, plan, world, traffic, watch.pulse)
    run.begin(trainer.config, trainer.engine.model, plan.tokenizer, world, trainer.step, trainer.frozen)
    trainer.frozen = {}
    why = agreed_reason(watch.requests.reason, world)
    watch.log_to(run)
    time_left = TimeLeft(plan.phases, plan.lanes)
    metrics = Metrics(
        run.folder, trainer.step, time_left, trainer.tokens_seen(), world, peak_flops, describe(trainer, run)
    )
    if not why:
        catch_up(trainer, metrics)
        if not trainer.ends_early and loop(trainer, run, metrics, watch):
            why = agreed_reason(watch.requests.reason, world)
    with watch.section("save", set_timeouts):
        trainer.saver.finish(must_succeed=True)
    if why and trainer.step == plan.total_steps:
        catch_up(trainer, metrics)
    metrics.close()
    code = stopped(why, trainer.step, run) if why and trainer.step < plan.total_steps else done(trainer, run)
    watch.pulse.tick("report")  # with long limits: the run has ended, and a slow network is not a hang
    metrics.finish_reports()
    return code


def done(trainer: Trainer, run: RunDir) -> int:
    """All ranks end at the same time, with all steps done; returns the exit code."""
    early = why_early(trainer)
    run.record("done", trainer.step, early, AFTER_EARLY.format(run=shlex.quote(str(run.folder))) if early else "")
    barrier()
    if run.is_writer:
        said = f"{early}; " if early else ""
        say(f"done: step {trainer.step:,} of {trainer.plan.total_steps:,}; {said}the run is in {run.folder}")
    return EXIT_DONE


def stopped(why: str, step: int, run: RunDir) -> int:
    """All ranks end at the same time, with everything saved; returns the exit code."""
    run.stop(why, step)
    barrier()
    if run.is_writer:
        say(f"stopped after step {step:,} of {run.total_steps:,}: {why}. The same command resumes from there")
    return EXIT_STOPPED


def timed(steps: Iterator[ReadyStep], trainer: Trainer, metrics: Metrics) -> Iterator[ReadyStep]:
    """Pass steps on, and count the time spent waiting for each."""
    has_begun = False
    while True:
        began_s = time.perf_counter()
        trainer.pulse.tick("data")
        step = next(steps, None)
        if step is None:
            return
        waited_s = time.perf_counter() - began_s
        if not has_begun:  # the start of the readers does not belong to a step
            metrics.mark(metrics.marked_step, metrics.marked_tokens)
            has_begun, waited_s = True, 0.0
        metrics.waited(waited_s, trainer.plan.lanes * trainer.plan.lane_rows(step.number))
        yield step
