"""Training to a held-out loss against the clock.

Every system trains the same shape from the same first weights, on the same text with the same tokenizer, in steps of as many
rows of as many slots, with the same optimizer and schedule, and is judged by the same pass over the held-out documents:
maskloom's `evaluate`, into whose model the weights are loaded (their names are Hugging Face's). The clock runs while steps
run, the wait for data included, and stands while a pass is made; the first step, which compiles, is not on it.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from maskloom.config import Evaluation
from maskloom.data.index.corpus import Index
from maskloom.data.masking import MaskRule
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.models.masked_lm import MaskedLM
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.evaluation import evaluate
from step import clock
from step.cases import MINI, Case, Device
from step.jobs import Job, Trained, Training
from step.ours import first_model

EVALUATION_ROWS = 64


@dataclass(frozen=True)
class Recipe:
    """A training that takes minutes.

    Attributes:
        vocab_size: of model and tokenizer.
        lr: the highest, after `warmup_steps` and before a linear decay to 0.
        evaluate_every: steps between looks at the held-out loss.
    """

    case: Case
    vocab_size: int
    lr: float
    warmup_steps: int
    steps: int
    evaluate_every: int

    def training(self, seed: int, steps: int | None) -> Training:
        """With the user's number of steps. Raises UserError where the warm-up would not end."""
        total = steps or self.steps
        if total <= self.warmup_steps:
            raise UserError(f"--steps {total}: the warm-up alone takes {self.warmup_steps} steps")
        return Training(self.case, self.vocab_size, self.lr, seed, self.warmup_steps, total, self.case.seq_len)


QUICKSTART = Case("quickstart", "two layers of 128", 128, 2, 2, 64, 16, 16, 0, 0, 0)
RECIPES: dict[Device, Recipe] = {
    # Model, batch, text and schedule of configs/regression_bert.yaml.
    "cpu": Recipe(QUICKSTART, 8192, 2e-3, 100, 1000, 50),
    "cuda": Recipe(Case("mini", "BERT-mini", *MINI, 128, 256, 256, 0, 0, 0), 8192, 1e-3, 200, 2000, 50),
}
MODERN: dict[str, Any] = {"inner_size": 192, "mask_rate": 0.3, "local_attention": 32}  # of configs/modernbert_tiny.yaml
CURVES: dict[str, Recipe] = {
    name: Recipe(replace(QUICKSTART, architecture=name, **more), 8192, 2e-3, 60, 600, 50)
    for name, more in {"modernbert": MODERN, "roberta": {}}.items()
}
"""By architecture: what maskloom and Hugging Face learn from the same batches, on a CPU."""


def learn(job: Job, build: Callable[[Job], Trained], evaluate_every: int) -> dict[str, Any]:
    """Train one system to the end of its schedule.

    Args:
        build: makes the system.

    Returns:
        `curve`: a list of [step, text tokens, seconds, held-out loss in nats]; `start_s`: to build and to run the first step.
    """
    torch.set_num_threads(job.threads)
    training, began_s = job.training, time.perf_counter()
    trained = build(job)
    index, tokenizer = job.text.open()
    if not job.system.is_ours:
        trained.module.load_state_dict(first_model(training, tokenizer).state_dict())
    judge = Judge(training, index, tokenizer, job.device)
    reading = trained.read(workers=1)
    curve: list[tuple[int, int, float, float]] = [(0, 0, 0.0, judge.loss(trained))]
    tokens, seconds, resumed_s = 0, 0.0, 0.0
    for step in range(1, training.total_steps + 1):
        batch = next(reading)
        trained.step(batch)
        tokens += batch.facts.text_tokens
        is_last = step == training.total_steps
        if step == 1:
            clock.wait(job.device)
            resumed_s = time.perf_counter()
            start_s = resumed_s - began_s
        elif step % evaluate_every == 0 or is_last:
            clock.wait(job.device)
            seconds += time.perf_counter() - resumed_s
            curve.append((step, tokens, seconds, judge.loss(trained)))
            resumed_s = time.perf_counter()
    return {"curve": curve, "start_s": start_s}


class Judge:
    """The held-out loss of a system's weights, in a model that is nobody's."""

    def __init__(self, training: Training, index: Index, tokenizer: Tokenizer, device: Device) -> None:
        if not len(index.held_out_blocks):
            raise UserError(f"{index.folder} holds no held-out documents: write it with --val-fraction")
        self.index, self.tokenizer, self.device = index, tokenizer, torch.device(device)
        self.model: MaskedLM = first_model(training, tokenizer).to(self.device).eval()
        self.settings = Evaluation(seq_len=training.case.seq_len, micro_batch_rows=EVALUATION_ROWS)

    def loss(self, trained: Trained) -> float:
        """Nats a predicted token. Raises RuntimeError where it is no number."""
        weights = {name: value.detach().float() for name, value in trained.module.state_dict().items()}
        self.model.load_state_dict(weights)
        rule = MaskRule(self.settings.mask_rate)
        figures = evaluate(self.model, (self.index,), self.tokenizer, self.settings, rule, self.device, World())
        loss = figures.get("evaluation_loss", math.nan)
        if not math.isfinite(loss):
            raise RuntimeError(f"the held-out loss is {loss}")
        return loss


@dataclass(frozen=True)
class Apart:
    """Two systems at one step, over the seeds.

    Attributes:
        ours, theirs: held-out losses, one a seed.
    """

    step: int
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Mean of ours minus theirs, in nats."""
        return statistics.mean(self.differences)

    @property
    def differences(self) -> list[float]:
        """Of each seed."""
        return [ours - theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def noise(self) -> float:
        """What the mean difference of equal systems would spread by: from the spread over the seeds of each system.

        Runs of one seed have weights, batches and masks in common, and may be closer than that.
        """
        variances = [statistics.variance(losses) for losses in (self.ours, self.theirs)]
        return math.sqrt(sum(variances) / len(self.ours))


def apart(runs: Sequence[dict[str, Any]]) -> list[Apart]:
    """Where all seeds of both systems were looked at. Each run has `system`, `seed` and `curve`."""
    curves: dict[bool, dict[int, dict[int, float]]] = {True: {}, False: {}}
    for run in runs:
        losses = {int(point[0]): float(point[3]) for point in run["curve"]}
        curves[run["system"].startswith("maskloom")][run["seed"]] = losses
    ours, theirs = curves[True], curves[False]
    seeds = sorted(ours.keys() & theirs.keys())
    steps = sorted(set.intersection(*(set(curve[seed]) for curve in (ours, theirs) for seed in seeds))) if seeds else []
    return [
        Apart(step, tuple(ours[seed][step] for seed in seeds), tuple(theirs[seed][step] for seed in seeds))
        for step in steps
    ]


def reached(curve: list[tuple[int, int, float, float]], target: float) -> dict[str, float] | None:
    """Where a curve first comes down to `target`, on straight lines between its points; None where it does not.

    Returns:
        `steps`, `tokens` and `seconds` until then.
    """
    for before, after in itertools.pairwise(curve):
        if after[3] <= target < before[3]:
            share = (before[3] - target) / (before[3] - after[3])
            steps, tokens, seconds = (before[place] + share * (after[place] - before[place]) for place in range(3))
            return {"steps": steps, "tokens": tokens, "seconds": seconds}
    return None


def common_target(curves: list[list[tuple[int, int, float, float]]]) -> float:
    """A loss that every curve reaches: the highest of their lowest, rounded up to a twentieth."""
    return math.ceil(max(min(point[3] for point in curve) for curve in curves) * 20) / 20
