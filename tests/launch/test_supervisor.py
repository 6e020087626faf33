"""Attempt after attempt: when there is another one, what status.json says after it, and the exit code of it all."""

from __future__ import annotations

import fcntl
import functools
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
from maskloom.launch.probe import Findings
from maskloom.launch.ssh import Ssh
from maskloom.launch.supervisor import (
    NO_RESTART,
    OnHosts,
    OnThisMachine,
    Outcome,
    final_code,
    known_status,
    no_other,
    settle,
    supervise,
)
from maskloom.status import Status, note_attempt

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
        (outcome("stopped", KILLED), 75),  # the checkpoint is written: the same command goes on
        (outcome(None, STOPPED), 75),
        (outcome("failed", Ended(76, "")), 76),
        (outcome("failed", KILLED), 137),
        (outcome(None, FAULT), 1),
    ],
)
def test_the_exit_code_is_0_only_for_a_run_that_is_done(found: Outcome, code: int) -> None:
    assert final_code(found) == code


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
    """Attempts as a list of functions that leave a status and return how the ranks ended."""

    def __init__(self, *attempts: Callable[[], Ended]) -> None:
        self.attempts, self.started = list(attempts), 0

    def prepare(self, attempt: int) -> str:
        return "fake ranks"

    def start(self, stop: Stop) -> Ended:
        self.started += 1
        return self.attempts.pop(0)()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("run_dir: x\n")
    return folder


def trains(run: Path, begins: int, status: Status, ended: Ended) -> Callable[[], Ended]:
    def attempt() -> Ended:
        note_attempt(run, {"attempt": 1, "step": begins})
        status.write(run)
        return ended

    return attempt


def test_attempts_go_on_until_the_run_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
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

    def attempt() -> Ended:
        stop.signal = signal.SIGTERM
        return trains(run, 0, RUNNING, KILLED)()

    assert supervise(FakeLaunch(attempt), run, 9, stop, pauses_s=[1e6]) == 137
    assert supervise(FakeLaunch(), run, 9, stop, pauses_s=[1e6]) == 75  # nor does an attempt begin after it


def test_what_killed_ranks_cannot_say_is_said_for_them(run: Path) -> None:
    RUNNING.write(run)
    found = settle(run, None, KILLED)
    status = known_status(run)
    assert found == Outcome(KILLED, status, True)
    assert status is not None
    assert (status.state, status.step, status.reason) == ("failed", 7, "rank 1 was killed by SIGKILL")
    assert status.can_retry
    assert "step-00000004" in status.advice


def test_a_status_of_another_running_process_is_left_alone(run: Path) -> None:
    RUNNING.write(run)
    before = known_status(run)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert settle(run, before, FAULT) == Outcome(FAULT, before, False)
    assert known_status(run) == before


def test_a_damaged_status_is_no_reason_to_fail(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "status.json").write_text("{")
    assert known_status(run) is None
    assert "damaged" in capsys.readouterr().err


def test_a_run_that_never_was_stays_nothing(tmp_path: Path) -> None:
    assert settle(tmp_path / "run", None, FAULT) == Outcome(FAULT, None, False)
    assert not (tmp_path / "run").exists()


def test_the_first_attempt_needs_all_hosts_and_later_ones_go_on_with_those_that_are_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = (Host("node1", 2), Host("ada@node2", 2), Host("node3", 1))
    launch = OnHosts(hosts, [], tmp_path, 1.0, Ssh(), None)
    looks = [Findings("not reached by ssh: refused"), Findings(None, 12001), Findings(None, 12002)]
    monkeypatch.setattr(supervisor, "look_at_all", lambda *arguments: looks)
    swept = []
    monkeypatch.setattr(supervisor, "end_leftovers", lambda hosts, token, ssh, grace_s: swept.append((hosts, token)))
    with pytest.raises(UserError, match="node1: not reached by ssh: refused"):
        launch.prepare(1)
    assert launch.prepare(2) == "3 rank(s) on ada@node2 (2), node3 (1); they meet at node2:12001"
    assert "node1: not reached" in capsys.readouterr().err
    assert swept == [(hosts[1:], launch.token)]
    looks[1:] = [Findings("disk"), Findings("memory")]
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
        "    note_attempt(run, {'attempt': attempt, 'step': attempt})\n"
        "    Status('running', attempt, 3, attempt, last_good_checkpoint=f'step-{attempt}').write(run)\n"
        "    (here / f'begun-{attempt}').touch()\n"
        "while not (here / f'begun-{attempt}').exists(): time.sleep(0.01)\n"
        "if attempt < 3 and rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if attempt < 3: time.sleep(60)\n"
        "if rank == 0: Status('done', 3, 3, attempt).write(run)\n"
    )
    monkeypatch.setattr(supervisor, "run_ranks", functools.partial(run_ranks, failed_grace_s=0.2))
    assert supervise(OnThisMachine(fake_rank(body), 2, run, 60.0), run, 2, Stop(), pauses_s=[0.0]) == 0
    ports = (tmp_path / "ports-0").read_text().split()
    assert len(set(ports)) == 3
    assert ports == (tmp_path / "ports-1").read_text().split()
