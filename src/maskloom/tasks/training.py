"""One fine-tuning by transformers' Trainer: a model with a head, rows, and what the model then predicts.

Everything that the Trainer writes goes into a folder of ours that is removed. Nothing is reported to anybody.

This module imports the Trainer, which takes seconds: import it where it is needed.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from maskloom.errors import UserError
from maskloom.progress import Progress
from maskloom.tasks.labelled import Examples
from maskloom.tasks.metrics import TITLES
from maskloom.tasks.rows import Rows, labels_of
from maskloom.tasks.target import Target

EVALUATION_ROWS = 64
"""Rows of a forward without gradients."""
MAIN = "main"
"""The Trainer's name for the figure that chooses the epoch."""


@dataclass(frozen=True)
class Settings:
    """How to fine-tune: AdamW, a rate that rises linearly for `warmup_share` of the steps and then falls linearly to 0, gradients
    clipped to a norm of 1."""

    epochs: int
    lr: float
    batch_rows: int
    warmup_share: float
    weight_decay: float
    max_tokens: int
    precision: str = "fp32"
    """`fp32` or `bf16`: that of the forward and backward; weights and AdamW's state are fp32."""


@dataclass(frozen=True)
class Dev:
    """Examples that choose the epoch."""

    examples: Examples
    rows: Rows
    target: Target

    def figures(self, prediction: Any) -> dict[str, float]:
        figures = self.target.score(self.examples, labels_of(self.target, self.rows, prediction.predictions))
        return {MAIN: figures[self.target.metrics[0]]}


def train(
    model: Any,
    tokenizer: Any,
    target: Target,
    rows: Rows,
    dev: Dev | None,
    settings: Settings,
    seed: int,
    work: Path,
    tell: Callable[[str], None],
) -> Trainer:
    """Fine-tune a model in place. Equal arguments give equal weights on a CPU.

    Args:
        dev: if it is given, the model after the epoch with the best main figure on it is kept, instead of the last.
        work: an empty folder; the caller removes it.
        tell: is called with a line an epoch.

    Raises:
        UserError: the training went wrong: the weights are not finite. The Trainer would not say so.
    """
    steps = settings.epochs * math.ceil(len(rows.items) / settings.batch_rows)
    collator = DataCollatorForTokenClassification if target.kind == "tags" else DataCollatorWithPadding
    name = f"seed {seed}"
    with _quiet(), Progress(name, steps, "steps") as progress:
        trainer = Trainer(
            model=model,
            args=_arguments(settings, steps, seed, work, dev is not None),
            data_collator=collator(tokenizer),
            train_dataset=rows.items,
            eval_dataset=None if dev is None else dev.rows.items,
            compute_metrics=None if dev is None else dev.figures,
            preprocess_logits_for_metrics=_chosen,
            callbacks=[_Lines(progress, tell, f"{name}: epoch {{}} of {settings.epochs}", dev)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise UserError(f"{name}: the weights are not finite (NaN or infinite) after training: lower --lr")
    return trainer


def predict(trainer: Trainer, target: Target, rows: Rows) -> list[Any]:
    """The labels that the model gives to rows."""
    trainer.compute_metrics = None
    with _quiet():
        return labels_of(target, rows, trainer.predict(rows.items).predictions)


def _arguments(settings: Settings, steps: int, seed: int, work: Path, has_dev: bool) -> TrainingArguments:
    chosen = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup_share * steps),
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.batch_rows,
        per_device_eval_batch_size=EVALUATION_ROWS,
        max_grad_norm=1.0,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
        logging_strategy="epoch",
        eval_strategy="epoch" if has_dev else "no",
        save_strategy="epoch" if has_dev else "no",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=has_dev,
        metric_for_best_model=MAIN if has_dev else None,
        greater_is_better=True if has_dev else None,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    chosen.report_to = []  # some trackers add themselves if they are installed
    if chosen.n_gpu > 1:
        chosen._n_gpu = 1  # otherwise a batch would have that many times the rows
    return chosen


def _chosen(outputs: Any, labels: Any) -> Any:
    """What is kept of a model's outputs: ids of classes [N] or tags [N, S], or the numbers [N, 1]."""
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    return outputs if outputs.shape[-1] == 1 else outputs.argmax(-1)


class _Lines(TrainerCallback):
    """Progress as other commands show it, and a line an epoch."""

    def __init__(self, progress: Progress, tell: Callable[[str], None], line: str, dev: Dev | None) -> None:
        self.progress, self.tell, self.line, self.dev = progress, tell, line, dev
        self.loss = math.nan

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.progress.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if "loss" not in logs:  # the Trainer's summary of a run, or figures
            return
        self.loss = logs["loss"]
        if self.dev is None:
            self.tell(f"{self.line.format(round(state.epoch))}, loss {self.loss:.4f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
        if self.dev is not None:
            figure = f"{TITLES[self.dev.target.metrics[0]]} of the dev set {metrics[f'eval_{MAIN}']:.4f}"
            self.tell(f"{self.line.format(round(state.epoch))}, loss {self.loss:.4f}, {figure}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from printing."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
