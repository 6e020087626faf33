"""The live line of a training run in a terminal: what it does, how far it is, the loss, and the time left.

    training  37% ━━━━━━━━━─────────────── 74/200 | loss 6.9123 | 12,345 tokens/s | 1:23 left

A thread of its own draws it, a few times a second. It reads numbers that others leave here, so a step does not wait for it.
Messages appear above it: `progress` takes the line away before it prints one. Without a terminal there is no line at all.

The cursor stays at the beginning of the line. So what others print to the terminal, such as another rank or a library, does
not end up behind it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from maskloom import early
from maskloom.progress import COLUMNS, add_drawn, drawing, duration, is_drawn, is_plain, remove_drawn, styled

DRAW_S = 0.25
BAR_COLUMNS = range(8, 25)
"""Fewest and most columns of the bar."""
ERASE = "\r\x1b[K"
UTF8 = "utf-8"


@dataclass
class Figures:
    """What the line shows. None: not known yet.

    Attributes:
        doing: what the run does, in a word or two, and its optimizer steps done.
        left_s: seconds from the end of a step to the end of the run.
    """

    doing: Callable[[], tuple[str, int]] = lambda: ("starting", 0)
    total_steps: int | None = None
    loss: float | None = None
    held_out_loss: float | None = None
    tokens_per_s: float | None = None
    left_s: Callable[[int], float | None] = lambda _: None
    began_s: float = field(default_factory=time.monotonic)


_figures: Figures | None = None
"""Of the line that is drawn."""


def is_possible() -> bool:
    """Whether all output goes to a terminal that can draw."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr)) and not is_plain()


@contextlib.contextmanager
def live_line(doing: Callable[[], tuple[str, int]] | str, is_wanted: bool = True) -> Iterator[None]:
    """Draw the line during the block, if the program runs in a terminal. Inside another such block, the line shows this
    until the inner block ends.

    Args:
        doing: what is done, or a function that tells it together with the steps done.
    """
    global _figures
    known = doing if callable(doing) else lambda: (doing, 0)
    if not is_wanted or (_figures is None and not is_possible()):
        yield
    elif _figures is not None:
        before, _figures.doing = _figures.doing, known
        try:
            yield
        finally:
            _figures.doing = before
    else:
        _figures = Figures(known)
        try:
            with _Line(_figures, sys.stderr):
                yield
        finally:
            _figures = None


@contextlib.contextmanager
def below_a_rank() -> Iterator[None]:
    """During the block a rank may draw its line in this program's terminal: messages take that line away first."""
    line = _RanksLine(sys.stderr)
    if is_possible():
        add_drawn(line)
    try:
        yield
    finally:
        if is_drawn(line):
            remove_drawn(line)
            line.clear()


def show_live(
    *,
    total_steps: int | None = None,
    loss: float | None = None,
    held_out_loss: float | None = None,
    tokens_per_s: float | None = None,
    left_s: Callable[[int], float | None] | None = None,
) -> None:
    """Change what the line shows, if one is drawn. It costs nothing: the line's own thread reads it later."""
    if _figures is None:
        return
    _figures.total_steps = total_steps or _figures.total_steps
    _figures.loss = _figures.loss if loss is None else loss
    _figures.held_out_loss = held_out_loss or _figures.held_out_loss
    _figures.tokens_per_s = tokens_per_s or _figures.tokens_per_s
    _figures.left_s = left_s or _figures.left_s


@dataclass
class _RanksLine:
    """A line that another process draws."""

    stream: TextIO

    def clear(self) -> None:
        """Take it away, in case it is there; that process brings it back."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(ERASE)
            self.stream.flush()

    def refresh(self) -> None:
        """Not ours to draw."""


class _Line:
    """Draws while it is entered."""

    def __init__(self, figures: Figures, stream: TextIO) -> None:
        self.figures, self.stream, self._drawn = figures, stream, ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="live line", daemon=True)

    def __enter__(self) -> None:
        early.ERASE = ERASE.encode()
        add_drawn(self)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join(timeout=1.0)
        remove_drawn(self)
        self.clear()
        early.ERASE = b""

    def clear(self) -> None:
        """Take the line away; the next `refresh` brings it back."""
        if self._drawn:
            self._drawn = ""
            self._write(ERASE)

    def refresh(self) -> None:
        """Draw the line, if it changed."""
        if self._is_over.is_set() or not self._is_in_foreground():
            return
        is_utf8 = (self.stream.encoding or "").lower() == UTF8
        text = text_of(self.figures, time.monotonic(), self._columns() - 1, is_utf8)
        if text != self._drawn:
            self._drawn = text
            self._write(f"\r{text}\x1b[K\r")

    def _draw(self) -> None:
        while True:
            with drawing():
                if is_drawn(self):  # the end of the program takes it away for good
                    self.refresh()
            if self._is_over.wait(DRAW_S):
                return

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self.stream.write(text)
            self.stream.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or COLUMNS
        except (OSError, ValueError):
            return COLUMNS

    def _is_in_foreground(self) -> bool:
        """Not behind `&`, where a shell writes its own line. A rank has a session of its own, and cannot tell."""
        try:
            return os.tcgetpgrp(self.stream.fileno()) == os.getpgrp()
        except (OSError, ValueError):
            return True


def text_of(figures: Figures, now_s: float, columns: int, is_utf8: bool = True) -> str:
    """The line, in at most so many columns: what does not fit is left out, the least important first."""
    what, step = figures.doing()
    total = figures.total_steps
    if not total:
        return f"{what} {duration(now_s - figures.began_s)}"[:columns]
    left_s, elapsed_s = figures.left_s(step), now_s - figures.began_s
    parts = {  # in the order of the line
        "what": what,
        "share": f"{step / total:4.0%}",
        "bar": "",
        "step": f"{step:,}/{total:,}",
        "loss": "" if figures.loss is None else f"| loss {figures.loss:.4f}",
        "held-out": "" if figures.held_out_loss is None else f"| held-out {figures.held_out_loss:.4f}",
        "rate": "" if figures.tokens_per_s is None else f"| {figures.tokens_per_s:,.0f} tokens/s",
        "left": f"| {duration(elapsed_s)}" if left_s is None else f"| {duration(left_s)} left",
    }
    room = columns
    kept: set[str] = set()
    for name in ("step", "loss", "left", "share", "what", "rate", "held-out"):
        needed = len(parts[name]) + bool(kept)
        if parts[name] and needed <= room:
            kept.add(name)
            room -= needed
    if room > BAR_COLUMNS[0]:
        kept.add("bar")
        parts["bar"] = _bar(step / total, min(room - 1, BAR_COLUMNS[-1]), is_utf8)
    if parts["loss"]:
        parts["loss"] = f"| {styled(parts['loss'].removeprefix('| '), 'bold')}"
    return " ".join(part for name, part in parts.items() if name in kept)


def _bar(share: float, columns: int, is_utf8: bool) -> str:
    done = int(min(share, 1.0) * columns)
    return ("━" if is_utf8 else "#") * done + ("─" if is_utf8 else "-") * (columns - done)
