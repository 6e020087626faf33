"""TensorBoard over a run, or a folder of runs, for this machine alone.

From another machine, look through ssh: `ssh -L 6006:127.0.0.1:6006 HOST`. TensorBoard has no log-in. With --allow-remote,
everybody who reaches the port can read the curves and the configuration.

example:
  maskloom monitor runs/quickstart
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from maskloom.commands.arguments import natural
from maskloom.errors import UserError
from maskloom.world import LOOPBACK, is_loopback


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run directory, or a folder of several")
    add("--host", default=LOOPBACK, help="address to listen on (default: %(default)s)")
    add("--port", type=natural, default=6006, help="port; 0 takes a free one (default: %(default)s)")
    add("--allow-remote", action="store_true", help="let --host be an address that other machines reach")


def run(options: argparse.Namespace) -> int:
    if not options.run.is_dir():
        raise UserError(f"no run directory {options.run}")
    if not options.allow_remote and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} is an address that other machines reach, and TensorBoard has no log-in: look "
            f"through `ssh -L {options.port}:{LOOPBACK}:{options.port} HOST`, or add --allow-remote"
        )
    arguments = ["--logdir", str(options.run), "--host", options.host, "--port", str(options.port)]
    sys.stdout.flush()
    # Replace this process: then signals reach TensorBoard, and it ends with whatever started us.
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])
