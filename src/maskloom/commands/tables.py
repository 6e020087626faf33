"""Models side by side, as a table of text: each has a column, and each figure a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from maskloom.redaction import one_line

NOT_COMPARABLE = (
    "These models have different tokens. Compare nats a byte and words. Figures a token are not comparable between "
    "these columns."
)


def comparison(found: dict[str, Any]) -> list[str]:
    """The lines of a table.

    Args:
        found: what `maskloom eval --data --json` prints.
    """
    models = found["models"]
    lines = [
        f"{found['documents']:,} of {found['documents_found']:,} documents, {found['words']:,} words, {found['masked_words']:,} "
        f"masked ({found['masked_bytes']:,} bytes)"
    ]
    if left_out := {reason: count for reason, count in found["left_out"].items() if count}:
        each = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        lines.append(f"chosen and left out for all models: {each}")
    if found["joined_words"]:
        lines.append(
            f"{found['joined_words']:,} words were joined with the one before: a token of a model holds parts of both"
        )
    lines += [f"[{number}] {one_line(model['model'])}" for number, model in enumerate(models, 1)]
    lines += rows(["", *(f"[{number}]" for number in range(1, len(models) + 1))], _table(models))
    if len(models) > 1 and not found["same_tokens"]:
        lines.append(NOT_COMPARABLE)
    return lines


def _table(models: Sequence[dict[str, Any]]) -> list[list[str]]:
    def row(name: str, shown: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *map(shown, models)]

    table = [row("nats a byte", lambda model: f"{model['nats_per_byte']:.4f}")]
    if len(models) > 1:
        table.append(row("  more than [1]", _difference))
    table += [
        row("words right", lambda model: f"{model['word_accuracy']:.1%}"),
        *(
            row(f"  {band['band']} ({band['words']:,})", lambda model, at=at: _of_band(model, at))  # type: ignore[misc]
            for at, band in enumerate(models[0]["accuracy_by_frequency"])
        ),
        row("loss a token (nats)", lambda model: f"{model['loss']:.3f}"),
        row("perplexity a token", lambda model: f"{model['perplexity']:,.1f}"),
        row("tokens right", lambda model: f"{model['accuracy']:.1%}"),
        row("tokens predicted", lambda model: f"{model['tokens']:,}"),
    ]
    if "pseudo_perplexity" in models[0]:
        table += [
            row("pseudo: nats a byte", lambda model: f"{model['pseudo_nats_per_byte']:.4f}"),
            row("pseudo-perplexity a token", lambda model: f"{model['pseudo_perplexity']:,.1f}"),
            row("  tokens", lambda model: f"{model['pseudo_tokens']:,}"),
            row("  sentences", lambda model: f"{model['pseudo_sentences']:,}"),
        ]
    return table


def _difference(model: dict[str, Any]) -> str:
    more = model.get("more_nats_per_byte")
    if more is None:
        return ""
    error = model["standard_error"]
    return f"{more:+.4f}" + (f" ±{error:.4f}" if error is not None else "")


def _of_band(model: dict[str, Any], at: int) -> str:
    return f"{model['accuracy_by_frequency'][at]['word_accuracy']:.1%}"


def rows(head: list[str], table: list[list[str]]) -> list[str]:
    """Aligned columns: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *table)
    ]
