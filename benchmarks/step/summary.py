"""Turns to medians, ratios and limits: pure, from what a result file holds.

Rates are of text tokens: [CLS], [SEP] and padding do not count, for any system. FLOPs are the model's, by the one formula of
`model/flops.py`, of real tokens and a head on the predicted ones alone: what a system computes beyond it makes it slower, not
better.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maskloom.data.rows import count_pairs
from maskloom.models.flops import Shape, training_flops
from maskloom.train.kinds import TITLES
from step.cases import Case
from step.jobs import bare_config
from step.learning import Apart, reached

MIB = 1 << 20
# Bytes a token, layer and unit of width that a post-LayerNorm layer moves in bf16 beside its matrix products, forward and
# backward: with GELU and bias in the products' epilogues, with every chain of operators fused, and with none.
TRAFFIC = {"epilogues": 70, "fused": 114, "eager": 280}
POST_NORM = ("bert", "roberta")


@dataclass(frozen=True)
class Spread:
    """Of the rounds."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figures:
    """One system in one case.

    Attributes:
        tokens_per_s: text tokens.
        rows_per_s: rows (sequences).
        step_s: of single steps.
        flops_per_s: the model's.
        utilisation: share of what the device's best matrix product reaches (MFU); None on a CPU, and if it is above 1, which
            shows that the product was slow.
        peak_bytes: memory; see `clock.Memory`.
        filled: share of the slots that hold a token.
        start_s: to build the model, and to run the first steps, which compile.
    """

    about: str
    tokens_per_s: Spread
    rows_per_s: Spread
    step_s: Spread
    flops_per_s: Spread
    utilisation: float | None
    peak_bytes: int
    filled: float
    start_s: float


def figures(measured: dict[str, Any], name: str) -> Figures:
    """Of a system, from its turns in a case."""
    system = measured["systems"][name]
    turns, shape = system["turns"], shape_of(measured["case"])
    flops = Spread.of([_flops(shape, turn["facts"]) / sum(turn["step_s"]) for turn in turns])
    facts = turns[0]["facts"]
    return Figures(
        system["about"],
        Spread.of([_rate(turn, "text_tokens") for turn in turns]),
        Spread.of([_rate(turn, "rows") for turn in turns]),
        Spread.of([seconds for turn in turns for seconds in turn["step_s"]]),
        flops,
        _utilisation(flops.median, measured),
        max(turn["peak_bytes"] for turn in turns),
        facts["slots"] / facts["all_slots"],
        system["ready"]["build_s"] + system["ready"]["warm_s"],
    )


def ratio(measured: dict[str, Any], ours: str, peer: str) -> Spread | None:
    """Text tokens/s of one system over another's, round by round; None where no round has both."""
    rates = [
        {turn["round"]: _rate(turn, "text_tokens") for turn in measured["systems"].get(name, {"turns": []})["turns"]}
        for name in (ours, peer)
    ]
    both = sorted(rates[0].keys() & rates[1].keys())
    return Spread.of([rates[0][number] / rates[1][number] for number in both]) if both else None


def best(measured: dict[str, Any], prefix: str, leaving_out: Sequence[str] = ()) -> str | None:
    """The fastest system whose name begins so, by its median of text tokens/s."""
    names = [name for name in measured["systems"] if name.startswith(prefix) and name not in leaving_out]
    return max(names, key=lambda name: figures(measured, name).tokens_per_s.median, default=None)


def shape_of(case: dict[str, Any]) -> Shape:
    """Of a case's model."""
    return _shape_of(Case.loads(case))


@functools.cache
def _shape_of(case: Case) -> Shape:
    return Shape.of(bare_config(case))


@dataclass(frozen=True)
class Limits:
    """What bounds a case, for full rows of one piece with the case's share of the tokens predicted.

    Attributes:
        row_flops: of a row.
        rows_per_s: if every operation ran at the speed of the best matrix product: the 100 % line.
        ceilings: kind of `TRAFFIC` -> share of that line which is left when its bytes are moved at the speed of a copy, while
            nothing is multiplied; empty for an architecture whose traffic is not known.
    """

    row_flops: float
    rows_per_s: float
    ceilings: dict[str, float]


def limits(case: dict[str, Any], precision: Literal["fp32", "bf16"], device: dict[str, float]) -> Limits:
    """The roofline of a case on a device of so many FLOP/s and bytes/s."""
    shape, seq_len = shape_of(case), case["seq_len"]
    pairs = [100 * int(count_pairs(np.array(seq_len), window)) for window in shape.distinct_windows]
    # The formula is linear: a fraction of a token may be predicted.
    predicted = round(100 * Case.loads(case).mask_rate * seq_len)
    row_flops = training_flops(shape, 100 * seq_len, pairs, predicted) / 100
    product_s = row_flops / device["flops"]
    width = {"fp32": 2, "bf16": 1}[precision]
    unit_s = width * case["hidden_size"] * case["layers"] * seq_len / device["bytes_per_s"]
    traffics = TRAFFIC if Case.loads(case).architecture in POST_NORM else {}
    ceilings = {kind: product_s / (product_s + traffic * unit_s) for kind, traffic in traffics.items()}
    return Limits(row_flops, 1 / product_s, ceilings)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns aligned."""
    widths = [max(len(line[place]) for line in (head, *rows)) for place in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def case_table(measured: dict[str, Any]) -> str:
    """Every system of a case; ratios are those of maskloom's fastest over each peer."""
    ours = best(measured, "maskloom-")
    rows = []
    for name in measured["systems"]:
        figure = figures(measured, name)
        over = ratio(measured, ours, name) if ours and not name.startswith("maskloom-") else None
        rows.append(
            [
                f"`{name}`",
                shown(figure.tokens_per_s),
                shown(figure.rows_per_s),
                shown(figure.step_s, 1000),
                f"{figure.flops_per_s.median / 1e12:.3g}",
                "-" if figure.utilisation is None else f"{figure.utilisation:.1%}",
                f"{figure.peak_bytes / MIB:,.0f}",
                f"{figure.filled:.1%}",
                f"{shown(over)}x" if over else "",
            ]
        )
    head = [
        "system",
        "text tokens/s",
        "rows/s",
        "ms a step",
        "TFLOP/s",
        "MFU",
        "peak MiB",
        "filled",
        "maskloom's best is",
    ]
    return table(head, rows)


def parts_table(measured: dict[str, Any]) -> str | None:
    """Milliseconds a step by part, with its share; None where nothing was profiled."""
    profiles = {name: system["profile"] for name, system in measured["systems"].items() if "profile" in system}
    if not profiles:
        return None
    rows = [
        [
            title,
            *(
                f"{1000 * profile['parts'][part]:.1f} ({profile['parts'][part] / profile['step_s']:.0%})"
                for profile in profiles.values()
            ),
        ]
        for part, title in TITLES.items()
        if any(profile["parts"].get(part) for profile in profiles.values())
    ]
    rows.append(["the step, profiled", *(f"{1000 * profile['step_s']:.1f}" for profile in profiles.values())])
    rows.append(["of it, waiting for a batch", *(f"{1000 * profile['wait_s']:.1f}" for profile in profiles.values())])
    return table(["ms a step", *(f"`{name}`" for name in profiles)], rows)


def learning_table(measured: dict[str, Any], target: float | None = None) -> str:
    """Until each system reaches the target: medians over the seeds (least to most)."""
    target = measured["target"] if target is None else target
    rows = []
    for name in dict.fromkeys(run["system"] for run in measured["runs"]):
        runs = [run for run in measured["runs"] if run["system"] == name]
        ends = [end for run in runs if (end := reached([tuple(point) for point in run["curve"]], target))]
        cells = [
            shown(Spread.of([end[key] for end in ends])) if ends else "-" for key in ("seconds", "steps", "tokens")
        ]
        last = Spread.of([run["curve"][-1][3] for run in runs])
        start = Spread.of([run["start_s"] for run in runs])
        rows.append([f"`{name}`", *cells, f"{len(ends)} of {len(runs)}", shown(last), shown(start)])
    head = [
        "system",
        f"seconds to {target:.2f}",
        "steps",
        "text tokens",
        "runs that reach it",
        "loss at the end",
        "start, s",
    ]
    return table(head, rows)


def apart_table(found: Sequence[Apart], every: int = 1) -> str:
    """Held-out losses of both systems by step: means over the seeds (least to most), and how far they are apart."""
    rows = []
    for place, one in enumerate(found):
        if place % every == 0 or one is found[-1]:
            sides = [shown(Spread(statistics.mean(side), min(side), max(side))) for side in (one.ours, one.theirs)]
            each = ", ".join(f"{difference:+.4f}" for difference in one.differences)
            noise = f"{one.noise:.4f}" if len(one.ours) > 1 else "-"
            rows.append([f"{one.step:,}", *sides, f"{one.difference:+.4f}", each, noise])
    return table(["step", "maskloom", "Hugging Face", "mean difference", "of each seed", "noise"], rows)


def shown(spread: Spread, scale: float = 1.0) -> str:
    """`1,234 (1,200-1,260)`; one number where there is one round."""
    middle, least, most = (digits(scale * value) for value in (spread.median, spread.least, spread.most))
    return middle if least == most else f"{middle} ({least}-{most})"


def digits(value: float) -> str:
    """Three of them, or all before the point."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _rate(turn: dict[str, Any], what: str) -> float:
    return float(turn["facts"][what] / sum(turn["step_s"]))


def _utilisation(flops_per_s: float, measured: dict[str, Any]) -> float | None:
    """Of a CPU, which other processes use at the same time, no peak can be measured."""
    share = flops_per_s / float(measured["limits"]["flops"])
    return share if measured["stamp"]["gpu"] and share <= 1 else None


def _flops(shape: Shape, facts: dict[str, Any]) -> int:
    pairs = facts.get("pairs") or [facts["squares"]]  # a result of an older form
    return training_flops(shape, facts["slots"], pairs, facts["predicted"])
