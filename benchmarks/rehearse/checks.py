"""What the compiled code has to be: figures from the facts, and one table of limits."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from step.cases import Case


@dataclass(frozen=True)
class Limit:
    """A figure is to lie from `least` to `most`."""

    least: float
    most: float
    why: str


def exactly(value: float, why: str) -> Limit:
    return Limit(value, value, why)


WHOLE = {
    "forward graphs": exactly(1, "the forward is one graph, whatever the number of pieces"),
    "backward graphs": exactly(1, "the backward too"),
    "captured graphs": exactly(1, "another number of pieces compiles nothing anew"),
    "graph breaks": exactly(0, "nothing of the model is left to Python"),
    "spilled bytes": exactly(0, "no kernel keeps registers in memory"),
    "largest fp32 over [K, V]": Limit(0, 0.5, "the logits are never there in fp32"),
    "Inductor's kernels, layer forward": Limit(
        1, 7, "weights and biases put together; twice random bits, and dropout + residual + LayerNorm; GELU"
    ),
    "Inductor's kernels, layer backward": Limit(1, 17, "more would be fusion lost"),
    "h bytes a token, layer forward": Limit(30, 37, "34 h, beside weights that are put together and random bits"),
    "h bytes a token, layer backward": Limit(60, 78, "76 h, beside sums of what programs leave"),
    "h bytes a token, saved": Limit(30, 37, "what a layer keeps for its backward"),
    "instructions a row, dropout + LayerNorm": Limit(
        1,
        900,
        "above about 1,500 it waits for instructions and not for its bytes; with a draw an element it has 2,600",
    ),
    "instructions an element, GELU forward": Limit(1, 27, "27 take as long as its bytes at a copy's speed"),
    "instructions an element, GELU backward": Limit(1, 41, "41 take as long as its bytes at a copy's speed"),
}
"""Of a whole model, as `engine.kernels: compile` has it."""

MODERN = {
    **{name: limit for name, limit in WHOLE.items() if not name.startswith(("instructions", "h bytes", "Inductor"))},
    "Inductor's kernels, layer forward": Limit(1, 4, "two norms, the rotation, the gated unit; products add residuals"),
    "Inductor's kernels, layer backward": Limit(1, 7, "more would be fusion lost"),
    "h bytes a token, layer forward": Limit(20, 28, "27 h: norms 8, the rotation 10, the gated unit 9"),
    "h bytes a token, layer backward": Limit(30, 45, "44 h: norms 16, the gated unit 15, the rotation and its join 12"),
    "h bytes a token, saved": Limit(15, 26, "what a layer keeps for its backward"),
    "instructions an element, rotation": Limit(
        1, 30, "angles are looked up; computed in each layer, they would cost more than all that the layer moves"
    ),
    "instructions an element, gated unit forward": Limit(1, 27, "27 take as long as its bytes at a copy's speed"),
    "instructions an element, gated unit backward": Limit(
        1, 140, "Inductor computes both halves of the gradient for each element; it waits for instructions"
    ),
}
"""Of a whole ModernBERT: a layer without dropout, whose norms come first, with rotated queries and keys and a gated unit."""

ZERO3 = {
    "forward graphs": exactly(2, "one for all layers, and one for the loss, whatever the number of pieces"),
    "backward graphs": exactly(2, "the same"),
    "captured graphs": exactly(2, "another layer or number of pieces compiles nothing anew"),
    **{name: WHOLE[name] for name in ("graph breaks", "spilled bytes", "largest fp32 over [K, V]")},
}
"""Of the functions that ZeRO-3 compiles."""


def limits_of(facts: dict[str, Any]) -> dict[str, Limit]:
    if "layer" not in facts:
        return ZERO3
    return MODERN if _architecture(facts) == "modernbert" else WHOLE


def figures(facts: dict[str, Any]) -> dict[str, float]:
    """What the limits are about, by the same names."""
    case = facts["case"]
    found = {
        "forward graphs": facts["graphs"].get("forward", 0),
        "backward graphs": facts["graphs"].get("backward", 0),
        "captured graphs": facts["captured"],
        "graph breaks": sum(facts["breaks"].values()),
        "spilled bytes": sum(facts["spilled_bytes"].values()),
        "largest fp32 over [K, V]": facts["largest_fp32"] / (facts["predicted"] * Case.loads(case).vocab_size),
    }
    if "layer" not in facts:
        return found
    unit = case["micro_batch_rows"] * case["seq_len"] * case["hidden_size"]
    for direction, works in facts["layer"].items():
        launched = sum(work["launches"] for work in works.values() if work["kind"] == "triton")
        found[f"Inductor's kernels, layer {direction}"] = launched
        moved = sum(work["bytes"] for work in works.values())
        found[f"h bytes a token, layer {direction}"] = moved / unit
    found["h bytes a token, saved"] = facts["saved_bytes_a_layer"] / unit
    if _architecture(facts) == "modernbert":
        return {**found, **_modern(facts, unit)}
    rows = case["micro_batch_rows"] * case["seq_len"]
    norm = _largest(facts["layer"]["forward"], "triton_per")
    found["instructions a row, dropout + LayerNorm"] = norm["issued"] / norm["launches"] / rows
    for direction, works in facts["layer"].items():
        gelu = _largest(works, "triton_poi")  # the one kernel over [T, 4 D]
        found[f"instructions an element, GELU {direction}"] = 32 * gelu["issued"] / (4 * unit)
    return found


def _modern(facts: dict[str, Any], unit: int) -> dict[str, float]:
    """Of a ModernBERT's layer. A kernel whose instructions are not known has infinitely many: it has a loop, as angles have."""
    inner = Case.loads(facts["case"]).intermediate_size * unit // facts["case"]["hidden_size"]
    forward, backward = ({**works} for works in facts["layer"].values())
    elements = {"gated unit forward": (forward, "sigmoid", inner), "gated unit backward": (backward, "sigmoid", inner)}
    elements["rotation"] = (forward, "cat", 2 * unit)  # queries and keys
    found = {}
    for name, (works, part, count) in elements.items():
        work = _largest({stem: work for stem, work in works.items() if part in stem}, "triton_poi")
        found[f"instructions an element, {name}"] = inf if work["issued"] is None else 32 * work["issued"] / count
    return found


def _architecture(facts: dict[str, Any]) -> str:
    return Case.loads(facts["case"]).architecture


def _largest(works: dict[str, dict[str, Any]], prefix: str) -> dict[str, Any]:
    """The kernel that moves the most bytes, of those that Inductor names so: `triton_per` for reductions whose rows stay in
    registers, `triton_poi` for what has none."""
    return max((work for stem, work in works.items() if stem.startswith(prefix)), key=lambda work: work["bytes"])


def failures(facts: dict[str, Any]) -> list[str]:
    """A line for each figure out of its limits."""
    found = figures(facts)
    return [
        f"{name}: {found[name]:.4g}, and it is to be {_span(limit)}: {limit.why}"
        for name, limit in limits_of(facts).items()
        if not limit.least <= found[name] <= limit.most
    ]


def _span(limit: Limit) -> str:
    return f"{limit.least:g}" if limit.least == limit.most else f"from {limit.least:g} to {limit.most:g}"
