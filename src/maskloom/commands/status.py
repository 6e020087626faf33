"""How a run stands: its state, step, attempts, the newest good checkpoint, and what to do next.

With --should-restart, the exit code tells a script whether to start the run again. 0: another attempt may make progress. 1: the
run is done, is in use, would fail again, made no progress in three attempts, or holds a file `no-restart`. Ask after the last
attempt has ended, and give its exit code with --ended CODE: ranks that were killed could not write it.

With --healthy, RUN may be a folder of runs too. The exit code is 1 if a run that is running here shows no sign of life.

--json prints one object. Its keys are stable; what is not known is null:
  run, state, step, total_steps, attempt, world_size, hosts, reason, can_retry, next (what to do, in words)
  written_unix_s, is_silent (it should run, and gives no sign of life)
  last_good_checkpoint, checkpoints (names, oldest first), best (checkpoint, held_out_loss)
  logged_step, loss, accuracy, lr, tokens_per_s, tokens_seen, step_time_s: of the newest logged line
  held_out_step, held_out_loss: of the newest evaluation
  left_s: an estimate, from step_time_s; null unless it runs

examples:
  maskloom status runs/first
  maskloom status runs/first --json
  maskloom status configs/bert_base.yaml run_dir=/shared/runs/base --should-restart
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from maskloom.commands.arguments import natural
from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.files import read_lines
from maskloom.launch import health
from maskloom.launch.ending import Ended, in_words
from maskloom.launch.supervisor import NO_RESTART, settle
from maskloom.program import add_overrides
from maskloom.progress import duration, show, show_json, show_path
from maskloom.runs import number
from maskloom.status import CHECKPOINT, REFRESH_S, SILENT_S, START, Status, attempt_steps, read_status, why_not_again
from maskloom.train.held_out import best_of
from maskloom.train.run_lock import holder_of


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or the YAML file that it is started with")
    add_overrides(parser)
    add("--should-restart", action="store_true", help="exit with 0 if it should be started again, else 1")
    add(
        "--ended",
        type=natural,
        metavar="CODE",
        help="the last attempt ended with this exit code: `running` becomes `failed`",
    )
    add("--healthy", action="store_true", help="exit with 1 if it runs, but shows no sign of life: a container's check")
    add("--folder", action="store_true", help="print the run's folder only")
    add("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    if options.json and (options.folder or options.should_restart or options.healthy):
        raise UserError("--json goes without --folder, --healthy and --should-restart: leave it out, or those")
    folder = Path(options.run)
    if folder.is_file():
        folder = Path(load_config(folder, options.overrides).run_dir)
    elif options.overrides:
        raise UserError(f"{options.overrides[0]}: settings go with a YAML file, and {folder} is none")
    if options.folder:
        show_path(folder)
        return 0
    if options.healthy:
        runs = health.running(folder, socket.gethostname())
        wrong = health.silent(runs, time.time())
        show("\n".join(wrong) or f"{folder}: {len(runs)} running, and nothing is silent")
        return int(bool(wrong))
    status = read_status(folder)
    if options.ended is not None:  # a killed attempt left `running`: write what became of it
        ended = Ended(options.ended, f"what ran the ranks {in_words(options.ended)}")
        status = settle(folder, os.environ.get(START, ""), ended).status
    if options.should_restart:
        why = f"{folder / NO_RESTART} exists" if (folder / NO_RESTART).exists() else None
        if why is None and (holder := holder_of(folder)):
            why = f"it is in use by {holder}"
        why = why or why_not_again(status, attempt_steps(folder))
        show(f"{folder}: " + (f"not to be started again: {why}" if why else "to be started again"))
        return int(why is not None)
    if status is None:
        raise UserError(f"no run at {folder} (no status.json)")
    if options.json:
        show_json(status_object(folder, status, time.time()))
        return 0
    for line in described(folder, status, time.time()):
        show(line)
    return 0


def status_object(folder: Path, status: Status, now_unix_s: float) -> dict[str, Any]:
    """What --json prints."""
    best, lines = best_of(folder), read_lines(folder / "metrics.jsonl")
    logged: dict[str, Any] = next((line for line in reversed(lines) if "tokens_per_s" in line), {})
    held_out: dict[str, Any] = next((line for line in reversed(lines) if "evaluation_loss" in line), {})
    step_time_s, is_running = number(logged, "step_time_s"), status.state == "running"
    is_silent = is_running and now_unix_s - status.updated_unix_s > SILENT_S
    saved = (path.name for path in (folder / "checkpoints").glob("step-*") if CHECKPOINT.fullmatch(path.name))
    return {
        "run": str(folder),
        **{key: getattr(status, key) for key in ("state", "step", "total_steps", "attempt", "world_size", "hosts")},
        "reason": status.reason or None,
        "can_retry": status.can_retry,
        "next": status.advice or _next(folder, status, is_silent),
        "written_unix_s": status.updated_unix_s,
        "is_silent": is_silent,
        "last_good_checkpoint": status.last_good_checkpoint,
        "checkpoints": sorted(saved),
        "best": {"checkpoint": best.name, "held_out_loss": best.loss} if best else None,
        "logged_step": logged.get("step"),
        "loss": number(logged, "loss_mean"),
        **{key: logged.get(key) for key in ("accuracy", "lr", "tokens_per_s", "tokens_seen")},
        "step_time_s": step_time_s,
        "held_out_step": held_out.get("step"),
        "held_out_loss": held_out.get("evaluation_loss"),
        "left_s": step_time_s * (status.total_steps - status.step) if is_running and step_time_s is not None else None,
    }


def described(folder: Path, status: Status, now_unix_s: float) -> list[str]:
    """A status as lines of text."""
    where = f", {status.world_size} rank(s) on {', '.join(status.hosts)}" if status.hosts else ""
    lines = [
        f"{folder}: {status.state} at step {status.step:,} of {status.total_steps:,}; attempt {status.attempt}{where}",
        f"written:         {duration(now_unix_s - status.updated_unix_s)} ago",
        f"last good:       {status.last_good_checkpoint or 'no checkpoint yet'}",
    ]
    if best := best_of(folder):
        lines.append(f"best:            {best.name}, held-out loss {best.loss:.4f}")
    if status.reason:
        lines.append(f"reason:          {status.reason}")
    silent_s = now_unix_s - status.updated_unix_s if status.state == "running" else 0.0
    if silent_s > SILENT_S:
        lines.append(f"no sign of life: for {duration(silent_s)}; a run that lives writes every {REFRESH_S:.0f} s")
    return [*lines, f"what to do next: {status.advice or _next(folder, status, silent_s > SILENT_S)}"]


def _next(folder: Path, status: Status, is_silent: bool) -> str:
    run = shlex.quote(str(folder))
    goes_on = f"start the same command again to resume from {status.last_good_checkpoint or 'the beginning'}"
    return {
        "running": goes_on if is_silent else f"wait, or ask it to stop with `touch {run}/stop`",
        "done": f"maskloom eval {run}; maskloom export {run} MODEL",
        "stopped": goes_on,
        "failed": goes_on if status.can_retry else "correct what the reason names, then start it again",
    }[status.state]
