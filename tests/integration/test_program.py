"""How programs end: with the right exit code, within a bound, and with no process left, whatever their readers were at."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskloom.program import EXIT_INTERRUPTED
from tests.data.corpora import corpus_of, flip
from tests.waiting import PATIENCE_S, parent_of, session_of, wait_for_end, wait_until

FOR_EVER = "phases.0.steps=2000000"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program in a session of its own; in the end nothing of it is left."""
    started = []

    def begin(*command: object, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        for pid in session_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and the last words, once nothing of the program's session is left."""
    _, errors = process.communicate(timeout=PATIENCE_S)
    wait_for_end(process.pid)
    return process.returncode, errors


def damaged(run_config: dict, documents: list[str], folder: Path) -> str:
    index = corpus_of(folder / "corpus", documents[:60], 3)
    for block in range(20):
        flip(index, block)
    run_config["data"]["train"] = index.folder
    return "does not fit|has crc32|is damaged"


def without_tokens(run_config: dict, documents: list[str], folder: Path) -> str:
    run_config["data"]["train"] = corpus_of(folder / "corpus", ["\x01 \x02"] * 60, 3).folder
    return "no token"


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (("train",), damaged),
        (("train",), without_tokens),
        (("peek", "--workers", "1"), damaged),
        (("peek", "--workers", "2"), without_tokens),
    ],
)
def test_an_error_that_a_reader_reports_ends_the_command(
    command: tuple[str, ...],
    fault: Callable[..., str],
    run_config: dict,
    documents: list[str],
    tmp_path: Path,
    write_config: Callable[[dict], Path],
    start: Start,
) -> None:
    message = fault(run_config, documents, tmp_path)
    run_config["data"] |= {"workers": 1}
    code, said = end_of(start("-m", "maskloom.cli", command[0], write_config(run_config), *command[1:]))
    assert code == 1
    assert re.search(message, said), said
    assert "Traceback" not in said


def readers_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that read: forked from the server, which is a child of the program."""
    others = [pid for pid in session_of(process.pid) if pid != process.pid]
    return [pid for pid in others if parent_of(pid) in others]


@pytest.fixture
def busy(run_config: dict, write_config: Callable[[dict], Path], start: Start) -> Start:
    """A `peek` that reads with two processes for as long as it is let."""

    def begin(**options: object) -> subprocess.Popen[str]:
        config = write_config(run_config)
        command = ("peek", config, FOR_EVER, "--steps", "0:2000000", "--workers", 2, "--digest")
        process = start("-m", "maskloom.cli", *command, **options)
        wait_until(lambda: len(readers_of(process)) == 2, "two readers")
        return process

    return begin


def test_ctrl_c_ends_a_command_and_its_readers(busy: Start) -> None:
    process = busy()
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    assert end_of(process) == (EXIT_INTERRUPTED, "maskloom peek: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_readers_end_with_a_command_that_a_signal_ends(number: signal.Signals, busy: Start) -> None:
    process = busy()
    process.send_signal(number)
    assert end_of(process)[0] == -number


def test_a_reader_that_is_killed_ends_the_command(busy: Start) -> None:
    process = busy()
    os.kill(readers_of(process)[0], signal.SIGKILL)
    code, said = end_of(process)
    assert code == 1
    assert re.fullmatch("maskloom peek: .*a process was killed, most likely for want of memory: lower .*\n", said)


READS = """
import gc, sys, threading
from multiprocessing import active_children
from maskloom.config_file import load_config
from maskloom.data.cursors import first_cursors
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.program import run_program
from maskloom.tokenizers.loading import load_tokenizer

def main():
    global reading
    config = load_config(sys.argv[1], ["phases.0.steps=2000000"])
    data = config.data, config.phases, config.masking, config.seed
    plan = DataPlan.of(*data, open_corpora(config.data), load_tokenizer(config.tokenizer))
    reading = read_steps(plan, World(), first_cursors(plan.lanes), 0, workers=2)
    next(reading)
    {then}

if __name__ == "__main__":
    {start}
"""


@pytest.mark.parametrize(
    ("then", "started", "code", "said"),
    [
        ("threading.Thread(target=threading.Event().wait).start(); return 3", "run_program('it', main)", 3, ""),
        ("1 / 0", "run_program('it', main)", 1, "Traceback.*ZeroDivisionError: division by zero"),
        ("return 0", "sys.exit(main())", 0, ""),  # somebody's program, which knows nothing of ours
        ("1 / 0", "sys.exit(main())", 1, "Traceback.*ZeroDivisionError: division by zero"),
        ("reading.close(); return len(active_children())", "sys.exit(main())", 0, ""),
        ("del reading; gc.collect(); return len(active_children())", "sys.exit(main())", 0, ""),
    ],
)
def test_a_program_ends_while_its_readers_are_at_work(
    then: str,
    started: str,
    code: int,
    said: str,
    run_config: dict,
    write_config: Callable[[dict], Path],
    tmp_path: Path,
    start: Start,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(READS.format(then=then, start=started))
    ended, errors = end_of(start(script, write_config(run_config)))
    assert ended == code, errors
    assert re.fullmatch(said, errors.strip(), re.DOTALL), errors


@pytest.mark.parametrize(
    ("does", "code", "said"),
    [
        ("return 3", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(4)", 4, ""),
        ("sys.exit('so it ends')", 1, "so it ends\n"),
        ("raise UserError('bad input')", 1, "it: bad input\n"),
        ("raise OSError(28, 'No space left on device')", 1, "it: [Errno 28] No space left on device\n"),
        ("raise BrokenPipeError()", 1, ""),
        ("raise KeyboardInterrupt", EXIT_INTERRUPTED, "it: interrupted\n"),
    ],
)
def test_every_end_has_its_code_and_its_words(does: str, code: int, said: str, start: Start) -> None:
    script = f"""
import sys
from maskloom.errors import UserError
from maskloom.program import run_program
def main():
    {does}
run_program("it", main)
"""
    assert end_of(start("-c", script)) == (code, said)


RAISES = """
from maskloom.program import run_program
def main():
    raise RuntimeError("\\x1b[31mred \\u202e")
run_program("it", main)
"""


def test_what_a_traceback_quotes_is_escaped(start: Start) -> None:
    code, said = end_of(start("-c", RAISES))
    assert code == 1
    assert said.endswith("RuntimeError: \\x1b[31mred \\u202e\n")
