"""A process a system, and turns: round after round every system measures a few steps while the others wait."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from maskloom.errors import UserError
from step.cases import FED, SPARSE_HEADS, Case, Device, System, choose_systems
from step.jobs import Job, Training
from step.learning import Recipe, common_target
from step.text import Text
from step.worker import RESULT

BENCHMARKS = Path(__file__).resolve().parents[1]
PYTHONPATH = [part for part in [os.environ.get("PYTHONPATH")] if part]
LONGEST_S = 1800.0  # of one answer: compiling on a slow machine
PROFILED_STEPS = {"cpu": 1, "cuda": 10}

Say = Callable[[str], None]


class Process:
    """A worker that answers requests; a context manager that ends it."""

    def __init__(self, job: Job) -> None:
        self.name = job.system.name
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "step.process", job.dumps()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *PYTHONPATH])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def ask(self, what: str, **given: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            UserError: input that the worker refuses.
            RuntimeError: with the reason, where it fails otherwise, ends, or takes too long.
        """
        self.tell(what, **given)
        return self.answer()

    def tell(self, what: str, **given: Any) -> None:
        """A request whose answer comes later."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: `answer` says so
            print(json.dumps({"do": what, **given}), file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """As `ask`, of what was told before."""
        try:
            line = self.answers.get(timeout=LONGEST_S)
        except queue.Empty:
            raise RuntimeError(f"no answer in {LONGEST_S:.0f} s") from None
        if line is None:
            code = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"the process ended with {code}: {self.errors.read()[-400:]}")
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise (UserError if result.get("is_users") else RuntimeError)(result["error"])
        return result

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith(RESULT):
                self.answers.put(line.removeprefix(RESULT))
        self.answers.put(None)


def measure_case(
    case: Case, systems: Sequence[System], text: Text, device: Device, threads: int, profiles: bool, say: Say
) -> dict[str, Any]:
    """Steps of every system, in turns.

    Returns:
        `systems`: name -> `about`, `ready` (times of the start), `turns` (one a round; see `Worker.turn`) and `profile`;
        `failures`: name -> reason, of systems that did not get through.
    """
    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}

        def attempt(name: str, what: str, **given: Any) -> dict[str, Any] | None:
            try:
                return processes[name].ask(what, **given)
            except RuntimeError as error:
                failures[name] = f"{what}: {error}"
                say(f"  {name} failed: {failures[name]}")
                return None

        for system in systems:  # one after the other: compilers would slow each other, and memory grows one by one
            say(f"{case.name}: {system.name}: building and warming up")
            job = Job(system, Training.of(case), text, device, threads, profiles)
            processes[system.name] = stack.enter_context(Process(job))
            if ready := attempt(system.name, "ready"):
                found[system.name] = {"about": system.about, "ready": ready, "turns": []}
        for number in range(case.rounds):
            for name in _alternating(list(found), number):
                if name not in failures and (turn := attempt(name, "turn", steps=case.steps)):
                    found[name]["turns"].append({"round": number, **turn})
                    say(
                        f"{case.name}: round {number + 1} of {case.rounds}: {name}: {_mean(turn['step_s']):.3f} s a step"
                    )
        for name in found if profiles else ():
            if name not in failures and (profile := attempt(name, "profile", steps=PROFILED_STEPS[device])):
                found[name]["profile"] = profile
                say(f"{case.name}: {name}: profiled")
    return {"systems": {name: result for name, result in found.items() if result["turns"]}, "failures": failures}


def measure_learning(
    recipe: Recipe,
    systems: Sequence[System],
    seeds: Sequence[int],
    steps: int | None,
    text: Text,
    device: Device,
    threads: int,
    say: Say,
) -> dict[str, Any]:
    """Every system trained to the end, once a seed, one after the other.

    Returns:
        `runs`: system, seed, `curve` and `start_s` each; `target`: a loss that all of them reach; `failures`.
    """
    runs: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for number, seed in enumerate(seeds):
        for system in _alternating(list(systems), number):
            job = Job(system, recipe.training(seed, steps), text, device, threads)
            say(f"time to a loss: {system.name}, seed {seed}")
            with Process(job) as process:
                try:
                    answer = process.ask("learn", evaluate_every=recipe.evaluate_every)
                except RuntimeError as error:
                    failures[system.name] = str(error)
                    say(f"  {system.name} failed: {error}")
                    continue
            runs.append({"system": system.name, "about": system.about, "seed": seed, **answer})
            step, tokens, seconds, loss = answer["curve"][-1]
            say(f"  {step:,} steps, {tokens:,} tokens in {seconds:.1f} s: held-out loss {loss:.3f}")
    target = common_target([run["curve"] for run in runs]) if runs else None
    return {"runs": runs, "target": target, "failures": failures}


def measure_curves(
    recipes: dict[str, Recipe], seeds: Sequence[int], steps: int | None, text: Text, jobs: int, say: Say
) -> dict[str, Any]:
    """maskloom and Hugging Face's own module, trained on the same batches from the same first weights, on a CPU.

    Args:
        recipes: by architecture.
        jobs: trainings at a time, of one thread each. Seconds say nothing then.

    Returns:
        by architecture, `runs` (system, seed, `curve`) and `failures`.
    """
    (ours,) = choose_systems(["maskloom-eager"], "cpu")
    wanted = [
        (name, system, seed) for seed in seeds for name in recipes for system in (ours, FED[name in SPARSE_HEADS])
    ]

    def train(one: tuple[str, System, int]) -> dict[str, Any]:
        name, system, seed = one
        recipe = recipes[name]
        with Process(Job(system, recipe.training(seed, steps), text, "cpu", 1)) as process:
            answer = process.ask("learn", evaluate_every=recipe.evaluate_every)
        say(f"{name}: {system.name}, seed {seed}: held-out loss {answer['curve'][-1][3]:.3f}")
        return {"system": system.name, "about": system.about, "seed": seed, **answer}

    found: dict[str, Any] = {name: {"runs": [], "failures": {}} for name in recipes}
    with ThreadPoolExecutor(jobs) as pool:
        for one, future in [(one, pool.submit(train, one)) for one in wanted]:
            name, system, seed = one
            try:
                found[name]["runs"].append(future.result())
            except RuntimeError as error:
                found[name]["failures"][f"{system.name}, seed {seed}"] = str(error)
                say(f"{name}: {system.name}, seed {seed} failed: {error}")
    return found


def _alternating(items: list[Any], number: int) -> Iterator[Any]:
    """Forwards and backwards in turn, so that a machine that slows down or warms up favours none."""
    return iter(items if number % 2 == 0 else items[::-1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
