"""The process of one system: it builds, warms up, and then does what it is asked, a line of JSON each.

    {"do": "ready"}                 build the model, make the batches, warm up
    {"do": "turn", "steps": 3}      measure steps, after some that are not measured
    {"do": "profile", "steps": 3}   where their time goes, with batches that are read meanwhile
    {"do": "learn", ...}            train to the end of the schedule; see `learning.py`

Each answer is a line `RESULT {...}`; it has an `error` where there is none. A process a system, so that neither peak memory
nor compiled code of one is another's; it lives through all rounds of a case, because to build and compile takes longer than to
measure.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch._dynamo.config
import torch._dynamo.utils
import torch._inductor.config

from maskloom.errors import UserError
from maskloom.train.kinds import DATA, sum_up, what_ran
from step import clock
from step.jobs import Batch, Facts, Job, Trained
from step.learning import learn

RESULT = "RESULT "
KEPT_STEPS = 16  # different batches, made beforehand and taken in turn
WARM_STEPS = 2  # before the first turn; the first one compiles


class Worker:
    """A system, its batches, and the memory that there was before it."""

    def __init__(self, job: Job) -> None:
        self.job, self.device = job, job.device
        torch.set_num_threads(job.threads)
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # instead of continuing in eager mode, quietly
        if job.profiles:  # the kernels that Inductor writes for a CPU are silent otherwise; it costs a microsecond each
            torch._inductor.config.cpp.enable_kernel_profile = True
        self.baseline_bytes = clock.resident_bytes()
        began_s = time.perf_counter()
        self.trained = build(job)
        self.build_s = time.perf_counter() - began_s
        self.batches: Iterator[Batch] = iter(())

    def ready(self) -> dict[str, Any]:
        """Make the batches and warm up."""
        reading = self.trained.read(workers=0)
        kept = [next(reading) for _ in range(min(KEPT_STEPS, self.job.training.case.steps + WARM_STEPS))]
        self.batches = itertools.cycle(kept)
        began_s = time.perf_counter()
        for _ in range(WARM_STEPS):
            self.trained.step(next(self.batches))
        clock.wait(self.device)
        return {"build_s": self.build_s, "warm_s": time.perf_counter() - began_s, "baseline_bytes": self.baseline_bytes}

    def turn(self, steps: int) -> dict[str, Any]:
        """Measure `steps` steps: moving a batch to the device, forward, backward, clipping, optimizer.

        Batches are in memory. Some steps come first, which are not measured: caches are another process' after its turn, and
        memory was given back.
        """
        for _ in range(self.job.training.case.warm_steps):
            self.trained.step(next(self.batches))
        self.trained.mean_loss()
        memory = clock.Memory(self.device, self.baseline_bytes)
        graphs, facts = _graphs(), []
        timer = clock.Clock(self.device)
        for _ in range(steps):
            batch = next(self.batches)
            self.trained.step(batch)
            timer.mark()
            facts.append(batch.facts)
        step_s = timer.seconds()
        loss = self.trained.mean_loss()
        if not math.isfinite(loss):
            raise RuntimeError(f"the loss of the measured steps is {loss}")
        peak_bytes = memory.peak_bytes()
        clock.release(self.device)
        return {
            "step_s": step_s,
            "facts": vars(Facts.total(facts)),
            "peak_bytes": peak_bytes,
            "loss": loss,
            "graphs_compiled": _graphs() - graphs,
        }

    def profile(self, steps: int) -> dict[str, Any]:
        """Parts of `steps` steps whose batches one process reads meanwhile, as in training."""
        reading = self.trained.read(workers=1)
        self.trained.step(next(reading))
        clock.wait(self.device)
        is_cuda = self.device == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if is_cuda else []
        waited_s = 0.0
        with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            began_s = time.perf_counter()
            for _ in range(steps):
                asked_s = time.perf_counter()
                with torch.profiler.record_function(DATA):
                    batch = next(reading)
                waited_s += time.perf_counter() - asked_s
                self.trained.step(batch)
            clock.wait(self.device)
            wall_s = time.perf_counter() - began_s
        del reading
        found = sum_up(what_ran(profile.events(), is_cuda), wall_s, steps, self.job.training.vocab_size)
        return {**found, "wait_s": waited_s / steps}


def build(job: Job) -> Trained:
    """The system with its model on the device. Raises UserError for a corpus or tokenizer that does not fit."""
    from step.fed import Fed
    from step.ours import Ours
    from step.theirs import Theirs

    kind = Ours if job.system.is_ours else Fed if job.system.rows == "pieces" else Theirs
    return kind(job.system, job.training, job.text, job.device)


def _graphs() -> int:
    """Graphs that torch.compile has compiled in this process: none may come while the clock runs."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def serve(job: Job) -> None:
    """Answer requests until there are no more."""
    warnings.filterwarnings("ignore", message="Random token replacement")  # the collator, of every batch
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "learn":
                answer: dict[str, Any] = learn(job, build, **request)
            elif what == "ready":
                worker = Worker(job)
                answer = worker.ready()
            else:
                assert worker is not None
                answer = {"turn": worker.turn, "profile": worker.profile}[what](**request)
        except UserError as error:
            answer = {"error": str(error), "is_users": True}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(RESULT + json.dumps(answer), flush=True)
