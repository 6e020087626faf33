"""Every fault of the table, on two nodes: how the run ends, that nothing is left of it, and that it resumes as if undisturbed.

The table is written as docs/fault-table.md with MASKLOOM_WRITE_DOCS=1. Otherwise its columns are compared with what the tests
find, but for the times and the lost steps.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from maskloom.launch.probe import preferred_port
from maskloom.status import EXIT_DONE, EXIT_FAILED, EXIT_HUNG, EXIT_STOPPED, attempt_steps
from maskloom.train.refusal import read_intervals
from tests.integration.conftest import train_in_ranks

from .cluster import HEAD, Cluster
from .plain import FACTS
from .runs import (
    ASK_EVERY_S,
    PATIENCE_S,
    Command,
    Job,
    Run,
    by_deepspeed,
    by_script,
    by_srun,
    damage_largest,
    slowed_by_srun,
    spoiled_by_srun,
)
from .slowed import MOST_S, TIMES
from .spoiled import FIRST, LAST, spoil

TABLE = Path(__file__).parents[2] / "docs" / "fault-table.md"
WRITES = os.environ.get("MASKLOOM_WRITE_DOCS") == "1"
pytestmark = pytest.mark.skipif(
    not (WRITES or TABLE.exists()),
    reason="docs/fault-table.md is not written yet: MASKLOOM_WRITE_DOCS=1 runs all and writes it",
)
STEPS, EVERY_STEPS, STRUCK_AFTER = 30, 5, 7
PACE, SLOW, SLOWEST = "8mbit", "2mbit", "1mbit"
"""What a node may send: a step then takes about 0.3, 1.2 or 2.4 s, whatever the machine."""
HUNG_S = 15.0
NOT_WRITTEN = "could not be written, and nothing of it is left"
KILLED = 128 + signal.SIGKILL
KILLED_IN_DEEPSPEED = 256 - signal.SIGKILL
"""Its launcher ends with -9."""


@dataclass
class Scene:
    """What a strike may use.

    Attributes:
        stack: undone when the test ends.
    """

    run: Run
    cluster: Cluster
    stack: contextlib.ExitStack

    @property
    def job(self) -> Job:
        assert isinstance(self.run, Job)
        return self.run


@dataclass(frozen=True)
class Case:
    """A fault, and what it must come to.

    Attributes:
        name: of the fault.
        how: it is made.
        start: a command, or options of sbatch.
        strike: the fault; called once the run has done `after` steps.
        code: what the command, or the job, ends with.
        state: status.json when it has ended. `done`: the run survived, with nobody's help.
        says: part of the reason in status.json, or of what was printed.
        plain: what DeepSpeed alone came to: a key of plain.json.
        same_world: whether the run ends at the world size that it began with.
        prepare: before the start.
        pace: what each node may send.
        after: steps that the run has done when it is struck.
        settings: of the run, beside those of all.
        on_small_disk: whether its run_dir is on the cluster's small file system.
        undisturbed: what is called in each rank of the run that this one must equal.
    """

    name: str
    how: str
    start: Command | tuple[str, ...]
    strike: Callable[[Scene], None]
    code: int
    state: str
    says: str = ""
    plain: str = ""
    same_world: bool = True
    prepare: Callable[[Scene], None] = lambda scene: None
    pace: str = PACE
    after: int = STRUCK_AFTER
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_small_disk: bool = False
    undisturbed: Callable[[], None] | None = None

    @property
    def survived(self) -> bool:
        return self.state == "done"


def kill_rank(number: int) -> Callable[[Scene], None]:
    return lambda scene: scene.run.kill(number, signal.SIGKILL)


def signal_rank(number: int, sent: signal.Signals) -> Callable[[Scene], None]:
    return lambda scene: scene.run.kill(number, sent)


def signal_launcher(sent: signal.Signals) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        assert scene.run.launcher
        scene.run.launcher.send_signal(sent)

    return strike


def lose_node(scene: Scene) -> None:
    scene.cluster.link("node2", False)


def lose_node_for_a_while(scene: Scene) -> None:
    """Until Slurm has given the node up, and put the job into the queue."""
    scene.cluster.link("node2", False)
    until = functools.partial(scene.run.until, every_s=ASK_EVERY_S)
    until("Slurm has given node2 up", lambda: scene.cluster.node_state("node2").startswith("down"))
    until("the first attempt has ended", lambda: scene.job.facts()["JobState"] != "RUNNING")
    scene.cluster.link("node2", True)


def take_port(scene: Scene) -> None:
    """Listen on node1 where the run would like its ranks to meet."""
    port = preferred_port(scene.run.folder, 1)
    program = f"import socket, time; s = socket.create_server(('', {port})); print('up', flush=True); time.sleep(3600)"
    taker = scene.cluster.start("node1", [sys.executable, "-c", program], stdout=-1)
    scene.stack.callback(lambda: (taker.kill(), taker.wait()))
    assert taker.stdout and taker.stdout.readline() == "up\n"


def start_a_second(scene: Scene) -> None:
    """On the same nodes, by another launcher: refused."""
    again = by_deepspeed(scene.cluster, scene.run.config, ())
    second = scene.cluster.run_on(HEAD, again, check=False, timeout_s=PATIENCE_S)
    assert second.returncode == EXIT_FAILED, second.stderr
    assert "is in use" in second.stderr + second.stdout


def fill_disk(scene: Scene) -> None:
    """No room on the run's file system, until its next checkpoint has failed."""
    filler = scene.cluster.outside(scene.cluster.disk / "filler")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    scene.stack.callback(lambda: filler.unlink(missing_ok=True))
    scene.run.until("a checkpoint has failed", lambda: NOT_WRITTEN in scene.run.output())
    filler.unlink()


def limit_files(scene: Scene) -> None:
    """Rank 1 can write no file of more than a few kB."""
    process = scene.run.rank(1)
    assert process
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def spoil_tensorboard(scene: Scene) -> None:
    """Its folder is gone, and a file has its place."""
    board = scene.run.folder / "tensorboard"
    shutil.rmtree(board)
    board.write_text("no folder")


def leave_build_lock(scene: Scene) -> None:
    """As a process killed while it builds leaves it."""
    for name in ("deepspeed_shm_comm", "fused_adam", "cpu_adam"):
        folder = scene.run.folder.parent / "extensions" / name
        folder.mkdir(parents=True)
        (folder / "lock").touch()


def nothing(scene: Scene) -> None:
    """What is wrong was made before the start, and stops nobody."""


def wait(scene: Scene) -> None:
    """What happens comes by itself."""


def damage(how: str) -> Callable[[Scene], None]:
    """Kill every rank, and damage a file of the newest checkpoint."""

    def strike(scene: Scene) -> None:
        scene.run.until("two checkpoints", lambda: len(scene.run.checkpoints()) >= 2)
        for rank in (0, 1):
            if process := scene.run.rank(rank):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        scene.run.end()
        damage_largest(scene.run.newest(), how)

    return strike


def cancel(*options: str) -> Callable[[Scene], None]:
    return lambda scene: scene.job.scancel(*options)


def preempt(scene: Scene) -> None:
    """A job of a partition with a higher priority wants both nodes."""
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    scene.cluster.run_on(HEAD, [*urgent, "--wrap", "sleep 1"])


def requeue(scene: Scene) -> None:
    scene.cluster.run_on(HEAD, ["scontrol", "requeue", scene.job.job])


def set_node_down(scene: Scene) -> None:
    scene.cluster.run_on(HEAD, ["scontrol", "update", "nodename=node2", "state=down", "reason=test"])
    scene.run.until("the first attempt has ended", lambda: not scene.run.rank(0))
    # It may have come back by itself (ReturnToService), and then cannot be resumed.
    scene.cluster.run_on(HEAD, ["scontrol", "update", "nodename=node2", "state=resume"], check=False)


def stop_slurmd(scene: Scene) -> None:
    scene.cluster.stop_slurmd("node2")
    step = scene.run.step()
    scene.run.until("further steps", lambda: scene.run.step() >= step + 3)
    scene.cluster.start_slurmd("node2")


UNNOTICED = (wait, start_a_second, stop_slurmd)
"""The first comes by itself, and the others disturb no run."""
SCRIPT = "`launcher/deepspeed.sh`"
SBATCH = "`launcher/slurm.sbatch`"
CASES = [
    Case(
        "rank killed",
        "`kill -9` of rank 1",
        by_script("--max-restarts", "2"),
        kill_rank(1),
        EXIT_DONE,
        "done",
        plain="rank killed",
    ),
    Case(
        "node lost",
        "node2's link down: no TCP reset",
        by_script("--max-restarts", "2"),
        lose_node,
        EXIT_DONE,
        "done",
        says="node2",
        plain="node lost",
        same_world=False,
    ),
    Case(
        "SIGTERM to the launcher",
        "",
        by_script(),
        signal_launcher(signal.SIGTERM),
        EXIT_STOPPED,
        "stopped",
        plain="SIGTERM to the launcher",
    ),
    Case(
        "SIGUSR2 to the launcher",
        "",
        by_script(),
        signal_launcher(signal.SIGUSR2),
        EXIT_STOPPED,
        "stopped",
        plain="SIGUSR2 to the launcher",
    ),
    Case(
        "launcher killed",
        "`kill -9` of what started the ranks",
        by_script(),
        signal_launcher(signal.SIGKILL),
        -signal.SIGKILL,
        "stopped",
        plain="launcher killed",
        pace=SLOW,
    ),
    Case(
        "port taken",
        "somebody listens on node1 at the port of the run",
        by_script(),
        nothing,
        EXIT_DONE,
        "done",
        prepare=take_port,
        plain="port taken",
    ),
    Case(
        "rank killed, no restarts",
        "`kill -9` of rank 0",
        by_deepspeed,
        kill_rank(0),
        KILLED_IN_DEEPSPEED,
        "failed",
        says="rank 0",
    ),
    Case("rank killed", "`kill -9` of rank 1", by_srun, kill_rank(1), KILLED, "failed", says="rank 1 on node2"),
    Case(
        "rank hung",
        "`kill -STOP` of rank 1",
        by_srun,
        signal_rank(1, signal.SIGSTOP),
        EXIT_HUNG,
        "failed",
        says="rank 1 on node2",
        plain="rank hung",
    ),
    Case(
        "SIGTERM to a rank",
        "",
        by_srun,
        signal_rank(1, signal.SIGTERM),
        EXIT_STOPPED,
        "stopped",
        plain="SIGTERM to a rank",
    ),
    Case(
        "disk full",
        "rank 1 can write no file above 4 kB",
        by_srun,
        limit_files,
        EXIT_FAILED,
        "failed",
        plain="disk full",
    ),
    Case(
        "disk full for a while",
        "no byte left in the file system of the run, until a checkpoint has failed",
        by_srun,
        fill_disk,
        EXIT_DONE,
        "done",
        says=NOT_WRITTEN,
        plain="disk full for a while",
        on_small_disk=True,
    ),
    Case(
        "slow rank",
        f"rank 1 stands still, each time for {TIMES} times as long as rank 0 took",
        slowed_by_srun,
        wait,
        EXIT_DONE,
        "done",
        says="rank 1 on node2 is slow",
        plain="slow rank",
        after=3,
        settings={
            "logging": {"every_steps": 3, "peak_tflops": 1.0},
            "timeouts": {"start_s": 180, "train_s": MOST_S},
        },
    ),
    Case(
        "steps that go wrong",
        "on rank 1 a loss of NaN, then infinite gradients, then a spike",
        spoiled_by_srun,
        wait,
        EXIT_DONE,
        "done",
        says="3 steps in a row were not taken: rolling back to step 10",
        plain="steps that go wrong",
        settings={"guard": {"spike_sigma": 6.0, "window_steps": 8}},
        undisturbed=spoil,
    ),
    Case(
        "TensorBoard's folder dead",
        "a file in its place",
        by_srun,
        spoil_tensorboard,
        EXIT_DONE,
        "done",
        says="TensorBoard can no longer be written",
    ),
    Case(
        "second run in the folder",
        "started by `deepspeed --hostfile` on the same nodes",
        by_srun,
        start_a_second,
        EXIT_DONE,
        "done",
        plain="second run",
        pace=SLOWEST,
    ),
    Case(
        "lock of a killed build",
        "in TORCH_EXTENSIONS_DIR",
        by_srun,
        nothing,
        EXIT_DONE,
        "done",
        plain="lock of a killed build",
        prepare=leave_build_lock,
    ),
    Case(
        "newest checkpoint truncated", "", by_srun, damage("truncated"), KILLED, "running", plain="checkpoint truncated"
    ),
    Case("bit flipped in it", "", by_srun, damage("flipped"), KILLED, "running", plain="checkpoint bit-flipped"),
    Case("file missing from it", "", by_srun, damage("missing"), KILLED, "running", plain="checkpoint missing a file"),
    Case(
        "time limit",
        "`--time=2 --signal=USR2@60`",
        ("--time=2", "--signal=USR2@60"),
        wait,
        EXIT_DONE,
        "done",
        pace=SLOWEST,
        after=1,
    ),
    Case("SIGUSR2 by scancel", "`scancel --signal=USR2`", (), cancel("--signal=USR2"), EXIT_DONE, "done"),
    Case("cancelled", "`scancel`", (), cancel(), EXIT_STOPPED, "stopped"),
    Case("preempted", "a job of a higher partition wants the nodes", (), preempt, EXIT_DONE, "done"),
    Case("requeued", "`scontrol requeue`", (), requeue, EXIT_DONE, "done"),
    Case("node set down", "`scontrol update nodename=node2 state=down`", (), set_node_down, EXIT_DONE, "done"),
    Case("node lost", "node2's link down until Slurm requeues the job", (), lose_node_for_a_while, EXIT_DONE, "done"),
    Case("slurmd killed", "`kill -9` of node2's, started again later", (), stop_slurmd, EXIT_DONE, "done"),
    Case("rank killed", "`kill -9` of rank 1", (), kill_rank(1), EXIT_DONE, "done"),
]


def launcher_of(case: Case) -> str:
    if isinstance(case.start, tuple):
        return SBATCH
    if case.start in (by_srun, spoiled_by_srun, slowed_by_srun):
        return "`srun`"
    return "`deepspeed --hostfile`" if case.start is by_deepspeed else SCRIPT


@dataclass(frozen=True)
class Found:
    """What a case came to.

    Attributes:
        detected_s: from the fault until status.json said so, or the launcher ended; None where nothing had to be noticed.
        lost_steps: done by the struck attempt and done again.
        passed_rows: that the run went past, and says so in passed_over.json.
    """

    code: int
    state: str
    detected_s: float | None
    lost_steps: int = 0
    passed_rows: int = 0


@pytest.fixture(scope="module")
def tree(corpus_dir: Path, tokenizer_dir: Path) -> dict[str, Any]:
    return {
        "seed": 3,
        "tokenizer": str(tokenizer_dir),
        "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "phases": [{"steps": STEPS, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 4}],
        "checkpoint": {"every_steps": EVERY_STEPS},
        "logging": {"every_steps": 1, "peak_tflops": 1.0},
        "timeouts": {"start_s": 180, "train_s": HUNG_S},
    }


@pytest.fixture(scope="module")
def undisturbed(whole_cluster: Cluster, tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return alone(whole_cluster, tree, tmp_path_factory.mktemp("undisturbed") / "run")


def alone(cluster: Cluster, tree: dict[str, Any], folder: Path, patch: Callable[[], None] | None = None) -> Run:
    """A run that nothing from outside strikes, of two ranks on this machine."""
    run = Run(cluster, {**tree, "run_dir": str(folder)})
    train_in_ranks([run.config], 2, run.log, patch=patch)
    return run


@pytest.fixture(scope="module")
def table() -> Iterator[dict[int, Found]]:
    return {}


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number].name}-{number}")
def test_a_fault_costs_steps_and_no_sample(
    number: int, tree: dict[str, Any], undisturbed: Run, table: dict[int, Found], cluster: Cluster, tmp_path: Path
) -> None:
    case = CASES[number]
    kind = Job if isinstance(case.start, tuple) else Run
    tree = {**tree, **case.settings}
    if not case.same_world:  # dropout is seeded with the rank
        tree = {**tree, "model": {**tree["model"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    if case.settings or not case.same_world:
        undisturbed = alone(cluster, tree, tmp_path / "undisturbed", case.undisturbed)
    folder = cluster.disk if case.on_small_disk else tmp_path
    run = kind(cluster, {**tree, "run_dir": str(folder / "run")}, tmp_path)
    with contextlib.ExitStack() as stack:
        found, reached = go_through(case, Scene(run, cluster, stack))
    check_end(case, found, run)
    if not case.survived:
        train_in_ranks([run.config], 2, run.log)
    begun = attempt_steps(run.folder)
    lost_steps = max(0, reached - begun[1]) if len(begun) > 1 else 0
    table[number] = replace(found, lost_steps=lost_steps, passed_rows=passed_rows(run))
    losses, expected = run.losses(), undisturbed.losses()
    assert run.status()["state"] == "done"
    assert run.cursors() == undisturbed.cursors()
    if case.same_world:
        assert losses == expected
    else:
        assert losses == pytest.approx(expected, rel=1e-4)
    if case.on_small_disk:
        shutil.rmtree(run.folder)


def passed_rows(run: Run) -> int:
    """Rows that the run went past, as it says itself."""
    return sum(interval.rows for interval in read_intervals(run.folder))


def go_through(case: Case, scene: Scene) -> tuple[Found, int]:
    """Start the run, strike, and wait for its end; also returns the step that it had reached when the fault was noticed."""
    run, cluster = scene.run, scene.cluster
    cluster.bandwidth(case.pace)
    case.prepare(scene)
    extensions = {"TORCH_EXTENSIONS_DIR": str(run.folder.parent / "extensions")}
    if isinstance(run, Job):
        assert isinstance(case.start, tuple)
        run.submit(*case.start)
    else:
        assert not isinstance(case.start, tuple)
        run.start(case.start, environment=extensions)
    run.until_step(case.after)
    struck_s, length = time.monotonic(), len(run.said_since(0))
    case.strike(scene)
    detected_s = None
    if case.strike is not nothing:
        run.until("the fault is noticed", lambda: is_noticed(case, run, length), may_end=True)
        detected_s = None if case.strike in UNNOTICED else time.monotonic() - struck_s
    reached = run.step()
    cluster.bandwidth(None)
    code = run.end()
    cluster.link("node2", True)
    run.until_nothing_is_left()
    return Found(code, run.status()["state"], detected_s), reached


def is_noticed(case: Case, run: Run, length: int) -> bool:
    """Whether status.json or the output says that something happened, or no rank is left to say so."""
    if case.survived and case.says and case.says in run.said_since(length):
        return True
    return run.status()["state"] != "running" or not (run.rank(0) or run.rank(1) or not run.is_over())


def check_end(case: Case, found: Found, run: Run) -> None:
    said = f"{run.status()}\n{run.output()}"
    assert (found.code, found.state) == (case.code, case.state), said
    assert case.says in said, said


HEADING = f"""# Faults, and what they come to

Made by `MASKLOOM_WRITE_DOCS=1 python -m pytest tests/cluster`: a cluster of two nodes on one machine, with real sshd, pdsh, munge
and Slurm, trains a small BERT of {STEPS} steps on CPUs, with a checkpoint every {EVERY_STEPS}.
It is struck after step {STRUCK_AFTER}.
After each fault no process is left on any machine. The run is done, by itself (*survived*) or when it is started again (*ended*).
Its losses, step by step, are those of a run that nothing struck, bit for bit. If it resumes with fewer ranks they agree within
1e-4, and its place in the data is the same to the row. So no sample is lost or repeated: what had been done since the last
checkpoint is done again. Steps that go wrong ({FIRST} to {LAST}) are compared with a run on one machine in which the same do.
Columns 1 to 3, 5, 6, 8 and 9 are compared with what the tests find each time they run.

*Noticed after*: until status.json or the output said so, or what had started the ranks had ended; `timeouts.train_s` was
{HUNG_S:g} s.

*DeepSpeed alone*: a script with DeepSpeed's own launcher, save_checkpoint and load_checkpoint, under the same fault
(`python -m tests.cluster.plain`).

Some faults are not here, as one machine is enough for them:

- a crash at every single write of a checkpoint (`tests/train/test_checkpoint.py`);
- the build of an operator that was killed (`tests/train/engine/test_ops.py`);
- a collapse of fp16 (`tests/integration/test_kernels.py`);
- a run that is struck hundreds of times ([soak.md](soak.md)).

| fault | how | started by | noticed after | came to | exit code | steps done again | samples lost | DeepSpeed alone |
|---|---|---|---|---|---|---|---|---|
"""


def row(number: int, found: Found, facts: dict[str, str]) -> list[str]:
    case = CASES[number]
    noticed = "" if found.detected_s is None else f"{found.detected_s:.0f} s"
    came_to = "survived" if case.survived else "ended"
    plain = facts[case.plain] if case.plain else ""
    code, again = str(found.code), str(found.lost_steps)
    samples = f"{found.passed_rows} rows skipped, and written down" if found.passed_rows else "0"
    return [case.name, case.how, launcher_of(case), noticed, came_to, code, again, samples, plain]


def test_the_table_is_what_is_documented(table: dict[int, Found]) -> None:
    if len(table) < len(CASES):
        pytest.skip("not every fault was tried")
    facts = json.loads(FACTS.read_text())
    rows = [row(number, table[number], facts) for number in range(len(CASES))]
    if os.environ.get("MASKLOOM_WRITE_DOCS") == "1":
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        TABLE.write_text(HEADING + "\n".join(lines) + "\n", encoding="utf-8")
    text = TABLE.read_text(encoding="utf-8")
    assert text.startswith(HEADING)
    documented = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.removeprefix(HEADING).splitlines()]
    fixed = (0, 1, 2, 4, 5, 7, 8)
    assert [[cells[at] for at in fixed] for cells in documented] == [[cells[at] for at in fixed] for cells in rows]
