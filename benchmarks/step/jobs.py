"""What a process is asked to train, and what its steps hold.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from maskloom.config import Bert, RunConfig
from maskloom.config_file import parse_config
from step.cases import ATTENTION_DROPOUT, BERT_VOCABULARY, HIDDEN_DROPOUT, PRECISION, Case, Device, System
from step.text import SEED, Text

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

    def step(self, batch: Batch) -> None:
        """One optimizer step."""

    def read(self, workers: int) -> Iterator[Batch]:
        """Batches without end, read by so many processes; 0 reads here."""

    def mean_loss(self) -> float:
        """Nats a predicted token, the mean over the steps since the last call."""


@dataclass(frozen=True)
class Training:
    """How a system is trained: what a measurement of steps and one of a loss share.

    Attributes:
        vocab_size: of the model; the tokenizer may have fewer ids.
        lr: the highest; `warmup_steps` come before it, a linear decay after it.
        total_steps: of the run, on which the learning rate depends.
        max_positions: of the model.
    """

    case: Case
    vocab_size: int = BERT_VOCABULARY
    lr: float = 1e-4
    seed: int = SEED
    warmup_steps: int = 100
    total_steps: int = ENDLESS
    max_positions: int = 512


@dataclass(frozen=True)
class Job:
    """One system that trains, on this machine.

    Attributes:
        threads: of torch, on a CPU.
        profiles: a profile will be asked for.
    """

    system: System
    training: Training
    text: Text
    device: Device
    threads: int
    profiles: bool = False

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Job:
        tree: dict[str, Any] = json.loads(text)
        training = tree["training"]
        case = training["case"]
        return Job(
            System(**{**tree["system"], "devices": tuple(tree["system"]["devices"])}),
            Training(**{**training, "case": Case(**{**case, "leaves_out": tuple(case["leaves_out"])})}),
            Text(**tree["text"]),
            tree["device"],
            tree["threads"],
            tree["profiles"],
        )


def model_shape(training: Training) -> dict[str, Any]:
    """The model's settings, in `config.Model`'s names, which are `BertConfig`'s."""
    case = training.case
    shape = Bert(
        hidden_size=case.hidden_size,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.hidden_size,
        max_position_embeddings=training.max_positions,
        hidden_dropout_prob=HIDDEN_DROPOUT,
        attention_probs_dropout_prob=ATTENTION_DROPOUT,
    )
    return shape.model_dump(exclude={"init"})


def run_config(system: System, training: Training, text: Text, device: Device) -> RunConfig:
    """The configuration of a run that trains as the case says."""
    case, precision = training.case, PRECISION[device]
    tree = {
        "run_dir": "none",  # nothing is written
        "seed": training.seed,
        "tokenizer": text.tokenizer,
        "data": {"train": text.corpus},
        "model": model_shape(training),
        "optimizer": {"lr": training.lr, "warmup_steps": training.warmup_steps, "gradient_clipping": 1.0},
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
