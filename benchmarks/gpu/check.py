"""The parts of `gpu_check.sh`: each a process with a time of its own; a part that fails keeps no other from running.

    facts -> data -> probe -> tests, doctor, trainings (several at a time)          first
    facts -> data -> step.py, a case after the other                                bench

Only the standard library is used here: what fails to import fails in a part, which says so. Parts leave what they found as JSON
files, which end in one file of the form that `benchmarks/results/` has.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIMED_OUT = 124  # what timeout(1) returns
NO_DEVICE = 3  # what facts.py returns
LEAST_S = 5.0  # with less left a part is not begun
KINDLY_S = 5.0  # to end in, before it is killed
SHOWN_LINES = 12  # of a part that failed
LIMITS_S = {"data": 600.0, "first": 290.0, "bench": 290.0}
LIMIT_CPU_S = 175.0


@dataclass(frozen=True)
class Part:
    """One thing that is checked.

    Attributes:
        command: arguments of this Python.
        limit_s: longest time that it may take.
    """

    name: str
    command: Sequence[object]
    limit_s: float


class Check:
    """Runs parts and keeps what becomes of them: in a log, on stdout, and in `ended`."""

    def __init__(self, what: str, out: Path, work: Path, limit_s: float) -> None:
        self.what, self.work, self.limit_s = what, work, limit_s
        self.began = time.monotonic()
        self.ended: list[dict[str, Any]] = []
        self.log = (out / f"log-{what}.txt").open("w", encoding="utf-8")
        self.lock = threading.Lock()
        self.running: set[int] = set()

    def left_s(self) -> float:
        """Of the whole check's time."""
        return self.limit_s - (time.monotonic() - self.began)

    def run(self, part: Part, threads: int | None = None) -> int:
        """Run a part in a session of its own, of which nothing is left afterwards; returns its exit code.

        Args:
            threads: of torch on the CPU, where others run at the same time.
        """
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        limit_s = min(part.limit_s, self.left_s())
        if limit_s < LEAST_S:
            return self.end(part, TIMED_OUT, 0.0, "left out: no time\n")
        began, output = time.monotonic(), self.work / f"output-{part.name}"
        with output.open("wb") as stream:
            command = [sys.executable, *map(str, part.command)]
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
            self.running.add(process.pid)
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = TIMED_OUT
                send(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(KINDLY_S)
            send(process.pid, signal.SIGKILL)
            process.wait()
            self.running.discard(process.pid)
        text = output.read_text(encoding="utf-8", errors="replace")
        output.unlink()
        return self.end(part, code, time.monotonic() - began, text)

    def end(self, part: Part, code: int, seconds: float, text: str) -> int:
        line = f"== {part.name}: rc {code}, {seconds:.0f} s, {self.left_s():.0f} s left"
        if code == TIMED_OUT and text:
            text += f"ended after {seconds:.0f} s: more than its time, or than what was left of LIMIT_S={self.limit_s:.0f}\n"
        with self.lock:
            self.ended.append({"name": part.name, "rc": code, "seconds": round(seconds, 1)})
            self.log.write(f"== {part.name}: {' '.join(map(str, part.command))}\n{text}\n{line}\n\n")
            self.log.flush()
            print(line, flush=True)
            if code:
                print("".join(f"   {shown[:300]}\n" for shown in text.splitlines()[-SHOWN_LINES:]), end="", flush=True)
        return code

    def run_together(self, parts: Sequence[Part], jobs: int) -> None:
        """Run parts in this order, `jobs` at a time."""
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda part: self.run(part, threads), parts))

    def kill(self) -> None:
        """End what is running: this check was told to end."""
        for pid in [*self.running]:
            send(pid, signal.SIGKILL)


def send(group: int, number: signal.Signals) -> None:
    """A signal to all processes of a part; none may be left any more."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def trainings(device: str) -> list[tuple[str, str, int, str]]:
    """(architecture, precision, ZeRO stage, kernels), in order of what they teach. A CPU has no fp16, and time for each value
    once. A ModernBERT has windows, and no kernel that BERT has not run in the other precision and stage."""
    if device == "cpu":
        return [("bert", "bf16", 3, "compile"), ("modernbert", "fp32", 1, "eager"), ("bert", "fp32", 2, "eager")]
    of_bert = [
        ("bert", precision, stage, kernels)
        for kernels in ("eager", "compile")
        for precision in ("bf16", "fp16")
        for stage in (1, 3, 2)
    ]
    return [*of_bert[:2], *(("modernbert", "bf16", stage, "compile") for stage in (1, 3)), *of_bert[2:]]


def first(check: Check, device: str, found: Path, jobs: int) -> None:
    """Does everything run?"""
    check.run(Part("probe", [HERE / "probe.py", "--device", device, "--out", found / "probe.json"], 60))
    own = [HERE / "training.py", "--device", device, "--data", found / "data.json", "--folder", check.work / "runs"]
    marked = [
        file.relative_to(ROOT) for file in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in file.read_text()
    ]
    tests = ["-m", "gpu", "--junitxml", found / "tests.xml", *marked]
    parts = [
        Part("tests-gpu", [HERE / "tests.py", "--device", device, *tests], 90),
        Part("doctor", [*own, "--doctor"], 60),
    ]
    for architecture, precision, stage, kernels in trainings(device):
        name = f"{architecture}-{precision}-zero{stage}-{kernels}"
        options = ["--architecture", architecture, "--precision", precision, "--zero", stage, "--kernels", kernels]
        parts.append(Part(f"train-{name}", [*own, *options, "--out", found / f"training-{name}.json"], 150))
    check.run_together(parts, jobs)


def bench(check: Check, device: str, found: Path, out: Path) -> None:
    """How fast is a step? The first case beside others, the rest alone; what teaches most comes first."""
    text = read(found / "data.json")
    if not text:
        return
    results = out / f"step-{read(found / 'facts.json').get('device', 'unknown')}.json"
    order = ("base-128", "large-512", "modernbert-base-1024", "large-128", "base-512")
    cases = {name: ["maskloom-compile"] for name in order}
    cases["base-128"] += ["maskloom-eager", "hf-sdpa-compile"]
    sizes = ["--steps", "20", "--rounds", "2"]
    if device == "cpu":
        cases, sizes = {"tiny": ["maskloom-eager"]}, ["--steps", "2", "--rounds", "1"]
    for name, systems in cases.items():
        options = ["--device", device, "--corpus", text["corpus"], "--tokenizer", text["tokenizer"], "--no-profile"]
        options += ["--cases", name, "--systems", ",".join(systems), *sizes, "--out", results]
        check.run(Part(f"step-{name}", ["benchmarks/step.py", "--only", "step", *options], 100))


def read(file: Path) -> dict[str, Any]:
    """A JSON file that a part left, or nothing where it failed."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def results_of(check: Check, found: Path) -> dict[str, Any]:
    """What the parts of a call found."""
    facts, data = read(found / "facts.json"), read(found / "data.json")
    trained = {file.stem.removeprefix("training-"): read(file) for file in sorted(found.glob("training-*.json"))}
    results = {"stamp": facts.get("stamp"), "parts": check.ended, "text": data.get("text"), "limit_s": check.limit_s}
    results |= {"probe": read(found / "probe.json"), "trainings": trained} if check.what == "first" else {}
    return {"device": facts.get("device", "unknown"), check.what: results}


def save(results: dict[str, Any], out: Path) -> Path:
    """Put results beside those of the other call."""
    file = out / f"gpu-{results['device']}.json"
    file.write_text(json.dumps({**read(file), **results}, indent=1) + "\n", encoding="utf-8")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("what", choices=("data", "first", "bench"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit-s", type=float)
    parser.add_argument("--jobs", type=int, default=min(6, max(2, cores // 2)))
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"JOBS={options.jobs}: at least 1 training at a time")
    work, device = options.work.resolve(), options.device
    limit_s = options.limit_s or min(LIMITS_S[options.what], LIMIT_CPU_S if device == "cpu" else LIMITS_S[options.what])
    text = options.data or (work / "text" if device == "cpu" else ROOT / "benchmarks/.cache/step")

    found = work / "found"
    for folder in (found, work / "runs"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    check = Check(options.what, options.out, work, limit_s)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.what != "data":
            facts = [HERE / "facts.py", "--device", device, "--out", found / "facts.json"]
            if check.run(Part("facts", facts, 90)) == NO_DEVICE:
                return 1  # nothing else could run
        making = ["--device", device, "--folder", text.resolve(), "--out", found / "data.json"]
        check.run(Part("data", [HERE / "data.py", *making], LIMITS_S["data"] if options.what == "data" else 90))
        if options.what == "first":
            first(check, device, found, options.jobs)
        elif options.what == "bench":
            bench(check, device, found, options.out.resolve())
    finally:
        check.kill()
        if options.what != "data":
            print(f"results: {save(results_of(check, found), options.out)}", flush=True)
        shutil.rmtree(work / "runs", ignore_errors=True)
    failed = [part["name"] for part in check.ended if part["rc"]]
    print(
        f"{len(check.ended)} parts in {limit_s - check.left_s():.0f} s; failed: {', '.join(failed) or 'none'}",
        flush=True,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
