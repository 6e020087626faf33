"""Plain Hugging Face, given its best: its own module with fused AdamW, as a careful user writes it without a Trainer.

A step moves the batch to the device, runs forward and backward of every micro-batch, clips the gradients' norm, steps, and
clears the gradients. Masking and collating are not in it. bf16 is `torch.autocast` over fp32 weights, as its Trainer has it.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from maskloom.data.rows import count_pairs
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.flops import Shape
from maskloom.optim.schedule import learning_rate
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.kinds import DATA, OPTIMIZER
from step.cases import PRECISION, Device, System
from step.jobs import Batch, Facts, Training, model_settings, run_config
from step.ours import widened
from step.text import Text, check_vocabulary, grouped_rows, line_rows


class Theirs:
    """A model, its collator and its optimizer."""

    def __init__(self, system: System, training: Training, text: Text, device: Device) -> None:
        self.system, self.case, self.seed = system, training.case, training.seed
        self.device, self.precision = torch.device(device), PRECISION[device]
        self.index, self.tokenizer = text.open()
        check_vocabulary(self.tokenizer, training.vocab_size)
        self.collator = make_collator(text, self.tokenizer, training.seed, training.case.mask_rate)
        self.module = make_module(system, training, self.tokenizer).to(self.device).train()
        self.windows = Shape.of(self.module.config).distinct_windows
        if system.compiles:
            self.module.compile(dynamic=False)
        self.config = run_config(system, training, text, device)
        optimizer = self.config.optimizer
        self.clipping = optimizer.gradient_clipping
        self.optimizer = torch.optim.AdamW(
            _groups(self.module, optimizer.weight_decay),
            lr=training.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            fused=True,
        )
        self.number = 0
        self._losses = torch.zeros(2, dtype=torch.float64, device=self.device)  # their sum, and how many

    def step(self, batch: Batch) -> None:
        self.number += 1
        lr = learning_rate(self.number, self.config.optimizer, self.config.schedules)
        self.module.train()
        with torch.profiler.record_function(DATA):
            parts = [
                {name: value.to(self.device, non_blocking=True) for name, value in p.items()} for p in batch.content
            ]
        for part in parts:
            with self._autocast():
                loss = self.module(**part).loss / len(parts)
            loss.backward()
            self._losses[0] += loss.detach()
        with torch.profiler.record_function(OPTIMIZER):
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clipping)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self._losses[1] += 1

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

    def mean_loss(self) -> float:
        total, steps = self._losses.tolist()
        self._losses.zero_()
        return total / steps if steps else math.nan

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
        return Batch(parts, collated_facts(batch, self.system.rows == "lines", self.windows))

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


def make_module(system: System, training: Training, tokenizer: Tokenizer) -> Any:
    """Hugging Face's own class of the case's architecture, with weights drawn from the seed."""
    settings = model_settings(training)
    architecture = ARCHITECTURES[settings.architecture]
    config = architecture.config(settings, widened(tokenizer, training.vocab_size))
    config._attn_implementation = system.attention
    if system.is_sparse:
        config.sparse_prediction = True
    torch.manual_seed(training.seed)
    return architecture.hf_class(config)


def make_collator(text: Text, tokenizer: Tokenizer, seed: int, rate: float) -> CountingCollator:
    """`DataCollatorForLanguageModeling` with the tokenizer of `text`."""
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(text.tokenizer) / "tokenizer.json"),
        **{f"{role}_token": token for role, token in tokenizer.roles.by_role().items()},
    )
    return CountingCollator(DataCollatorForLanguageModeling(theirs, mlm_probability=rate, seed=seed))


def collated_facts(batch: dict[str, torch.Tensor], is_padded: bool, windows: Sequence[int | None] = (None,)) -> Facts:
    """Of a batch of the collator. Without padding, a row is one stream of S tokens."""
    lengths = (
        batch["attention_mask"].sum(1) if is_padded else torch.full((len(batch["labels"]),), batch["labels"].shape[1])
    )
    return Facts(
        rows=len(batch["labels"]),
        text_tokens=batch["labels"].numel() - int(batch["special"]),
        slots=int(lengths.sum()),
        pairs=tuple(int(count_pairs(lengths.numpy(), window).sum()) for window in windows),
        predicted=int((batch["labels"] != -100).sum()),
        all_slots=batch["labels"].numel(),
    )


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay on biases and LayerNorm."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
