"""The names that TensorBoard, W&B and other reporters show, made from those of metrics.jsonl.

    eval/          does it learn: held-out loss and accuracy
    train/         the same of the training batches; names as in transformers' Trainer, if it has one
    train_health/  is it healthy: refused steps, roll-backs, slow ranks, attempts
    utilization/   is it fast: tokens a second, and what the time goes into

TensorBoard makes a group of what stands before the first `/`, and sorts groups by name. So a page begins with `eval` and `train`.

This module imports next to nothing.
"""

from __future__ import annotations

HELD_OUT = "held-out"
"""Sub-run of a run in TensorBoard. It has `train/loss` and `train/accuracy` with the held-out values: two lines in one card."""

ATTEMPT = "train_health/attempt"
"""Starts of the run so far. It stands in no line of metrics.jsonl."""

PINNED = (
    "train/loss",
    "eval/loss",
    "eval/accuracy",
    "train/learning_rate",
    "train/grad_norm",
    "utilization/tokens_per_s",
)
"""The cards that `maskloom monitor` pins on the first page, in their order."""

EVALUATION = "evaluation_"

RENAMED = {
    "loss_mean": "train/loss",
    "accuracy": "train/accuracy",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_seen": "train/num_input_tokens_seen",
}
"""Name in metrics.jsonl -> tag."""

GROUPS = {
    "train_health": ("bad_steps", "rollbacks", "skipped_blocks", "loss_scale", "skipped_steps", "straggler_ratio"),
    "utilization": (
        "tokens_per_s", "padded_tokens_per_s", "sequences_per_s", "mfu", "tflops_per_s", "step_time_s", "data_wait_s",
        "communication_s", "packing_density", "memory_peak_bytes", "memory_reserved_peak_bytes",
    ),
}  # fmt: skip
"""Group -> names in metrics.jsonl, which the tags keep."""

WITHOUT = frozenset({
    "loss",  # of one step, which says little: `loss_mean` has its tag
    "evaluation_perplexity",  # exp of the loss
    "evaluation_tokens",  # always the same
})  # fmt: skip
"""Names that metrics.jsonl alone has, beside those of `communication_bytes`."""

TAGS = RENAMED | {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names}


def tag_of(name: str) -> str | None:
    """The tag of a name in metrics.jsonl, or None if metrics.jsonl alone has it.

    `evaluation_X` is `eval/X`. A name that is not known is `train/NAME`.
    """
    if name in WITHOUT or name.startswith("communication_bytes"):
        return None
    if name.startswith(EVALUATION):
        return f"eval/{name.removeprefix(EVALUATION)}"
    return TAGS.get(name, f"train/{name}")


def tagged(values: dict[str, float]) -> dict[str, float]:
    """The values of a line by their tags, without those that metrics.jsonl alone has."""
    return {tag: value for name, value in values.items() if (tag := tag_of(name)) is not None}
