"""The live line: what it shows in how many columns, and that it leaves a terminal as plain lines would."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.terminal_picture import Screen

from maskloom import early, live, progress
from maskloom.live import Figures, live_line, show_live, text_of

FULL = Figures(lambda: ("training", 50), 200, 6.5, 6.75, 12345.0, lambda step: 200.0 - step, 0.0)
STYLE = re.compile(r"\x1b\[[0-9]*m")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (
            200,
            f"training  25% {6 * '━'}{18 * '─'} 50/200 | loss 6.5000 | held-out 6.7500 | 12,345 tokens/s | 2:30 left",
        ),
        (83, "training  25% 50/200 | loss 6.5000 | held-out 6.7500 | 12,345 tokens/s | 2:30 left"),
        (70, "training  25% 50/200 | loss 6.5000 | 12,345 tokens/s | 2:30 left"),
        (46, "training  25% 50/200 | loss 6.5000 | 2:30 left"),
        (33, "50/200 | loss 6.5000 | 2:30 left"),
        (20, "50/200 | loss 6.5000"),
        (8, "50/200"),
        (3, ""),
    ],
)
def test_what_does_not_fit_is_left_out(columns: int, text: str) -> None:
    shown = text_of(FULL, 9.0, columns)
    assert len(shown) <= columns
    assert not text or shown == text
    assert "50/200" in shown or columns < 6


def test_without_unicode_the_bar_is_ascii() -> None:
    assert f" {6 * '#'}{18 * '-'} " in text_of(FULL, 9.0, 200, is_utf8=False)


def test_before_the_first_step_it_says_what_is_done_and_for_how_long() -> None:
    figures = Figures(lambda: ("loading the model", 0), began_s=0.0)
    assert text_of(figures, 65.0, 80) == "loading the model 1:05"
    assert text_of(figures, 65.0, 7) == "loading"
    figures.total_steps = 10
    assert text_of(figures, 65.0, 40) == "loading the model   0% 0/10 | 1:05"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A terminal, which `use(terminal)` makes standard output and error. Called, it closes, and gives what came out."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    reader, writer = pty.openpty()
    came: list[bytes] = []

    def read() -> None:
        while True:
            try:
                came.append(os.read(reader, 4096))
            except OSError:  # the other side is closed
                return

    thread = threading.Thread(target=read)
    thread.start()
    stream = os.fdopen(writer, "w", encoding="utf-8")

    def close() -> str:
        stream.close()
        thread.join()
        return b"".join(came).decode()

    close.stream = stream
    yield close
    close()
    os.close(reader)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Called in the test itself: pytest has streams of its own for the fixtures."""

    def put(terminal: Any) -> None:
        monkeypatch.setattr("sys.stdout", terminal.stream)
        monkeypatch.setattr("sys.stderr", terminal.stream)

    return put


def screen(text: str) -> list[str]:
    """The lines of a terminal that got the text, without styles."""
    shown = Screen(columns=1000)
    shown.feed(text)
    return shown.text()


def test_messages_stand_above_it_and_nothing_is_left_of_it(
    terminal: Callable[[], str], use: Callable[..., None]
) -> None:
    use(terminal)
    read: list[str] = []
    progress.add_reader(read.append)
    with live_line("loading torch"):
        progress.say("step 1")
        with live_line(lambda: ("training", 1)):
            show_live(total_steps=4, loss=2.5)
            progress.warn("careful")
        assert early.ERASE
    progress.remove_reader(read.append)
    assert not early.ERASE
    progress.say("done")
    text = terminal()
    assert screen(text) == ["step 1", "WARNING: careful", "done", ""]
    assert "loading torch 0:00" in text
    assert re.search(r"training  25% .* 1/4 \| \x1b\[1mloss 2.5000\x1b\[0m", text)
    assert "\x1b[33mWARNING: careful\x1b[0m" in text
    assert read == ["step 1", "WARNING: careful"]  # what a log gets


def test_a_message_takes_the_line_of_a_rank_away(terminal: Callable[[], str], use: Callable[..., None]) -> None:
    use(terminal)
    with live.below_a_rank():
        terminal.stream.write("training  25% 50/200 | loss 6.5000\r")
        progress.warn("killed")
        terminal.stream.write("training  26% 52/200 | loss 6.5000\r")
    progress.say("failed")
    assert screen(terminal()) == ["WARNING: killed", "failed", ""]


def test_what_ends_the_program_takes_it_away(terminal: Callable[[], str], use: Callable[..., None]) -> None:
    use(terminal)
    with live_line("training"):
        progress.complain("failed")
        progress.flush()  # `program.end` calls it, and the block is never left
        time.sleep(2 * live.DRAW_S)
        text = terminal()
    assert screen(text) == ["failed", ""]


def test_no_color_means_no_color(
    terminal: Callable[[], str], use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    with live_line("training"):
        show_live(total_steps=4, loss=2.5)
        progress.warn("careful")
    text = terminal()
    assert "loss 2.5000" in text
    assert not STYLE.search(text)


def test_a_terminal_that_cannot_draw_gets_plain_lines(
    terminal: Callable[[], str], use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(terminal)
    monkeypatch.setenv("TERM", "dumb")
    with live_line("training"):
        progress.warn("careful")
    assert terminal() == "WARNING: careful\r\n"


def test_only_the_first_rank_draws(terminal: Callable[[], str], use: Callable[..., None]) -> None:
    use(terminal)
    with live_line("training", is_wanted=False):
        show_live(total_steps=4)
    assert terminal() == ""


def test_without_a_terminal_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with live_line("training"):
        show_live(total_steps=4, loss=2.5)
        progress.say("step 1")
    assert capsys.readouterr() == ("step 1\n", "")


def test_a_run_in_a_terminal_leaves_its_plain_lines(
    run_config: dict, write_config: Callable[[dict], Path], tmp_path: Path
) -> None:
    run_config["run_dir"] = str(tmp_path / "run")
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "maskloom.cli", "train", str(write_config(run_config)), "--processes", "1"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(command, stdout=writer, stderr=writer, env=environment, start_new_session=True)
    os.close(writer)
    came = b""
    while True:
        try:
            came += os.read(reader, 4096)
        except OSError:
            break
    os.close(reader)
    assert process.wait() == 0
    text, log = came.decode(), (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert "loading torch 0:00" in text
    assert "training 100%" in text
    assert "\x1b" not in log
    said = [re.sub(r"^[-0-9]+ [:0-9]+ ", "", line) for line in log.splitlines()]
    lines = screen(text)
    assert lines[-1] == ""
    assert lines[:-1] == [line for line in said if not line.startswith("----")]
