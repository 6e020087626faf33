"""Runs side by side: in which settings they differ, their figures, and their losses at the same steps.

A run may be finished, at work, or of an earlier version. A difference is taken from the first run: below zero is better than it.

examples:
  maskloom compare runs/first runs/second
  maskloom compare runs/first runs/second runs/third --json
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskloom.commands.tables import rows
from maskloom.errors import UserError
from maskloom.progress import duration, show, show_json, tokens
from maskloom.redaction import one_line
from maskloom.runs import Evaluation, is_run
from maskloom.viewing.chart import UNICODE, Style, chart, style_for
from maskloom.viewing.differences import differing, environments_of, settings_of, why_not_comparable
from maskloom.viewing.figures import Figures, Same, evaluated_together, figures_of, logged_together

MOST_STEPS = 12
"""Steps in the table of losses; --json has all."""
WIDEST = 120
"""A chart that is wider is not easier to read."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("first", type=Path, metavar="RUN", help="run directory that the others are compared with")
    add("others", type=Path, nargs="+", metavar="RUN", help="run directories")
    add("--json", action="store_true", help="print one JSON object, with all evaluations")


def run(options: argparse.Namespace) -> int:
    runs = [options.first, *options.others]
    for each in runs:
        if not is_run(each):
            raise UserError(f"no run at {each}: name the folder of a run, which has config.yaml and metrics.jsonl")
    settings = differing(settings_of(runs))
    machines = differing(environments_of(runs))
    why_not = why_not_comparable(runs, settings)
    figures = [figures_of(each) for each in runs]
    if options.json:
        found = {
            "runs": [each.to_json() for each in figures],
            "configuration": settings,
            "environment": machines,
            "held_out_differs_in": why_not,
            "evaluated_together": [same.to_json() for same in evaluated_together(figures)],
            "logged_together": [same.to_json() for same in logged_together(figures)],
        }
        show_json(found, indent=1)
        return 0
    style = style_for(sys.stdout.encoding)
    width = min(shutil.get_terminal_size().columns, WIDEST)
    for line in described(figures, settings, machines, why_not, width, style):
        show(line)
    return 0


def described(
    figures: Sequence[Figures],
    settings: Mapping[str, list[Any]],
    machines: Mapping[str, list[Any]],
    why_not: Sequence[str],
    width: int,
    style: Style = UNICODE,
) -> list[str]:
    """The comparison as lines of text."""
    heads = [f"[{number}]" for number in range(1, len(figures) + 1)]
    lines = [f"{head} {one_line(each.run)}" for head, each in zip(heads, figures, strict=True)]
    for title, differences in (("configuration", settings), ("versions and machine", machines)):
        lines += ["", f"{title}: " + ("what differs" if differences else "nothing differs")]
        if differences:
            table = [[f"  {one_line(key)}", *map(_value, values)] for key, values in differences.items()]
            lines += rows(["", *heads], table)
    lines += ["", "figures"]
    lines += rows(["", *heads], _figures(figures))
    if why_not:
        lines += ["", f"Held-out losses are not of the same thing: the runs differ in {', '.join(why_not)}."]
    evaluated, logged = evaluated_together(figures), logged_together(figures)
    if any(same.step for same in evaluated):
        lines += ["", "held-out loss at the same steps", *_losses(evaluated, heads)]
    elif logged:
        lines += ["", "training loss at the same steps", *_losses(logged, heads)]
    return lines + _curves(figures, width, style)


def _figures(figures: Sequence[Figures]) -> list[list[str]]:
    def row(name: str, shown: Callable[[Figures], str | None]) -> list[str]:
        return [f"  {name}", *(shown(each) or "-" for each in figures)]

    def counted(value: float | None) -> str | None:
        return None if value is None else f"{value:,.0f}"

    table = [
        row("state", lambda each: each.state),
        row("steps", lambda each: f"{each.step:,}" + (f" of {each.total_steps:,}" if each.total_steps else "")),
        row("attempts", lambda each: counted(each.attempts)),
        row("tokens seen", lambda each: None if each.tokens_seen is None else tokens(each.tokens_seen)),
        row("held-out loss, last", lambda each: _evaluated(each.last)),
        row("held-out loss, best", lambda each: _evaluated(each.best)),
        row("held-out accuracy, last", lambda each: _accuracy(each.last)),
        row("held-out accuracy at the best", lambda each: _accuracy(each.best)),
    ]
    if together := logged_together(figures):
        step, losses = together[-1]
        table.append([f"  training loss, step {step:,}", *(f"{loss:.4f}" for loss in losses)])
    return [
        *table,
        row("tokens/s, median", lambda each: counted(each.tokens_per_s)),
        row("bad steps", lambda each: counted(each.bad_steps)),
        row("roll-backs", lambda each: counted(each.rollbacks)),
        row("time in steps", lambda each: None if each.training_s is None else duration(each.training_s)),
    ]


def _evaluated(one: Evaluation | None) -> str | None:
    return f"{one.loss:.4f} (step {one.step:,})" if one else None


def _accuracy(one: Evaluation | None) -> str | None:
    return None if one is None or one.accuracy is None else f"{one.accuracy:.1%}"


def _losses(together: Sequence[Same], heads: Sequence[str]) -> list[str]:
    """Some of the steps, evenly chosen, the last one among them."""
    every = -(-len(together) // MOST_STEPS)
    chosen = together[(len(together) - 1) % every :: every]
    table = [
        [
            f"  {same.step:,}",
            *(f"{loss:.4f}" for loss in same.losses),
            *(f"{difference:+.4f}" for difference in same.differences[1:]),
        ]
        for same in chosen
    ]
    return rows(["  step", *heads, *(f"{head} - [1]" for head in heads[1:])], table)


def _curves(figures: Sequence[Figures], width: int, style: Style) -> list[str]:
    """A chart of the held-out losses, or of the training losses if no run was evaluated."""
    # Before the first step all losses are that of guessing, which would leave the curves no room.
    curves = [[(one.step, one.loss) for one in each.evaluations if one.step] for each in figures]
    what = "held-out loss"
    if not any(curves):
        curves, what = [sorted(each.training_losses.items()) for each in figures], "training loss"
    if not any(curves):
        return ["", "No loss has been logged yet."]
    legend = [
        f"{style.marks[number % len(style.marks)]} [{number + 1}]" + ("" if curve else " has none yet")
        for number, curve in enumerate(curves)
    ]
    return ["", f"{what} by step   {'   '.join(legend)}", *chart(curves, width, style=style)]


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return one_line(value if isinstance(value, str) else json.dumps(value))
