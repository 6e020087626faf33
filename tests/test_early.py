"""What is in force while a program still imports what it needs: requests to stop, and what torch reads at its import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maskloom import early
from maskloom.status import EXIT_DONE, EXIT_STOPPED
from tests.waiting import wait_until

SRC = Path(__file__).parents[1] / "src"
SLOW = """
import os, time
from pathlib import Path
(Path(__file__).parent / "reached").write_text(os.environ.get("TORCH_CPP_LOG_LEVEL", ""))
time.sleep(120)
"""
RUN = "{run_dir: run, tokenizer: tokenizer, data: {train: shards}, phases: [{steps: 1, global_batch_rows: 8}]}"


@pytest.mark.parametrize("number", early.STOP_SIGNALS)
@pytest.mark.parametrize(
    ("program", "imported"),
    [
        (["maskloom.train", "run.yaml"], "argparse"),  # the first that it imports
        (["maskloom.cli", "train", "run.yaml"], "torch"),  # the slowest
    ],
)
def test_a_stop_amid_the_imports_has_a_clear_end(
    number: signal.Signals, program: list[str], imported: str, tmp_path: Path
) -> None:
    """A module that takes for ever stands in the place of one that takes a while."""
    (tmp_path / f"{imported}.py").write_text(SLOW)
    (tmp_path / "run.yaml").write_text(RUN)  # a wrong one would be refused before the slow import
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(SRC)])
    command = [sys.executable, "-m", *program]
    command = ["env", "--default-signal=HUP", *command]  # also where the tests run under nohup
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as started:
        try:
            wait_until((tmp_path / "reached").exists, f"the import of {imported}")
            started.send_signal(signal.SIGUSR1)  # means nothing
            started.send_signal(number)
            _, said = started.communicate(timeout=60)
        finally:
            started.kill()
    assert started.returncode == EXIT_STOPPED
    assert said == f"maskloom: stopped by {number.name} before the start; nothing was changed\n"
    assert (tmp_path / "reached").read_text() == "ERROR"  # torch reads it when it is imported, and never again


STREAMS = """
import os, sys
from maskloom.early import begin
begin()
kept = open("file", "w")
print("said")
os.write(2, b"by a library")
sys.exit(3 if kept.fileno() > 2 else 4)
"""


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, STREAMS]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SRC)}, cwd=tmp_path, timeout=60, check=False)
    assert ended.returncode == 3
    assert (tmp_path / "file").read_text() == ""


LED = """
import os, signal
from maskloom.early import begin
from maskloom.launch.ending import Stop
from maskloom.train.rank.stopping import Requests
begin()
with {leader} as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print({heard})
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    ("leader", "heard"), [("Requests()", "stop.wait(5) or stop.reason"), ("Stop()", "stop.signal.name")]
)
def test_who_leads_the_run_hears_it_and_afterwards_it_changes_nothing(leader: str, heard: str) -> None:
    program = LED.format(leader=leader, heard=heard)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_DONE, "SIGTERM\n", "")


LEAVES = """
import multiprocessing, os, signal, sys
if sys.argv[1:] == ["quiet"]:
    from maskloom.early import begin
    begin()
kept = multiprocessing.get_context("spawn").Lock()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["quiet", "loud"])
def test_what_a_killed_process_leaves_is_taken_away_without_a_word(how: str) -> None:
    """Python's keeper of semaphores outlives the process, and its messages go where those of the process went."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    environment.pop("PYTHONWARNINGS", None)
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, how], env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert ("leaked" in done.stderr) == (how == "loud"), done.stderr
