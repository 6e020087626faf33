"""How ranks ended, in a code and in words, and the request to stop them.

Exit codes are the ranks' own (status.py), or 128 + N if signal N ended a rank, as in a shell.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from maskloom.early import obeyed, put_back
from maskloom.progress import say
from maskloom.status import EXIT_DONE, EXIT_HUNG, EXIT_STOPPED

POLL_S = 0.1
FAILED_GRACE_S = 15.0
"""After a rank failed: time for the others to notice, to say so and to end."""
TERM_GRACE_S = 5.0
"""Between SIGTERM and SIGKILL, if ranks did not end by themselves."""
WELL = (EXIT_DONE, EXIT_STOPPED)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: the exit code, and why in words."""

    code: int
    what: str


def exit_code(returncode: int) -> int:
    """The code that a shell would have: `subprocess` calls 137 -9."""
    return 128 - returncode if returncode < 0 else returncode


def in_words(code: int) -> str:
    """`was killed by SIGKILL` for 137, `ended with exit code 3` for 3."""
    if code == EXIT_HUNG:
        return f"waited too long for others (exit code {code})"
    try:
        return f"was killed by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"ended with exit code {code}"


class Stop:
    """The request to stop, by a signal to this process; as a context manager it takes SIGTERM, SIGINT, SIGUSR2 and SIGHUP.

    Attributes:
        signal: the first that came, None before.
        urgent: SIGINT came twice: somebody at a terminal waits.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.urgent = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._take) for number in obeyed()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        put_back(self._before)

    @property
    def reason(self) -> str:
        return f"{self.signal.name} to what started the ranks" if self.signal else ""

    def wait(self, seconds: float) -> None:
        """Sleep, or return early once a request comes."""
        until_s = time.monotonic() + seconds
        while not self.signal and time.monotonic() < until_s:
            time.sleep(POLL_S)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.urgent |= number == signal.SIGINT and self.signal == signal.SIGINT
        self.signal = self.signal or signal.Signals(number)


def say_stopping(stop: Stop, grace_s: float) -> None:
    again = "; Ctrl-C again ends them at once" if stop.signal == signal.SIGINT else ""
    say(
        f"{stop.signal.name if stop.signal else 'asked'}: the ranks end their step and save, for at most {grace_s:,.0f} s{again}"
    )
