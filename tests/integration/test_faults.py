"""Ranks that are killed, stopped, asked to stop or fail, as real processes: how each of them ends, what the run's status says,
and that the same command resumes bit for bit."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from maskloom.runs import read_metrics
from maskloom.status import EXIT_DONE, EXIT_FAILED, EXIT_HUNG, EXIT_STOPPED, Status, read_status
from maskloom.train import loop
from maskloom.train.batches import ReadyStep
from maskloom.train.engine.engine import Engine
from maskloom.train.rank.stopping import Requests
from maskloom.train.step import StepResult
from maskloom.train.trainer import Trainer

from .conftest import LAUNCHER_VARIABLES, environment, final_weights, forked_ranks, free_port, losses

PATIENCE_S = 240
STEPS = 60
SETTINGS = [f"phases.0.steps={STEPS}", "checkpoint.every_steps=20", "phases.0.micro_batch_rows=1"]
FOR_EVER = ["phases.0.steps=100000", "logging.every_steps=5"]


def _rank(arguments: list[str], variables: dict[str, str], output: str, first: Callable[[], None] | None) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= variables
    if first is not None:
        first()
    from maskloom.program import end
    from maskloom.train.__main__ import main

    end(main(arguments))


class Job:
    """Ranks of a run, started as a launcher would; what they print is in files."""

    def __init__(self, config: Path, size: int, *settings: str, first: dict[int, Callable[[], None]]) -> None:
        """`first` is what a rank calls before it begins."""
        context = forked_ranks()
        self.run = config.parent / "run"
        arguments = [str(config), *SETTINGS, *settings]
        port = free_port()
        self.outputs = [config.parent / f"output-{port}-{rank}" for rank in range(size)]
        self.ranks = [
            context.Process(target=_rank, args=(arguments, variables(rank, size, port), str(output), first.get(rank)))
            for rank, output in enumerate(self.outputs)
        ]
        for rank in self.ranks:
            rank.start()

    def wait_for(self, step: int) -> None:
        """Until that step has been logged."""
        wait_until(lambda: (self.run / "metrics.jsonl").exists() and step in losses(self.run), self)

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.ranks[rank].pid, number)

    def code(self, rank: int) -> int | None:
        self.ranks[rank].join(PATIENCE_S)
        return self.ranks[rank].exitcode

    def codes(self) -> list[int | None]:
        return [self.code(rank) for rank in range(len(self.ranks))]

    def text(self) -> str:
        return "\n".join(output.read_text() for output in self.outputs if output.exists())

    def log(self, rank: int) -> str:
        return (self.run / "logs" / f"rank-{rank}.log").read_text()

    def status(self) -> Status:
        status = read_status(self.run)
        assert status is not None, self.text()
        return status


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher gives to a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_SIZE": size, "MASTER_PORT": port}
    more = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return {**{name: str(number) for name, number in numbers.items()}, **more}


def wait_until(happens: Callable[[], bool], job: Job | None = None) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < end_s, job and job.text()
        assert job is None or all(rank.exitcode is None for rank in job.ranks), job.text()
        time.sleep(0.02)


def alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def start(run_config: dict, write_config: Callable[..., Path]) -> Iterator[Callable[..., Job]]:
    """Start the ranks of the small run; in the end nothing of them is left."""
    jobs: list[Job] = []

    def begin(size: int = 2, *settings: str, first: dict[int, Callable[[], None]] | None = None) -> Job:
        jobs.append(Job(write_config(run_config), size, *settings, first=first or {}))
        return jobs[-1]

    yield begin
    for job in jobs:
        for rank in job.ranks:
            rank.kill()
            rank.join()


def processes_of(run: Path) -> list[int]:
    """Processes that name a file beside this run in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(run.parent).encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def readers_of(rank: int) -> list[int]:
    """The server of a rank's reader processes, and they."""
    found, parents = [], {rank}
    for _ in range(2):
        children = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) in parents and b"forkserver" in (folder / "cmdline").read_bytes():
                    children.add(int(folder.name))
            except OSError:
                continue
        found += sorted(children)
        parents = children
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The losses and weights of the same run without faults, once one was made."""
    return {}


def assert_as_undisturbed(job: Job, undisturbed: dict, start: Callable[..., Job]) -> None:
    """Go on with the run to its end: its losses and weights are those of a run without faults."""
    resumed = start()
    assert resumed.codes() == [0, 0], resumed.text()
    assert resumed.status().state == "done"
    assert resumed.status().attempt == 2
    found = losses(job.run), final_weights(job.run)
    if not undisturbed:
        shutil.rmtree(job.run)
        alone = start()
        assert alone.codes() == [0, 0], alone.text()
        undisturbed["all"] = losses(job.run), final_weights(job.run)
    expected_losses, expected_weights = undisturbed["all"]
    assert found[0] == expected_losses
    assert found[1].keys() == expected_weights.keys()
    assert all(torch.equal(found[1][name], expected_weights[name]) for name in expected_weights)


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGUSR2, [1]), (signal.SIGTERM, [0, 1])])
def test_a_signal_stops_all_ranks_and_the_run_resumes_bit_for_bit(
    number: signal.Signals, ranks: list[int], start: Callable[..., Job], undisturbed: dict
) -> None:
    job = start()
    job.wait_for(5)
    for rank in ranks:
        job.signal(rank, signal.SIGUSR1)
        job.signal(rank, number)
    assert job.codes() == [EXIT_STOPPED] * 2, job.text()
    status = job.status()
    assert status.state == "stopped"
    assert 5 <= status.step < STEPS
    assert status.last_good_checkpoint == f"step-{status.step:08d}"
    assert status.reason == f"{number.name} on {'all ranks' if len(ranks) == 2 else 'rank 1'}"
    assert f"stopped after step {status.step} of {STEPS}: {status.reason}. The same command resumes" in job.text()
    assert_as_undisturbed(job, undisturbed, start)


def test_readers_hear_no_signals_and_end_with_their_rank(run_config: dict, write_config: Callable[..., Path]) -> None:
    run = Path(run_config["run_dir"])
    command = [sys.executable, "-m", "maskloom.train", str(write_config(run_config)), *FOR_EVER, "data.workers=2"]
    with subprocess.Popen(command, env={**environment(), "DS_ACCELERATOR": "cpu"}) as rank:
        try:
            wait_until((run / "metrics.jsonl").exists)
            readers = readers_of(rank.pid)
            assert len(readers) == 3, "the server and two"
            for reader in readers:  # as a scheduler does, which signals every process of a job
                for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT):
                    os.kill(reader, number)
            newest = max(losses(run), default=0)
            wait_until(lambda: max(losses(run)) > newest + 20)
            assert alive(readers) == readers
            rank.kill()
            wait_until(lambda: not alive(readers))
        finally:
            rank.kill()


def test_a_stop_file_stops_the_run_and_is_removed(start: Callable[..., Job]) -> None:
    job = start(1, *FOR_EVER)
    job.wait_for(5)
    (job.run / "stop").write_text("maintenance at noon\n")
    assert job.codes() == [EXIT_STOPPED], job.text()
    assert "maintenance at noon" in job.status().reason
    assert not (job.run / "stop").exists()


def stop_at(step: int) -> None:
    """Have the rank asked to stop while it does the step before; it hears of it in this one."""
    heard, train_step, ask = threading.Event(), loop.train_step, Requests.ask

    def stopping(batch: ReadyStep, trainer: Trainer, engine: Engine) -> StepResult:
        if batch.number == step - 2:
            os.kill(os.getpid(), signal.SIGTERM)
            heard.wait()
        return train_step(batch, trainer, engine)

    Requests.ask = lambda requests, reason: (ask(requests, reason), heard.set())  # type: ignore[method-assign]
    loop.train_step = stopping


def test_an_evaluation_that_a_stop_leaves_out_is_done_when_the_run_resumes(start: Callable[..., Job]) -> None:
    settings = ["phases.0.steps=12", "evaluation.every_steps=4"]

    def evaluated(job: Job) -> list[int]:
        return [line["step"] for line in read_metrics(job.run) if "evaluation_loss" in line]

    for step, code, done in ((8, EXIT_STOPPED, [4]), (12, EXIT_DONE, [4, 8, 12])):
        job = start(1, *settings, first={0: functools.partial(stop_at, step)})
        assert job.codes() == [code], job.text()
        assert job.status().step == step
        assert evaluated(job) == [0, *done]
    resumed = start(1, *settings)  # nothing is left to do
    assert resumed.codes() == [EXIT_DONE], resumed.text()
    assert evaluated(resumed) == [0, 4, 8, 12]


def sleep() -> None:
    time.sleep(PATIENCE_S)


def forbid_probes() -> None:
    import deepspeed.ops

    deepspeed.ops._probe_compatible_ops = lambda: os._exit(99)


def test_a_start_probes_no_operators(start: Callable[..., Job]) -> None:
    """DeepSpeed's probe compiles programs, and has stderr lead to nowhere meanwhile."""
    job = start(2, "phases.0.steps=3", first=dict.fromkeys((0, 1), forbid_probes))
    assert job.codes() == [EXIT_DONE, EXIT_DONE], job.text()


def test_a_stop_during_the_start_leaves_nothing(start: Callable[..., Job], run_config: dict) -> None:
    job = start(2, first={1: sleep})
    wait_until(Path(run_config["run_dir"]).exists, job)  # rank 0 waits for the other one
    job.signal(0, signal.SIGTERM)
    assert job.code(0) == EXIT_STOPPED, job.text()
    assert not Path(run_config["run_dir"]).exists()
    assert "stopped by SIGTERM before the start" in job.text()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_is_named(lost: int, start: Callable[..., Job], undisturbed: dict) -> None:
    job = start()
    job.wait_for(25)
    job.ranks[lost].kill()
    codes = job.codes()
    assert codes[lost] == -signal.SIGKILL
    assert codes[1 - lost] == EXIT_FAILED, job.text()
    status = job.status()
    assert (status.state, status.can_retry, status.last_good_checkpoint) == ("failed", True, "step-00000020")
    assert f"rank {lost} on " in status.reason.split("noticed")[0]
    assert f"(process {job.ranks[lost].pid})" in status.reason
    assert "Traceback" not in job.text()
    assert "Traceback" in job.log(1 - lost)
    assert job.text().count("maskloom: failed") == 1
    if lost:
        assert_as_undisturbed(job, undisturbed, start)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_hung_rank_is_named_and_the_others_end(stopped: int, start: Callable[..., Job]) -> None:
    job = start(2, "timeouts.train_s=3", *FOR_EVER)
    job.wait_for(5)
    job.signal(stopped, signal.SIGSTOP)
    assert job.code(1 - stopped) == EXIT_HUNG, job.text()
    status = job.status()
    assert status.state == "failed"
    assert f"rank {stopped} on " in status.reason.split("after step")[1]
    assert f"(process {job.ranks[stopped].pid})" in status.reason
    log = job.log(1 - stopped)
    assert "stacks of all threads" in log
    assert "train_step" in log


def at_step_7(act: Callable[[], None]) -> None:
    step = loop.train_step

    def train_step(batch: ReadyStep, trainer: Trainer, engine: Engine) -> StepResult:
        if batch.number == 7:
            act()
        return step(batch, trainer, engine)

    loop.train_step = train_step


def hang() -> None:
    at_step_7(sleep)


def raise_error() -> None:
    def fail() -> None:
        raise ArithmeticError("one and one is three")

    at_step_7(fail)


def take_port() -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
    taken.listen()
    os.environ["KEPT"] = str(os.dup(taken.fileno()))


def test_a_rank_that_hangs_alone_is_named_and_gives_its_stacks(start: Callable[..., Job]) -> None:
    job = start(2, "timeouts.train_s=3", first={1: hang})
    assert job.codes() == [EXIT_HUNG] * 2, job.text()
    reason = job.status().reason
    assert "rank 1 on " in reason.split("after step 7: ")[1]
    assert "hangs after step 7 in section 'data'" in reason
    assert job.text().count("maskloom: failed") == 1
    for rank in range(2):
        assert "stacks of all threads" in job.log(rank)


def test_the_first_failure_is_the_reason(start: Callable[..., Job]) -> None:
    job = start(2, first={1: raise_error})
    assert job.codes() == [EXIT_FAILED] * 2, job.text()
    status = job.status()
    assert status.state == "failed"
    assert "rank 1 on " in status.reason
    assert "ArithmeticError: one and one is three" in status.reason
    assert "one and one is three" in job.log(1)
    assert job.text().count("maskloom: failed") == 1
    assert "Traceback" not in job.text()


def test_ranks_stop_when_their_launcher_is_killed(run_config: dict, write_config: Callable[..., Path]) -> None:
    run = Path(run_config["run_dir"])
    launcher = Path(sys.executable).with_name("deepspeed")
    options = ["--num_accelerators", "2", "--master_port", str(free_port()), "--module", "maskloom.train"]
    path = f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(launcher), *options, str(write_config(run_config)), *SETTINGS, *FOR_EVER]
    with subprocess.Popen(command, env=environment(PATH=path), stdout=subprocess.DEVNULL) as runner:
        try:
            wait_until((run / "metrics.jsonl").exists)
            for pid in processes_of(run):
                if b"deepspeed.launcher.launch" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not processes_of(run))
            status = read_status(run)
            assert status is not None
            assert status.state == "stopped"
            assert "what started it" in status.reason
        finally:
            runner.kill()
            for pid in processes_of(run):
                os.kill(pid, signal.SIGKILL)


def test_a_dead_tensorboard_folder_ends_no_run(start: Callable[..., Job]) -> None:
    job = start(1)
    job.wait_for(5)
    shutil.rmtree(job.run / "tensorboard")
    assert job.codes() == [0], job.text()
    assert job.text().count("TensorBoard can no longer be written") == 1
    assert sorted(losses(job.run)) == list(range(1, STEPS + 1))


def train_until_told() -> None:
    """In a rank: stand in step 6 until a file `go` is beside the run, while its status is written five times a second."""
    from maskloom.train.rank import watch

    watch.REFRESH_S = 0.2
    old_step = loop.train_step

    def train_step(batch: ReadyStep, trainer: Trainer, engine: Engine) -> StepResult:
        while batch.number == 5 and not (trainer.run.parent / "go").exists():
            time.sleep(0.05)
        return old_step(batch, trainer, engine)

    loop.train_step = train_step


SECOND_STARTS = {
    "one process": ["maskloom.cli", "train"],
    "several processes": ["maskloom.cli", "train", "--processes", "2"],
    "restarts": ["maskloom.cli", "train", "--max-restarts", "3"],
    "hosts": ["maskloom.cli", "train", "--hostfile", "HOSTS"],
    "other settings": ["maskloom.cli", "train", "seed=4"],
    "a rank alone": ["maskloom.train"],
}


def test_a_second_start_names_the_holder_at_once_and_harms_nothing(
    start: Callable[..., Job], run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config, hosts = write_config(run_config), tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    job = start(1, first={0: train_until_told})
    job.wait_for(5)
    (job.run / ".failed-0").touch()
    holder = f"is in use by process {job.ranks[0].pid} on {socket.gethostname()} since "
    for way, (module, *given) in SECOND_STARTS.items():
        arguments = [str(hosts) if word == "HOSTS" else word for word in given]
        command = [sys.executable, "-m", module, *arguments, str(config), *SETTINGS]
        if "seed=4" in command:
            command.append(command.pop(command.index("seed=4")))
        second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
        said = second.stdout + second.stderr
        assert second.returncode == EXIT_FAILED, (way, said)
        assert said.count(holder) == 1, (way, said)
        assert f"ask it to stop with `touch {job.run}/stop`, or choose another run_dir" in said, (way, said)
        for wrong in ("Correct that", "failed after", "The same command resumes", "Traceback"):
            assert wrong not in said, (way, said)
    ranks = start(2)  # as a launcher of somebody's starts them
    assert ranks.codes() == [EXIT_FAILED] * 2
    assert ranks.text().count(holder) == 1, ranks.text()
    assert job.status().state == "running"
    assert (job.run / ".failed-0").exists()
    assert not (job.run / "stop").exists()
    (tmp_path / "go").touch()
    assert job.codes() == [EXIT_DONE], job.text()
    assert sorted(losses(job.run)) == list(range(1, STEPS + 1))
    lines = [json.loads(line) for line in (job.run / "attempts.jsonl").read_text().splitlines()]
    assert [line["attempt"] for line in lines] == [1]


def test_a_taken_port_says_what_to_set(start: Callable[..., Job], run_config: dict) -> None:
    job = start(1, first={0: take_port})
    assert job.codes() == [EXIT_FAILED]
    assert "is taken, where the ranks should meet" in job.text()
    assert "MASTER_PORT" in job.text()
    assert not Path(run_config["run_dir"]).exists()
