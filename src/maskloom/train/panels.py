"""The texts that a run shows in TensorBoard, as Markdown.

run/config       the whole configuration
run/environment  versions, command, machines; and what the curves are to be judged by
run/restarts     how the run began, each attempt, each roll-back
fill_mask        sentences that the model fills, with each evaluation (`evaluation.sentences`)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.files import read_lines
from maskloom.redaction import one_line, printable, redacted
from maskloom.train.refusal import read_intervals
from maskloom.train.sentences import Filled

CONFIG, ENVIRONMENT, RESTARTS, FILLED = "run/config", "run/environment", "run/restarts", "fill_mask"


def code(text: str) -> str:
    """A text from outside within a line, or a cell of a table, exactly as it is.

    Backquotes in it mean nothing, as more of them stand around it.
    """
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}" if text else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def config_panel(config: str, attempt: int, step: int) -> str:
    """The configuration, which is YAML, of an attempt that begins after `step`."""
    block = "\n".join(f"    {line}" for line in printable(redacted(config)).splitlines())
    return f"Attempt {attempt}, from step {step:,}:\n\n{block}"


def environment_panel(facts: Mapping[str, str]) -> str:
    """What is known of where the run trains."""
    return table(("what", "value"), ((name, code(redacted(value))) for name, value in facts.items()))


def restarts_panel(run: Path, origin: str | None = None) -> str:
    """All attempts and roll-backs of a run so far, from what its folder says.

    Args:
        origin: the checkpoint that the run was forked from.
    """
    lines = [f"- forked from {code(redacted(origin))}"] if origin else []
    before: dict[str, Any] = {}
    for line in _attempts(run):
        lines.append(f"- {_attempt(line, before)}")
        before = line
    with contextlib.suppress(UserError, OSError):
        for interval in read_intervals(run):
            first, last = interval.rows_of_steps
            lines.append(
                f"- rolled back to step {interval.after_step:,}; the rows of steps {first:,} to {last:,} were skipped "
                f"({interval.rows:,} rows), as {code(interval.reason)}"
            )
    return "\n".join(lines)


def filled_panel(filled: Sequence[Filled]) -> str:
    """Each sentence with the best guess, and the likeliest tokens for each mask."""
    rows = []
    for each in filled:
        for number, guesses in enumerate(each.masks):
            shown = ", ".join(f"{code(token)} {share:.1%}" for token, share in guesses)
            texts = ("", "") if number else (code(each.sentence), code(each.text))
            rows.append((*texts, str(number + 1), shown))
    return table(("sentence", "filled", "mask", "likeliest"), rows)


def _attempts(run: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(UserError, OSError):
        return read_lines(run / "attempts.jsonl")
    return []


def _attempt(line: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """An attempt in words: `attempt 2 resumes behind step 700 with 2 ranks`."""
    how = ("resumes" if line["step"] else "begins again") if before else "begins"
    if line["step"]:
        how += f" behind step {line['step']:,}"
    ranks = line.get("world_size")
    said = f"attempt {line.get('attempt')} {how} with {ranks} rank{'' if ranks == 1 else 's'}"
    if before and before.get("world_size") != ranks:
        said += f" (before: {before.get('world_size')})"
    if hosts := [str(host) for host in line.get("hosts") or []]:
        said += f" on {', '.join(map(code, hosts))}"
    when = line.get("unix_s")
    if isinstance(when, int | float):
        said += f", {datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M} UTC"
    return said
