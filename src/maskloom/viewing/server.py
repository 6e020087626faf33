"""TensorBoard in this process, and the address of its first page with the six cards that answer most questions.

It runs on a thread. So it ends with this process, however that ends, and a signal needs no second process to reach.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlencode

from maskloom.errors import UserError
from maskloom.tags import HELD_OUT, PINNED
from maskloom.world import free_port

DEFAULT_PORT = 6006
SAMPLES = "scalars=10000,text=100"
"""Points that TensorBoard keeps of each curve and text; its own default of 1,000 leaves points out at random."""
ANSWERS_WITHIN_S = 120.0
LOADS_WITHIN_S = 10.0
"""A run that has just begun may have nothing to load."""
TRIES = 3
"""Of starting, if another program takes the port in between."""


def chosen_port(host: str, port: int | None) -> int:
    """The port to listen on.

    Args:
        port: None for TensorBoard's usual one, or a free one if that is in use. 0 for any.

    Raises:
        UserError: the port is in use, or the address cannot be listened on.
    """
    try:
        return free_port(host, DEFAULT_PORT if port is None else port)
    except (OSError, OverflowError) as error:
        if port is None:
            with contextlib.suppress(OSError):
                return free_port(host)
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot listen on port {DEFAULT_PORT if port is None else port} of {host} ({why}): another program uses it, most "
            "likely. Give another one with --port, or --port 0 for a free one"
        ) from None


def serve(folder: Path, host: str, port: int | None, title: str, samples: str = SAMPLES) -> str:
    """Start TensorBoard over a folder, on a thread. Returns its address once it answers.

    Args:
        port: as in `chosen_port`.
        samples: most points of a curve, as TensorBoard takes it.

    Raises:
        UserError: it does not start.
    """
    from tensorboard.program import TensorBoardPortInUseError

    for _ in range(TRIES):
        try:
            url = _launched(folder, host, chosen_port(host, port), title, samples)
        except TensorBoardPortInUseError:  # another program was faster
            continue
        _wait_for(url)
        return url
    raise UserError("TensorBoard found no port to listen on: give one with --port")


def _launched(folder: Path, host: str, port: int, title: str, samples: str) -> str:
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_plugins())
    arguments = ["--logdir", str(folder), "--host", host, "--port", str(port)]
    arguments += ["--window_title", title, "--samples_per_plugin", samples]
    notes = io.StringIO()
    try:
        with contextlib.redirect_stderr(notes):  # a note on its fast loader
            board.configure(argv=["tensorboard", *arguments])
            return str(board.launch())
    except program.TensorBoardPortInUseError:
        raise
    except SystemExit:  # what its parser, or a plugin, had to say
        raise UserError(f"TensorBoard does not start: {' '.join(notes.getvalue().split())}") from None
    except (program.TensorBoardServerException, ValueError) as error:
        raise UserError(f"TensorBoard does not start: {error}") from None


def _wait_for(url: str) -> None:
    """Wait until TensorBoard answers, and a little longer for the first run: a page that is opened before stays empty."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's loopback
    deadline_s, loaded_by_s = (time.monotonic() + seconds for seconds in (ANSWERS_WITHIN_S, LOADS_WITHIN_S))
    while True:
        try:
            with opener.open(f"{url}data/runs", timeout=10) as answer:
                if json.load(answer) or time.monotonic() > loaded_by_s:
                    return
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise UserError(f"TensorBoard does not answer at {url}: {error}") from None
        time.sleep(0.1)


def first_page(url: str, is_several: bool) -> str:
    """The address of the first page: the pinned cards in their order, and curves as they are, not smoothed.

    Args:
        is_several: hide the second line of the loss, of which each run has one.
    """
    pins = json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED], separators=(",", ":"))
    page = f"{url}?" + urlencode({"pinnedCards": pins, "smoothing": "0"}, quote_via=quote)
    return page + (f"&runFilter={quote(f'^(?!.*/{HELD_OUT}$)', safe='')}" if is_several else "")
