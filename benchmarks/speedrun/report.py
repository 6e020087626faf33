"""Results to the table of docs/speedrun.md, between two marks: the words around it are written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from speedrun.records import Record, recipe_of

BEGIN = "<!-- records: written by python benchmarks/speedrun.py --report -->"
END = "<!-- end of records -->"


def write_report(page: Path, records: Sequence[Record], results: Mapping[str, dict[str, Any]]) -> None:
    """Write the table into the page.

    Raises:
        UserError: the page lacks the marks, or no record has a result.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{page} lacks the line {BEGIN} or {END}: put both where the table is to stand")
    page.write_text(f"{before}{BEGIN}\n{table(records, results)}\n{END}{after}", encoding="utf-8")


def table(records: Sequence[Record], results: Mapping[str, dict[str, Any]]) -> str:
    """The records with their results as Markdown, the commands below.

    Raises:
        UserError: no record has a result.
    """
    rows = [(record, newest(record, results.values())) for record in records]
    rows = [(record, found) for record, found in rows if found]
    if not rows:
        raise UserError("no record has a result yet: run `python benchmarks/speedrun.py`")
    lines = ["| record | change | held-out loss | each seed | CPU-seconds | steps |", "|---|---|---|---|---|---|"]
    for record, found in rows:
        losses = [result["loss"] for result in found]
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        seconds = [result["cpu_s"] for result in found]
        lines.append(
            f"| `{record.name}` | {record.change} | **{statistics.mean(losses):.3f}** | {each} "
            f"| {min(seconds):.0f} to {max(seconds):.0f} | {found[-1]['steps']:,} |"
        )
    last = max((result for _, found in rows for result in found), key=lambda result: result["date"])
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    measured = f"Measured on {last['cpu']}, {last['cores']} cores, {last['date'][:10]}, at commit {last['commit']}: {versions}."
    commands = [f"{record.name}:\n  {record.command}" for record, _ in rows]
    return "\n".join([*lines, "", measured, "", "```", *commands, "```"])


def newest(record: Record, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest result of each seed of a record, as its settings are today, in the order of the seeds."""
    recipe, found = recipe_of(record), {}
    for result in sorted(results, key=lambda result: result["date"]):
        if result["name"] == record.name and result["recipe"] == recipe:
            found[result["seed"]] = result
    return [found[seed] for seed in sorted(found)]
