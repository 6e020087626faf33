"""TensorBoard over runs side by side, for this machine alone.

A folder stands for all runs in it; new ones appear. The page has six cards on top: losses, accuracy, learning rate, norm, speed.
It does not refresh itself: press its arrow. Runs of earlier versions are shown under the same names.

From another machine, look through ssh: the command that this needs is printed. TensorBoard has no log-in. With --allow-remote,
everybody who reaches the port can read the curves and the configuration.

examples:
  maskloom monitor runs
  maskloom monitor runs/first runs/second --open
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import socket
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskloom.commands.arguments import natural
from maskloom.errors import UserError
from maskloom.progress import say, show, warn
from maskloom.redaction import one_line
from maskloom.viewing.links import Links
from maskloom.viewing.server import DEFAULT_PORT, SAMPLES, first_page, serve
from maskloom.world import LARGEST_PORT, LOOPBACK, is_loopback

REFRESH_S = 5.0
"""Time between two looks for new runs; TensorBoard looks as often."""
MOST_NAMES = 8
EVERYWHERE = {"0.0.0.0": "0.0.0.0", "::": "[::]"}
"""Hosts that stand for all addresses of this machine, as they stand in a URL."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="run directory, or a folder of several")
    add("--host", default=LOOPBACK, help="address to listen on (default: %(default)s)")
    port = f"port; 0 takes a free one (default: {DEFAULT_PORT}, or a free one if that is in use)"
    add("--port", type=_port, help=port)
    add("--allow-remote", action="store_true", help="let --host be an address that other machines reach")
    add("--open", action="store_true", help="open the page in a browser")
    add("--window-title", "--window_title", metavar="TEXT", help="title of the page (default: the names of the runs)")
    samples = "most points of a curve, as TensorBoard takes it (default: %(default)s)"
    add("--samples-per-plugin", "--samples_per_plugin", type=_samples, default=SAMPLES, metavar="KIND=N", help=samples)


def run(options: argparse.Namespace) -> int:
    if not options.allow_remote and not is_loopback(options.host):
        port = options.port or DEFAULT_PORT
        raise UserError(
            f"--host {options.host} is an address that other machines reach, and TensorBoard has no log-in: look "
            f"through `ssh -L {port}:{LOOPBACK}:{port} HOST`, or add --allow-remote"
        )
    with _ended_by_signals(), Links(options.runs) as links:
        names = links.refresh()
        title = options.window_title or f"maskloom: {_listed(names)}"
        url = serve(links.folder, options.host, options.port, title, options.samples_per_plugin)
        is_everywhere = options.host in EVERYWHERE
        if is_everywhere:  # what a browser on this machine can open, also one outside of a container
            url = url.replace(f"//{EVERYWHERE[options.host]}:", f"//{LOOPBACK}:")
        page = first_page(url, is_several=len(names) > 1)
        show(f"TensorBoard shows {len(names)} run{'s' * (len(names) > 1)}: {_listed(names)}")
        print(page, flush=True)  # `show` would cut off what follows the `?`
        if is_loopback(options.host):
            port = url.rstrip("/").rpartition(":")[2]
            show("To look from another machine, run this there, and open the same address:")
            host = f"[{options.host}]" if ":" in options.host else options.host
            show(f"ssh -N -L {port}:{host}:{port} {socket.gethostname()}")
        elif is_everywhere:
            show(f"From another machine, put this one's name instead of {LOOPBACK}.")
        show("Ctrl-C ends it.")
        if options.open and not webbrowser.open(page):
            warn("no browser could be opened: open the address above")
        while True:
            time.sleep(REFRESH_S)
            for name in links.refresh():
                say(f"new run: {one_line(name)}")


def _port(text: str) -> int:
    port = natural(text)
    if port > LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{port} is not a port: choose one from 0 to {LARGEST_PORT}")
    return port


def _samples(text: str) -> str:
    if not re.fullmatch(r"\w+=[0-9]+(,\w+=[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=N,..., for example {SAMPLES}")
    return text


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(one_line, names[:MOST_NAMES]))
    return shown + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that what it made is removed. One that is ignored stays so."""

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
