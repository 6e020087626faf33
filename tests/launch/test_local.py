"""Ranks on this machine: honest exit codes, requests passed on once, nobody left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskloom.distributed import World
from maskloom.launch.ending import Ended, Stop
from maskloom.launch.local import _first_failed, run_ranks
from maskloom.launch.probe import free_port
from tests.waiting import PATIENCE_S, lives, wait_until

FakeRank = Callable[[str], list[str]]
LONG_S = 120.0
SLEEP = f"time.sleep({LONG_S})\n"
STOPPABLE = (
    "def stop(number, frame):\n"
    "    with (here / f'signals-{rank}').open('a') as file: file.write(f'{number} ')\n"
    "    sys.exit(75)\n"
    "for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP): signal.signal(number, stop)\n"
    "READY\n"
)


def run(command: list[str], stop: Stop | None = None, grace_s: float = LONG_S) -> Ended:
    """Two ranks; where one fails the other has half a second."""
    return run_ranks(command, 2, free_port(14000), stop or Stop(), grace_s, failed_grace_s=0.5)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("", 0, "all ranks ended well"),
        ("sys.exit(75)", 75, "saved and stopped"),
        ("sys.exit(75 * rank)", 75, "saved and stopped"),
        ("sys.exit(3 * rank)", 3, "rank 1 ended with exit code 3"),
        ("if rank == 0: os.kill(os.getpid(), signal.SIGKILL)\n" + SLEEP, 137, "rank 0 was killed by SIGKILL"),
        ("if rank == 1: os.kill(os.getpid(), signal.SIGSEGV)\n" + SLEEP, 139, "rank 1 was killed by SIGSEGV"),
        ("sys.exit(76)", 76, "waited too long for others"),
        ("sys.exit(200)", 200, "exit code 200"),
    ],
)
def test_the_exit_code_is_honest(body: str, code: int, words: str, fake_rank: FakeRank) -> None:
    ended = run(fake_rank(body))
    assert ended.code == code
    assert words in ended.what


def test_the_others_of_a_failed_rank_may_report_then_are_ended(
    fake_rank: FakeRank, rank_pids: Callable[[int], list[int]], tmp_path: Path
) -> None:
    deaf = "signal.signal(signal.SIGTERM, lambda *_: (here / 'told').touch())\nREADY\n"
    fails = "if rank == 0:\n    while not (here / 'pid-1').exists(): time.sleep(0.01)\n    sys.exit(5)\n"
    ended = run(fake_rank(f"{deaf}{fails}while True: time.sleep(1)\n"))
    assert (ended.code, ended.what) == (5, "rank 0 ended with exit code 5")
    assert (tmp_path / "told").exists()
    assert not any(map(lives, rank_pids(2)))


def test_a_rank_killed_by_a_signal_is_the_cause_where_others_failed_with_it() -> None:
    ranks = [SimpleNamespace(returncode=code, poll=lambda code=code: code) for code in (1, None, 76, -9, -6, 75, 0)]
    assert _first_failed(ranks) == 3  # type: ignore[arg-type]
    assert _first_failed(ranks[:3]) == 0  # type: ignore[arg-type]
    assert _first_failed([ranks[1], *ranks[5:]]) is None  # type: ignore[list-item]


def asked(number: signal.Signals, when: Callable[[], object]) -> Stop:
    """A request that comes once `when` returns."""
    stop = Stop()

    def ask() -> None:
        when()
        stop.signal = number

    threading.Thread(target=ask, daemon=True).start()
    return stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_request_is_passed_on_once_and_waited_for(
    number: signal.Signals, fake_rank: FakeRank, rank_pids: Callable[[int], list[int]], tmp_path: Path
) -> None:
    ended = run(fake_rank(STOPPABLE + SLEEP), stop=asked(number, lambda: rank_pids(2)))
    assert ended.code == 75
    for rank in range(2):
        assert (tmp_path / f"signals-{rank}").read_text() == f"{int(number)} "


def test_ranks_that_do_not_stop_in_time_are_killed(fake_rank: FakeRank, rank_pids: Callable[[int], list[int]]) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nREADY\n" + SLEEP
    ended = run(fake_rank(deaf), stop=asked(signal.SIGTERM, lambda: rank_pids(2)), grace_s=0.5)
    assert ended.code == 137
    assert "did not stop in time" in ended.what
    assert not any(map(lives, rank_pids(2)))


def test_a_request_before_the_ranks_have_begun_is_not_a_failure(
    fake_rank: FakeRank, rank_pids: Callable[[int], list[int]]
) -> None:
    ended = run(fake_rank(SLEEP), stop=asked(signal.SIGTERM, lambda: rank_pids(2)))
    assert (ended.code, ended.what) == (75, "the ranks were asked to stop before they had begun")


def test_a_rank_that_stays_when_the_others_have_ended_is_killed(fake_rank: FakeRank) -> None:
    ended = run(fake_rank("if rank == 0: sys.exit(0)\n" + SLEEP), grace_s=0.5)
    assert ended.code == 76
    assert "rank 1" in ended.what


LAUNCHER = """
import signal, sys
for number in (signal.SIGHUP, signal.SIGUSR1): signal.signal(number, signal.SIG_DFL)  # nohup has them start deaf
from maskloom.distributed import World
from maskloom.launch.ending import Stop
from maskloom.launch.local import run_ranks
with Stop() as stop:
    sys.exit(run_ranks(sys.argv[1:], 2, 14500, stop, 120.0).code)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_a_launcher_that_is_killed_leaves_no_rank(
    number: signal.Signals,
    fake_rank: FakeRank,
    rank_pids: Callable[[int], list[int]],
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    deaf = "for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\nREADY\n" + SLEEP
    launcher = started([sys.executable, "-c", LAUNCHER, *fake_rank(deaf)])
    pids = rank_pids(2)
    assert all(map(lives, pids))
    launcher.send_signal(number)
    assert launcher.wait(PATIENCE_S / 2) == -number  # before the ranks' sleep ends
    wait_until(lambda: not any(map(lives, pids)), "the ranks to die with the launcher")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP])
def test_signals_to_the_launcher_stop_the_ranks(
    number: signal.Signals,
    fake_rank: FakeRank,
    rank_pids: Callable[[int], list[int]],
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    launcher = started([sys.executable, "-c", LAUNCHER, *fake_rank(STOPPABLE + SLEEP)])
    rank_pids(2)
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 75
    assert f"{number.name}: the ranks end their step and save" in output


def test_ctrl_c_twice_ends_the_ranks_at_once(
    fake_rank: FakeRank,
    rank_pids: Callable[[int], list[int]],
    started: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    deaf = (
        "signal.signal(signal.SIGINT, lambda *_: (here / f'told-{rank}').touch())\nREADY\nwhile True: time.sleep(1)\n"
    )
    launcher = started([sys.executable, "-c", LAUNCHER, *fake_rank(deaf)])
    pids = rank_pids(2)
    launcher.send_signal(signal.SIGINT)
    wait_until(lambda: all((tmp_path / f"told-{rank}").exists() for rank in range(2)), "Ctrl-C to arrive")
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert not any(map(lives, pids))


def test_a_parent_that_died_first_is_noticed() -> None:
    """The request to the kernel came too late: the process sees that its parent is another one."""
    command = [sys.executable, "-m", "maskloom.launch.leftovers", "tie", "1", sys.executable, "-c", "print('ran')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (137, "")


def test_ranks_know_who_they_are(fake_rank: FakeRank, tmp_path: Path) -> None:
    run(fake_rank("import json\n(here / f'env-{rank}').write_text(json.dumps(dict(os.environ)))"))
    worlds = [World.discover(json.loads((tmp_path / f"env-{rank}").read_text())) for rank in range(2)]
    parts = [(world.rank, world.size, world.local_rank, world.local_size) for world in worlds]
    assert parts == [(0, 2, 0, 2), (1, 2, 1, 2)]
    assert {world.master_addr for world in worlds} == {"127.0.0.1"}
