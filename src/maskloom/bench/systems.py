"""A training step of maskloom and one of plain Hugging Face, behind one interface.

What both do in a step: move the batch to the device, forward and backward of every micro-batch, clip the gradients' norm
to 1, AdamW with two parameter groups (torch's fused one for Hugging Face), clear the gradients. Both start from random
weights, with dropout 0.1 on hidden states and none on attention weights.

- maskloom: the engine of a training run (DeepSpeed: ZeRO 0 in fp32, ZeRO 1 with fp32 master weights in bf16), fed with
  rows of our stream. On a CPU cutting them into flat micro-batches is part of its step, as it is in training; on a GPU they
  were cut beforehand, into pinned memory, as the thread of a training run does it.
- Hugging Face: `BertForMaskedLM` with `DataCollatorForLanguageModeling`; bf16 is `torch.autocast` over fp32 weights,
  which is what its Trainer does. Its batches are masked and collated beforehand too, in pinned memory on a GPU.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from maskloom.bench.cases import ATTENTION_DROPOUT, BERT_VOCABULARY, HIDDEN_DROPOUT, PRECISION, Case, Device, System
from maskloom.bench.text import SEED, Text, check_vocabulary, grouped_rows, line_rows
from maskloom.config import Model, RunConfig
from maskloom.config_file import parse_config
from maskloom.data.batch import micro_batches
from maskloom.data.cursors import first_cursors
from maskloom.data.hashing import make_key
from maskloom.data.plan import DataPlan
from maskloom.data.rows import Rows, count_text_tokens
from maskloom.distributed import World
from maskloom.models.bert import MaskedLM, build_model
from maskloom.tokenizers.tokenizer import Tokenizer
from maskloom.train.batches import ready_steps
from maskloom.train.trainer import deepspeed_settings, phase_layouts

RATE = 0.15  # share of the tokens that are predicted
ENDLESS = 1_000_000  # steps: no measurement comes to the end of its text


@dataclass(frozen=True)
class Facts:
    """What a step's batch holds; sums over steps are sums of these.

    Attributes:
        rows: rows.
        text_tokens: tokens that carry text: neither padding nor [CLS] nor [SEP].
        slots: slots with a token, [CLS] and [SEP] included.
        squares: sum of the squared lengths over which attention runs: of pieces, of whole rows where a row is one stream.
        predicted: tokens that are predicted.
        all_slots: all slots, padding included.
    """

    rows: int
    text_tokens: int
    slots: int
    squares: int
    predicted: int
    all_slots: int

    @staticmethod
    def total(parts: Sequence[Facts]) -> Facts:
        return Facts(*(sum(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Batch:
    """One optimizer step's data, and what it holds."""

    content: Any
    facts: Facts


class Trained(Protocol):
    """A system that trains."""

    module: nn.Module
    total_loss: torch.Tensor
    """Sum of the losses (nats a predicted token) of the steps so far, float64 on the device."""

    def step(self, batch: Batch, lr: float) -> None:
        """One optimizer step."""

    def read(self, workers: int) -> Iterator[Batch]:
        """Batches without end, read by so many processes; 0 reads here."""


@dataclass(frozen=True)
class Training:
    """How a system is trained: what a measurement of steps and one of a loss share.

    Attributes:
        vocab_size: of the model; the tokenizer may have fewer ids.
        total_steps: of the run, on which the learning rate may depend.
        max_positions: of the model.
    """

    case: Case
    vocab_size: int = BERT_VOCABULARY
    lr: float = 1e-4
    seed: int = SEED
    total_steps: int = ENDLESS
    max_positions: int = 512


def build(system: System, training: Training, text: Text, device: Device) -> Trained:
    """The system with its model on the device. Raises UserError for a corpus or tokenizer that does not fit."""
    return (Loom if system.is_ours else HuggingFace)(system, training, text, device)


class Loom:
    """maskloom, as `maskloom train` runs it on one device."""

    def __init__(self, system: System, training: Training, text: Text, device: Device) -> None:
        from maskloom.train.engine.device import device_of
        from maskloom.train.engine.engine import Engine, start_distributed

        self.compiles_here = system.compiles
        self.config = run_config(system, training, text, device)
        index, tokenizer = text.open()
        check_vocabulary(tokenizer, training.vocab_size)
        self.plan = DataPlan.of(self.config, (index,), tokenizer)
        self.world = World.discover()
        start_distributed(self.world)
        self.device = device_of(self.world)
        self.cuts_rows = self.device.type == "cpu"
        self.layouts = phase_layouts(self.config, self.plan, self.world)
        model = first_model(training, tokenizer)
        settings = deepspeed_settings(self.config, self.plan, self.world)
        self.engine = Engine(model, self.config.engine, self.config.optimizer, settings, self.world)
        self.module: nn.Module = self.engine.model
        if system.compiles:  # in place of how `engine.kernels` compiles; nothing has run yet
            self.module.compile(dynamic=False, mode=system.compiles)
        self.total_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.number = 0

    def step(self, batch: Batch, lr: float) -> None:
        self.engine.train()
        parts = micro_batches(*batch.content) if self.cuts_rows else batch.content
        with torch.profiler.record_function("bench: data"):
            buckets = [bucket.to(self.device) for bucket in parts]
        with self.engine.accumulating(len(buckets)) as backward:
            for number, bucket in enumerate(buckets):
                torch.manual_seed(make_key(self.config.seed, "dropout", self.number, number, 0) >> 1)
                if self.compiles_here == "reduce-overhead":
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # results of the micro-batch before may be overwritten
                loss, _ = self.engine(bucket)
                scaled = loss / batch.facts.predicted
                backward(scaled)
                self.total_loss += scaled.detach().double()
        with torch.profiler.record_function("bench: optimizer"):
            self.engine.step(lr)
        self.number += 1

    def read(self, workers: int) -> Iterator[Batch]:
        cursors = first_cursors(self.plan.lanes)
        reading = (self.plan, self.world, self.layouts, self.device, cursors, 0)
        with contextlib.closing(ready_steps(*reading, workers=workers, prefetch_steps=4)) as steps:
            for step in steps:
                rows = (step.rows, self.layouts[0], self.plan.capacity(0), self.plan.tokenizer)
                yield Batch(
                    rows if self.cuts_rows else step.micro_batches, packed_facts(step.rows, self.plan.tokenizer)
                )


class HuggingFace:
    """`BertForMaskedLM`, its collator, fused AdamW: what a careful user writes without a Trainer."""

    def __init__(self, system: System, training: Training, text: Text, device: Device) -> None:
        from transformers import BertConfig, BertForMaskedLM

        self.system, self.case, self.seed = system, training.case, training.seed
        self.device, self.precision = torch.device(device), PRECISION[device]
        self.index, self.tokenizer = text.open()
        check_vocabulary(self.tokenizer, training.vocab_size)
        self.collator = make_collator(text, self.tokenizer, training.seed)
        torch.manual_seed(training.seed)
        config = BertConfig(
            vocab_size=training.vocab_size,
            pad_token_id=self.tokenizer.pad_id,
            attn_implementation=system.attention,
            **model_shape(training),
        )
        self.module = BertForMaskedLM(config).to(self.device).train()
        if system.compiles:
            self.module.compile(dynamic=False)
        optimizer = run_config(system, training, text, device).optimizer
        self.clipping = optimizer.gradient_clipping
        self.optimizer = torch.optim.AdamW(
            _groups(self.module, optimizer.weight_decay),
            lr=training.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            fused=True,
        )
        self.total_loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def step(self, batch: Batch, lr: float) -> None:
        self.module.train()
        with torch.profiler.record_function("bench: data"):
            parts = [
                {name: value.to(self.device, non_blocking=True) for name, value in p.items()} for p in batch.content
            ]
        for part in parts:
            with self._autocast():
                loss = self.module(**part).loss / len(parts)
            loss.backward()
            self.total_loss += loss.detach().double()
        with torch.profiler.record_function("bench: optimizer"):
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clipping)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def read(self, workers: int) -> Iterator[Batch]:
        case = self.case
        loader = DataLoader(
            RowDataset(self._rows(), self.tokenizer),
            batch_size=case.step_rows,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            collate_fn=self.collator,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(self.seed),
        )
        for _ in itertools.count():
            for batch in loader:
                yield self._batch(batch)

    def _rows(self) -> NDArray[np.int32]:
        make = grouped_rows if self.system.rows == "grouped" else line_rows
        rows = make(self.index, self.tokenizer, self.case.seq_len, ALL_ROWS)
        if len(rows) < self.case.step_rows:
            repeats = -(-self.case.step_rows // max(len(rows), 1))
            rows = np.tile(rows, (repeats, 1))
        return rows

    def _batch(self, batch: dict[str, torch.Tensor]) -> Batch:
        """Cut into micro-batches; a mask of attention goes where there is padding, for it costs the fastest kernels."""
        given = {name: batch[name] for name in ("input_ids", "labels")}
        if self.system.rows == "lines":
            given["attention_mask"] = batch["attention_mask"]
        if self.device.type == "cuda":
            given = {name: value.pin_memory() for name, value in given.items()}
        starts = range(0, self.case.step_rows, self.case.micro_batch_rows)
        parts = [
            {name: value[start : start + self.case.micro_batch_rows] for name, value in given.items()}
            for start in starts
        ]
        return Batch(parts, collated_facts(batch, self.system.rows == "lines"))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


ALL_ROWS = 1 << 16  # of a corpus, at most: 8 million tokens at 128


class RowDataset(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Rows as `datasets` hands them to the collator: lists of ids and where special tokens stand."""

    def __init__(self, rows: NDArray[np.int32], tokenizer: Tokenizer) -> None:
        self.rows, self.pad_id = rows, tokenizer.pad_id
        self.special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        row = self.rows[number]
        return {
            "input_ids": row.tolist(),
            "attention_mask": (row != self.pad_id).astype(int).tolist(),
            "special_tokens_mask": np.isin(row, self.special).astype(int).tolist(),
        }


class CountingCollator:
    """Hugging Face's collator; its batches also say how many of their tokens are special, before masks hide it."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        special = sum(sum(example["special_tokens_mask"]) for example in examples)
        return {**self.collator(examples), "special": torch.tensor(special)}


def make_collator(text: Text, tokenizer: Tokenizer, seed: int) -> CountingCollator:
    """`DataCollatorForLanguageModeling` with the tokenizer of `text`."""
    from pathlib import Path

    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(text.tokenizer) / "tokenizer.json"),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    return CountingCollator(DataCollatorForLanguageModeling(theirs, mlm_probability=RATE, seed=seed))


def packed_facts(rows: Rows, tokenizer: Tokenizer) -> Facts:
    """Of rows of our stream."""
    is_padding = rows.tokens == tokenizer.pad_id
    begins = np.flatnonzero(rows.starts)
    lengths = np.diff(np.append(begins, rows.tokens.size)) * ~is_padding.reshape(-1)[begins]
    return Facts(
        rows=len(rows),
        text_tokens=count_text_tokens(rows, tokenizer),
        slots=int(lengths.sum()),
        squares=int((lengths.astype(np.int64) ** 2).sum()),
        predicted=int(rows.chosen.sum()),
        all_slots=int(rows.tokens.size),
    )


def collated_facts(batch: dict[str, torch.Tensor], is_padded: bool) -> Facts:
    """Of a batch of the collator. Without padding, a row is one stream of S tokens."""
    lengths = (
        batch["attention_mask"].sum(1) if is_padded else torch.full((len(batch["labels"]),), batch["labels"].shape[1])
    )
    return Facts(
        rows=len(batch["labels"]),
        text_tokens=batch["labels"].numel() - int(batch["special"]),
        slots=int(lengths.sum()),
        squares=int((lengths.long() ** 2).sum()),
        predicted=int((batch["labels"] != -100).sum()),
        all_slots=batch["labels"].numel(),
    )


def model_shape(training: Training) -> dict[str, Any]:
    """The model's settings, in `config.Model`'s names, which are `BertConfig`'s."""
    case = training.case
    shape = Model(
        hidden_size=case.hidden_size,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.hidden_size,
        max_position_embeddings=training.max_positions,
        hidden_dropout_prob=HIDDEN_DROPOUT,
        attention_probs_dropout_prob=ATTENTION_DROPOUT,
    )
    return shape.model_dump(exclude={"init"})


def first_model(training: Training, tokenizer: Tokenizer) -> MaskedLM:
    """The model of maskloom, on the CPU, with the weights that a training begins with."""
    model, _ = build_model(Model(**model_shape(training)), _widened(tokenizer, training.vocab_size), training.seed)
    return model


def run_config(system: System, training: Training, text: Text, device: Device) -> RunConfig:
    """The configuration of a run that trains as the case says."""
    case, precision = training.case, PRECISION[device]
    tree = {
        "run_dir": "none",  # nothing is written
        "seed": training.seed,
        "tokenizer": text.tokenizer,
        "data": {"train": text.corpus},
        "model": model_shape(training),
        "optimizer": {"lr": training.lr, "gradient_clipping": 1.0},
        "phases": [
            {
                "steps": training.total_steps,
                "seq_len": case.seq_len,
                "global_batch_rows": case.step_rows,
                "micro_batch_rows": case.micro_batch_rows,
            }
        ],
        "engine": {
            "precision": precision,
            "zero_stage": 0 if precision == "fp32" else 1,
            "kernels": system.kernels or "eager",
        },
    }
    return parse_config(tree, f"the case {case.name}")


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay on biases and LayerNorm."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _widened(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer as one of so many ids, for the shape of a model."""
    widened = copy.copy(tokenizer)
    widened.vocab_size = vocab_size
    return widened
