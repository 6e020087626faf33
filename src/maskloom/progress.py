"""Everything that maskloom prints: messages, results, and the progress of long work.

`say`, `warn` and `complain` print messages, and lose them rather than end a run. `show` prints a result, and fails if it cannot.
Progress is a bar on a terminal, and a line every few seconds otherwise. In a terminal warnings and errors have a colour, unless
NO_COLOR is set (https://no-color.org).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol, TextIO

from tqdm import tqdm

from maskloom.errors import UserError
from maskloom.redaction import printable, redacted, sayable

SECONDS_BETWEEN_LINES = 5.0
COLUMNS, ROWS = 80, 24
"""Size of a terminal that does not tell its own."""

_readers: list[Callable[[str], None]] = []
LOCK_S = 1.0
"""Longest wait for another thread that draws: its terminal may stand still (Ctrl-S), and messages must not."""
STYLES = {"bold": "1", "warning": "33", "error": "31"}
"""Name -> its number among the escape sequences of terminals."""


class Drawn(Protocol):
    """What stands in the last line of the terminal: messages take it away and bring it back."""

    def clear(self) -> object: ...

    def refresh(self) -> object: ...


_drawn: list[Drawn] = []
_lock = threading.RLock()


def add_reader(reader: Callable[[str], None]) -> None:
    """Call `reader` with every message from now on. A log of this process is such a reader."""
    _readers.append(reader)


def remove_reader(reader: Callable[[str], None]) -> None:
    _readers.remove(reader)


def add_drawn(drawn: Drawn) -> None:
    """Take this away before each message, and draw it again below."""
    _drawn.append(drawn)


def remove_drawn(drawn: Drawn) -> None:
    _drawn[:] = [each for each in _drawn if each is not drawn]


def is_drawn(drawn: Drawn) -> bool:
    return any(each is drawn for each in _drawn)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Nobody else prints or draws in the block, unless that takes very long."""
    is_mine = _lock.acquire(timeout=LOCK_S)
    try:
        yield
    finally:
        if is_mine:
            _lock.release()


def is_plain() -> bool:
    """Whether the terminal can only print lines."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style, if the stream (stderr) is a terminal with colours and nobody asked for none."""
    stream = stream or sys.stderr
    if os.environ.get("NO_COLOR") or stream is None or not stream.isatty() or is_plain():
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def say(message: str) -> None:
    """Print one line and flush it, so that it is not lost if the process is killed."""
    _tell(sayable(message))


def warn(message: str) -> None:
    """Print one line on stderr, apart from a command's output."""
    _tell(f"WARNING: {sayable(message)}", to_stderr=True, style="warning")


def complain(message: str) -> None:
    """Print on stderr what ended the program."""
    _tell(sayable(message), to_stderr=True, style="error")


def show(text: str) -> None:
    """Print the result of a command on stdout, of any length. Unlike a message it must arrive.

    Raises:
        BrokenPipeError: the reader is gone, as with `| head`.
        UserError: it cannot be written, for example because the disk is full.
    """
    with _arriving():
        print(printable(redacted(text)), flush=True)


def show_json(value: object, indent: int | None = None) -> None:
    """Print the result of a command for a program: one JSON object of plain values, in ASCII.

    It has null for a number that is not finite. Secrets are taken out of each text by itself: in the whole they could take a
    quote with them.

    Raises:
        BrokenPipeError, UserError: as `show`.
    """
    text = json.dumps(_for_json(value), indent=indent, allow_nan=False)
    with _arriving():
        print(text.replace("\x7f", r"\u007f"), flush=True)  # the one control character that json leaves as it is


def _for_json(value: object) -> object:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_for_json(key): _for_json(each) for key, each in value.items()}
    return [_for_json(each) for each in value] if isinstance(value, list | tuple) else value


def show_path(path: Path) -> None:
    """Print a path for a script. A file or a pipe gets its exact bytes, a terminal what `show` prints."""
    if sys.stdout.isatty() or not isinstance(sys.stdout, io.TextIOWrapper):
        show(str(path))
        return
    with _arriving():
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.flush()


@contextlib.contextmanager
def _arriving() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"standard output cannot be written: {error.strerror}. What was to be printed is lost"
        ) from None


def _tell(line: str, to_stderr: bool = False, style: str | None = None) -> None:
    for reader in _readers:
        reader(line)
    # The reader may be gone (`| head`), the disk of a log full, or the stream closed by a library. That should not end a run.
    with drawing(), contextlib.suppress(OSError, ValueError):
        for drawn in _drawn:  # otherwise the line would begin behind it
            drawn.clear()
        print(styled(line, style) if style else line, file=sys.stderr if to_stderr else sys.stdout, flush=True)
        for drawn in _drawn:
            drawn.refresh()


@contextlib.contextmanager
def noted_when_slow(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` once, from another thread, if the block takes more than SECONDS_BETWEEN_LINES."""
    late = threading.Timer(SECONDS_BETWEEN_LINES, note)
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def flush() -> None:
    """Flush the standard streams before the program ends.

    What is drawn is taken away. If flushing fails, send the rest to /dev/null: otherwise the interpreter would try again and
    change the exit code.
    """
    with drawing(), contextlib.suppress(OSError):
        while _drawn:
            _drawn.pop().clear()
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def size(count: float) -> str:
    """A number of bytes for people: `7.5 KiB`."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:.0f} B"


def tokens(count: int) -> str:
    """A number of tokens for people, as a configuration takes it but rounded: `1.719T`, `36.7B`, `512`."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= scale:
            return f"{count / scale:.4g}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    """`3725.2` -> `1:02:05`, `125` -> `2:05`."""
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Counts work done and shows the rate and the time left on stderr; stdout is for results.

    It is a context manager. `advance` is cheap enough to be called for every unit.

    Args:
        total: units to do; 0 if that is not known.
        unit_scale: units that are shown as one `unit`, such as 1 << 20 bytes as one MiB.
    """

    def __init__(self, what: str, total: float, unit: str = "", unit_scale: float = 1.0) -> None:
        self.what, self.total, self.unit, self.unit_scale = what, total, unit, unit_scale
        self.done = 0.0
        self.started_s = self.last_line_s = time.monotonic()
        self.digits = 1 if unit_scale != 1 else 0
        self.bar = self._bar() if sys.stderr is not None and sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self.bar is not None:
            add_drawn(self.bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            remove_drawn(self.bar)
            self.bar.close()
        elif kind is None and self.last_line_s != self.started_s:
            self._line()

    def advance(self, amount: float) -> None:
        """Add `amount` units. Without a terminal this prints a line at most every SECONDS_BETWEEN_LINES."""
        self.done += amount
        if self.bar is not None:
            self.bar.n = min(self.done, self.total or self.done) / self.unit_scale  # beyond an estimated total: all
            self.bar.update(0)
        elif time.monotonic() - self.last_line_s >= SECONDS_BETWEEN_LINES:
            self._line()

    def _bar(self) -> tqdm[NoReturn]:
        number = f"{{n:,.{self.digits}f}}"
        amounts = f"{number}/{number.replace('n', 'total')}{{unit}}" if self.total else f"{number}{{unit}}"
        before, left = ("{l_bar}{bar}| ", "<{remaining}") if self.total else ("{desc}: ", "")
        return tqdm(
            total=self.total / self.unit_scale or None,
            desc=self.what,
            unit=f" {self.unit}",
            bar_format=f"{before}{amounts} [{{elapsed}}{left}, {{rate_noinv_fmt}}]",
            **({"dynamic_ncols": True} if _columns() else {"ncols": COLUMNS, "nrows": ROWS}),
        )

    def _line(self) -> None:
        self.last_line_s = time.monotonic()
        elapsed_s = self.last_line_s - self.started_s
        _tell(sayable(self.line(elapsed_s)), to_stderr=True)

    def line(self, elapsed_s: float) -> str:
        """One line of text: what is done, the rate, and the time left."""
        rate = self.done / elapsed_s if elapsed_s else 0.0
        done = f"{self.done / self.unit_scale:,.{self.digits}f} {self.unit}"
        per_s = f"{rate / self.unit_scale:,.1f} {self.unit}/s"
        if not self.total:
            return f"{self.what}: {done}, {per_s}"
        left = duration((self.total - self.done) / rate) if rate else "?"
        return f"{self.what}: {min(self.done / self.total, 1.0):.0%}, {done}, {per_s}, {left} left"


def _columns() -> int:
    """Width of the terminal on stderr; 0 if it does not tell."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 0
