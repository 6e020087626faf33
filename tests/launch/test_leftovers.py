"""What is left of an attempt is found by its token, and nothing else is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from maskloom.launch.leftovers import VARIABLE, end_here
from tests.waiting import lives, wait_until

Started = Callable[..., subprocess.Popen[str]]
DEAF = "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(300)"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {DEAF!r}])"


def test_processes_with_the_token_are_ended_and_those_of_other_attempts_live(started: Started) -> None:
    mine = [started([sys.executable, "-c", program], env={VARIABLE: "a1"}) for program in (DEAF, CHILD)]
    other = started([sys.executable, "-c", DEAF], env={VARIABLE: "a12"})
    for process in (*mine, other):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert end_here("a1", grace_s=0.0, term_grace_s=0.2) == 3  # and what one of them started
    for process in mine:
        process.wait(timeout=60)
    assert lives(other.pid)
    assert end_here("a1", grace_s=0.0) == 0


def test_processes_may_end_by_themselves(started: Started) -> None:
    soon = started([sys.executable, "-c", "import time; time.sleep(0.5)"], env={VARIABLE: "b1"})
    assert end_here("b1", grace_s=60.0) == 0
    assert soon.wait(timeout=60) == 0


GUARDED = """
import sys, time
from pathlib import Path
from maskloom.launch import leftovers
from maskloom.launch.ssh import Ssh
with leftovers.guarded([], "c1", Ssh(), Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(300 if sys.argv[2] == "dies" else 0)
"""


def test_private_files_go_with_a_supervisor_that_is_killed_and_stay_otherwise(started: Started, tmp_path: Path) -> None:
    for how in ("ends", "dies"):
        folder = tmp_path / how
        folder.mkdir()
        supervisor = started([sys.executable, "-c", GUARDED, str(folder), how])
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "ready\n"
        if how == "ends":
            assert supervisor.wait(timeout=60) == 0
            assert folder.exists()
        else:
            supervisor.kill()
            wait_until(lambda folder=folder: not folder.exists(), "the private files to be removed")
