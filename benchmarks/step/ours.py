"""maskloom: the trainer's own step, as `maskloom train` runs it on one device.

`train_step` adds up the counts over the ranks, runs forward and backward of every micro-batch, reads the loss, asks the
guard, clips, steps and keeps the tally. The engine behind it is that of a training run (DeepSpeed: ZeRO 0 in fp32, ZeRO 1 with
fp32 master weights in bf16). On a CPU a measured step also cuts its rows into flat micro-batches, as in training. On a GPU they
were cut before, into pinned memory, as the thread of a training run does it.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from maskloom.data.batch import micro_batches
from maskloom.data.cursors import first_cursors
from maskloom.data.plan import DataPlan
from maskloom.data.rows import Rows, count_slots, count_text_tokens
from maskloom.distributed import World
from maskloom.models.build import build_model
from maskloom.models.masked_lm import MaskedLM
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.batches import ready_steps
from maskloom.train.engine.engine import start_distributed
from maskloom.train.kinds import DATA
from maskloom.train.profiling import MarkedEngine, StepClock
from maskloom.train.rank.heartbeats import Pulse
from maskloom.train.setup import set_up
from maskloom.train.step import train_step
from step.cases import Device, System
from step.jobs import Batch, Facts, Training, model_settings, run_config
from step.text import Text, check_vocabulary


class Ours:
    """A trainer that is given its batches."""

    def __init__(self, system: System, training: Training, text: Text, device: Device) -> None:
        config = run_config(system, training, text, device)
        index, tokenizer = text.open()
        check_vocabulary(tokenizer, training.vocab_size)
        self.plan = DataPlan.of(
            config.data, config.phases, config.masking, config.seed, (index,), widened(tokenizer, training.vocab_size)
        )
        self.world = World.discover()
        traffic = start_distributed(self.world)
        self.trainer, _ = set_up(config, self.plan, self.world, traffic, Pulse())
        self._losses: list[float] = []
        self.cuts_rows = self.trainer.device.type == "cpu"
        self.module = self.trainer.engine.model
        if system.compiles:  # instead of how `engine.kernels` compiles; nothing has run yet
            self.module.compile(dynamic=False, mode=system.compiles)
        if system.compiles == "reduce-overhead":  # results of the micro-batch before may be overwritten
            mark = torch.compiler.cudagraph_mark_step_begin
            self.trainer.engine.deepspeed.register_forward_pre_hook(lambda *_: mark())
        self.engine = MarkedEngine(self.trainer.engine, StepClock(self.trainer.device))  # names for the profile

    def step(self, batch: Batch) -> None:
        ready = replace(batch.content, number=self.trainer.step)  # batches come again, steps do not
        if self.cuts_rows:
            with torch.profiler.record_function(DATA):
                layout, capacity = self.trainer.layouts[0], self.plan.capacity(0)
                cut = micro_batches(ready.rows, layout, capacity, self.plan.tokenizer)
                ready = replace(ready, micro_batches=tuple(cut))
        self._losses.append(train_step(ready, self.trainer, self.engine).loss)

    def read(self, workers: int) -> Iterator[Batch]:
        trainer, cursors = self.trainer, first_cursors(self.plan.lanes)
        reading = (self.plan, self.world, trainer.layouts, trainer.device, cursors, 0)
        options = {"workers": workers, "prefetch_steps": 4, "windows": trainer.shape.distinct_windows}
        with contextlib.closing(ready_steps(*reading, **options)) as steps:
            for step in steps:
                yield Batch(step, packed_facts(step.rows, self.plan.tokenizer, trainer.shape.distinct_windows))

    def mean_loss(self) -> float:
        losses, self._losses = self._losses, []
        return sum(losses) / len(losses) if losses else math.nan


def packed_facts(rows: Rows, tokenizer: Tokenizer, windows: Sequence[int | None] = (None,)) -> Facts:
    """Of rows of our stream."""
    slots, pairs = count_slots(rows, tokenizer, windows)
    return Facts(
        rows=len(rows),
        text_tokens=count_text_tokens(rows, tokenizer),
        slots=slots,
        pairs=tuple(pairs),
        predicted=int(rows.chosen.sum()),
        all_slots=int(rows.tokens.size),
    )


def first_model(training: Training, tokenizer: Tokenizer) -> MaskedLM:
    """The model of maskloom, on the CPU, with the weights that a training begins with."""
    model, _ = build_model(model_settings(training), widened(tokenizer, training.vocab_size), training.seed)
    return model


def widened(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer as one of so many ids, for the shape of a model."""
    widened = copy.copy(tokenizer)
    widened.vocab_size = vocab_size
    return widened
