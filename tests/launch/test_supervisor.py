"""Attempt after attempt: when there is another one, what status.json says after it, and the exit code of it all."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.launch import supervisor
from maskloom.launch.ending import Ended, Stop
from maskloom.launch.hostfile import Host
from maskloom.launch.local import run_ranks
from maskloom.launch.probe import Fitness
from maskloom.launch.ssh import Ssh
from maskloom.launch.supervisor import (
    NO_RESTART,
    OnHosts,
    OnThisMachine,
    Outcome,
    conclusion,
    final_code,
    known_status,
    no_other,
    settle,
    supervise,
)
from maskloom.status import Status, note_attempt, read_status
from maskloom.train.run_lock import InUse, RunLock

RUNNING = Status("running", 7, 12, 1, last_good_checkpoint="step-00000004")
WELL, KILLED, FAULT = (
    Ended(0, "all ranks ended well"),
    Ended(137, "rank 1 was killed by SIGKILL"),
    Ended(1, "exit code 1"),
)
STOPPED = Ended(75, "the ranks saved and stopped")


def outcome(state: str | None, ended: Ended, is_news: bool = True, **more: object) -> Outcome:
    status = replace(RUNNING, state=state, **more) if state else None  # type: ignore[arg-type]
    return Outcome(ended, status, is_news and status is not None)


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (outcome("done", WELL), 0),
        (outcome("done", FAULT), 1),  # something broke after the last step
        (outcome("done", WELL, is_news=False), 1),  # the launcher says 0, and no rank said anything
        (outcome("running", WELL), 1),
        (outcome("failed", WELL), 1),  # pdsh whose ssh was killed
        (outcome(None, WELL), 1),
        (outcome("stopped", STOPPED), 75),
        (outcome("stopped", KILLED), 75),  # the checkpoint is written: the same command resumes it
        (outcome(None, STOPPED), 75),
        (outcome("failed", Ended(76, "")), 76),
        (outcome("failed", KILLED), 137),
        (outcome(None, FAULT), 1),
    ],
)
def test_the_exit_code_is_0_only_for_a_run_that_is_done(found: Outcome, code: int) -> None:
    assert final_code(found) == code


def test_a_run_that_ended_early_is_done_and_says_why() -> None:
    found = outcome("done", WELL, step=40, total_steps=100, reason="stopped early: no lower loss")
    assert final_code(found) == 0
    assert no_other(found, [0], 3, False, None) == "it is done"
    assert conclusion(Path("RUN"), found, "it is done") == "RUN: done at step 40 of 100: stopped early: no lower loss"


@pytest.mark.parametrize(
    ("found", "first_steps", "expected"),
    [
        (outcome("failed", FAULT), [0], None),
        (outcome("failed", FAULT, can_retry=False), [0], "would fail again"),
        (outcome("failed", FAULT, step=0, last_good_checkpoint=None), [0, 0], None),
        (outcome("failed", FAULT, step=0, last_good_checkpoint=None), [0, 0, 0], "none got further"),
        (outcome("failed", FAULT), [0, 0, 0], None),  # the third got to step 4
        (outcome("failed", FAULT), [0, 4, 4, 4], "none got further"),
        (outcome("failed", FAULT), [4, 0, 4], None),
        (outcome("done", WELL), [0], "is done"),
        (outcome("done", FAULT), [0], "is done"),
        (outcome("stopped", STOPPED), [0], "asked to stop"),
        (outcome("failed", STOPPED, is_news=False), [4], "asked to stop"),  # a rank was, before it had begun
        (outcome(None, FAULT), [0], "did not begin"),  # bad input, most likely
        (outcome("failed", Ended(2, "wrong usage"), is_news=False), [0], "did not begin"),
        (outcome(None, KILLED), [0], None),
        (outcome(None, KILLED), [0, 0, 0], "got nowhere"),
        (outcome("failed", Ended(69, "no host"), is_news=False), [4], None),
        (outcome("failed", FAULT), [0] * 2 + [4] * 4, "none got further"),
        (outcome("failed", FAULT), [0, 1, 2, 3], "3 restarts"),
    ],
)
def test_another_attempt_is_made_where_it_may_get_on(
    found: Outcome, first_steps: list[int], expected: str | None
) -> None:
    why = no_other(found, first_steps, 3, False, None)
    assert why is None if expected is None else expected in (why or "")
    assert no_other(found, first_steps, 3, True, None) is not None
    assert no_other(found, first_steps, 3, False, "forbidden") is not None
    assert no_other(found, first_steps, 0, False, None) is not None


class FakeLaunch:
    """Attempts as a list of functions that leave a status of the name they are given, and return how the ranks ended."""

    def __init__(self, *attempts: Callable[[str], Ended]) -> None:
        self.attempts, self.started = list(attempts), 0

    def prepare(self, attempt: int) -> str:
        return "fake ranks"

    def start(self, stop: Stop, name: str) -> Ended:
        self.started += 1
        return self.attempts.pop(0)(name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("run_dir: x\n")
    return folder


def trains(run: Path, begins: int, status: Status, ended: Ended) -> Callable[[str], Ended]:
    def attempt(name: str) -> Ended:
        note_attempt(run, {"attempt": 1, "step": begins, "start": name})
        replace(status, start=name).write(run)
        return ended

    return attempt


def test_attempts_are_made_until_the_run_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = replace(RUNNING, state="done", step=12)
    launch = FakeLaunch(
        trains(run, 0, RUNNING, KILLED),
        trains(run, 4, replace(RUNNING, state="failed", reason="no route"), FAULT),
        trains(run, 4, done, WELL),
    )
    assert supervise(launch, run, 5, Stop(), pauses_s=[0.0]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "attempt 1 of at most 6: fake ranks"
    assert "attempt 1 failed: rank 1 was killed by SIGKILL. Another one" in lines[1]
    assert lines[-1] == f"{run}: done at step 12 of 12"


def test_attempts_without_progress_end_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch = FakeLaunch(*[trains(run, 4, RUNNING, KILLED)] * 9)
    assert supervise(launch, run, 9, Stop(), pauses_s=[0.0]) == 137
    assert launch.started == 3
    assert "the last 3 attempts all began at step 4" in capsys.readouterr().out


def test_restarts_are_counted_and_can_be_forbidden(run: Path) -> None:
    launch = FakeLaunch(
        *[trains(run, step, replace(RUNNING, last_good_checkpoint=f"step-{step + 1}"), KILLED) for step in range(9)]
    )
    assert supervise(launch, run, 2, Stop(), pauses_s=[0.0]) == 137
    assert launch.started == 3
    (run / NO_RESTART).touch()
    assert supervise(launch, run, 2, Stop(), pauses_s=[0.0]) == 137
    assert launch.started == 4


def test_a_request_to_stop_ends_the_pause(run: Path) -> None:
    stop = Stop()

    def attempt(name: str) -> Ended:
        stop.signal = signal.SIGTERM
        return trains(run, 0, RUNNING, KILLED)(name)

    assert supervise(FakeLaunch(attempt), run, 9, stop, pauses_s=[1e6]) == 137
    assert supervise(FakeLaunch(), run, 9, stop, pauses_s=[1e6]) == 75  # nor does an attempt begin after it


@pytest.mark.parametrize("name", ["mine", "another's", ""])
def test_what_killed_ranks_cannot_say_is_said_for_them(name: str, run: Path) -> None:
    replace(RUNNING, start="mine").write(run)
    found = settle(run, name, KILLED)
    status = known_status(run)
    assert found == Outcome(KILLED, status, True)
    assert status is not None
    assert (status.state, status.step, status.reason) == ("failed", 7, "rank 1 was killed by SIGKILL")
    assert status.can_retry
    assert "step-00000004" in status.advice
    assert (run / ".lock").read_text() == ""


@pytest.mark.parametrize("state", ["done", "stopped", "failed"])
def test_only_what_its_own_ranks_wrote_is_an_attempts_news(state: str, run: Path) -> None:
    replace(RUNNING, state=state, start="mine").write(run)
    assert settle(run, "mine", FAULT).is_news
    assert not settle(run, "another's", FAULT).is_news
    assert not settle(run, "", FAULT).is_news


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_run_of_another_process_is_left_alone(run: Path) -> None:
    """However often that writes its status meanwhile."""
    lock = RunLock(run, "another's")
    replace(RUNNING, start="another's").write(run)
    note_attempt(run, {"attempt": 1, "step": 0, "start": "another's"})
    before = files(run)
    assert settle(run, "mine", FAULT) == Outcome(FAULT, known_status(run), False)
    with pytest.raises(
        InUse, match=rf"in use by process {os.getpid()} on .* since .*: wait until that has ended, ask it to stop"
    ):
        supervise(FakeLaunch(), run, 5, Stop())
    assert files(run) == before

    def begins_meanwhile(name: str) -> Ended:
        """The other process has begun after this one had looked."""
        nonlocal lock
        lock = RunLock(run, "another's")
        replace(RUNNING, step=8, start="another's").write(run)
        return FAULT

    lock.release()
    launch = FakeLaunch(begins_meanwhile)
    assert supervise(launch, run, 5, Stop(), pauses_s=[0.0]) == 1
    assert launch.started == 1, "a run of another process is not started again"
    assert read_status(run) == replace(RUNNING, step=8, start="another's", updated_unix_s=updated(run))
    lock.release()


def updated(run: Path) -> float:
    status = known_status(run)
    return status.updated_unix_s if status else 0.0


def test_no_attempt_is_made_of_a_run_that_another_process_took_over(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locks: list[RunLock] = []
    launch = FakeLaunch(*[trains(run, 0, RUNNING, KILLED)] * 2)
    stop = Stop()
    stop.wait = lambda seconds: locks.append(RunLock(run, "another's"))  # type: ignore[method-assign]
    assert supervise(launch, run, 5, stop, pauses_s=[0.0]) == 1
    assert launch.started == 1
    assert f"no other attempt: run_dir {run} is in use by process" in capsys.readouterr().out
    locks[0].release()


def test_a_damaged_status_does_not_fail_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "status.json").write_text("{")
    assert known_status(run) is None
    assert "damaged" in capsys.readouterr().err


def test_a_run_that_never_was_stays_nothing(tmp_path: Path) -> None:
    assert settle(tmp_path / "run", "mine", FAULT) == Outcome(FAULT, None, False)
    assert not (tmp_path / "run").exists()


def test_the_first_attempt_needs_all_hosts_and_later_ones_resume_on_those_that_are_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = (Host("node1", 2), Host("ada@node2", 2), Host("node3", 1))
    launch = OnHosts(hosts, [], tmp_path, 1.0, Ssh(), None)
    looks = [Fitness("not reached by ssh: refused"), Fitness(None, 12001), Fitness(None, 12002)]
    monkeypatch.setattr(supervisor, "probe_hosts", lambda *arguments: looks)
    swept = []
    monkeypatch.setattr(supervisor, "end_leftovers", lambda hosts, token, ssh, grace_s: swept.append((hosts, token)))
    with pytest.raises(UserError, match="node1: not reached by ssh: refused"):
        launch.prepare(1)
    assert launch.prepare(2) == "3 rank(s) on ada@node2 (2), node3 (1); they meet at node2:12001"
    assert "node1: not reached" in capsys.readouterr().err
    assert swept == [(hosts[1:], launch.token)]
    looks[1:] = [Fitness("disk"), Fitness("memory")]
    with pytest.raises(UserError, match="node3: memory"):
        launch.prepare(2)


def test_real_processes_are_started_again_on_another_port(
    run: Path, fake_rank: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "from maskloom.status import Status, note_attempt\n"
        f"run = Path({str(run)!r})\n"
        "ports = here / f'ports-{rank}'\n"
        "with ports.open('a') as file: file.write(os.environ['MASTER_PORT'] + ' ')\n"
        "attempt = len(ports.read_text().split())\n"
        "if rank == 0:\n"
        "    start = os.environ['MASKLOOM_START']\n"
        "    note_attempt(run, {'attempt': attempt, 'step': attempt, 'start': start})\n"
        "    Status('running', attempt, 3, attempt, last_good_checkpoint=f'step-{attempt}', start=start).write(run)\n"
        "    (here / f'begun-{attempt}').touch()\n"
        "while not (here / f'begun-{attempt}').exists(): time.sleep(0.01)\n"
        "if attempt < 3 and rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if attempt < 3: time.sleep(60)\n"
        "if rank == 0: Status('done', 3, 3, attempt, start=start).write(run)\n"
    )
    monkeypatch.setattr(supervisor, "run_ranks", functools.partial(run_ranks, failed_grace_s=0.2))
    assert supervise(OnThisMachine(fake_rank(body), 2, run, 60.0), run, 2, Stop(), pauses_s=[0.0]) == 0
    ports = (tmp_path / "ports-0").read_text().split()
    assert len(set(ports)) == 3
    assert ports == (tmp_path / "ports-1").read_text().split()
