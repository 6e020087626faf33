"""What a process is asked to train, and what its steps hold.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from maskloom.config import MODELS, Model, RunConfig
from maskloom.config_file import parse_config
from step.cases import ATTENTION_DROPOUT, BERT_VOCABULARY, HIDDEN_DROPOUT, PRECISION, Case, Device, System
from step.text import SEED, Text

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ENDLESS = 1_000_000  # steps: no measurement comes to the end of its text


@dataclass(frozen=True)
class Facts:
    """What a step's batch holds; sums over steps are sums of these.

    Attributes:
        rows: rows.
        text_tokens: tokens that carry text: neither padding nor [CLS] nor [SEP].
        slots: slots with a token, [CLS] and [SEP] included.
        pairs: of slots that see each other, for each distinct window of the model's attention (`Shape.distinct_windows`):
            within pieces, or within whole rows where a row is one stream.
        predicted: tokens that are predicted.
        all_slots: all slots, padding included.
    """

    rows: int
    text_tokens: int
    slots: int
    pairs: tuple[int, ...]
    predicted: int
    all_slots: int

    @staticmethod
    def total(parts: Sequence[Facts]) -> Facts:
        sums = {name: sum(getattr(part, name) for part in parts) for name in COUNTS}
        pairs = tuple(sum(column) for column in zip(*(part.pairs for part in parts), strict=True))
        return Facts(**sums, pairs=pairs)


COUNTS = tuple(field.name for field in fields(Facts) if field.name != "pairs")


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
        max_positions: longest piece that the model takes.
    """

    case: Case
    vocab_size: int = BERT_VOCABULARY
    lr: float = 1e-4
    seed: int = SEED
    warmup_steps: int = 100
    total_steps: int = ENDLESS
    max_positions: int = 512

    @staticmethod
    def of(case: Case) -> Training:
        """For a measurement of steps."""
        return Training(case, case.vocab_size, max_positions=max(512, case.seq_len))


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
        return Job(
            System(**{**tree["system"], "devices": tuple(tree["system"]["devices"])}),
            Training(**{**training, "case": Case.loads(training["case"])}),
            Text(**tree["text"]),
            tree["device"],
            tree["threads"],
            tree["profiles"],
        )


UNUSED_POSITIONS = 2
"""Rows that a RoBERTa's table of positions has for nothing, with a padding token of id 0 or 1."""


def model_settings(training: Training) -> Model:
    """The model's settings: those of the base model of its architecture, in another size."""
    case = training.case
    section = MODELS[case.architecture]
    some = {
        "hidden_dropout_prob": HIDDEN_DROPOUT,
        "attention_probs_dropout_prob": ATTENTION_DROPOUT,
        "local_attention": case.local_attention,
    }
    return section(
        architecture=case.architecture,
        hidden_size=case.hidden_size,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        intermediate_size=case.intermediate_size,
        max_position_embeddings=training.max_positions + (UNUSED_POSITIONS if case.architecture == "roberta" else 0),
        **{name: value for name, value in some.items() if name in section.model_fields},
    )


def bare_config(case: Case, layers: int | None = None) -> PretrainedConfig:
    """Hugging Face's configuration of a case's model, where no tokenizer is at hand.

    Args:
        layers: instead of the case's.
    """
    from maskloom.models.architecture import ARCHITECTURES

    case = replace(case, layers=layers or case.layers)
    settings = model_settings(Training.of(case))
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    shape = settings.model_dump(exclude={"architecture", "init"})
    return ARCHITECTURES[case.architecture].config_class(vocab_size=case.vocab_size, **ids, **shape)


def run_config(system: System, training: Training, text: Text, device: Device) -> RunConfig:
    """The configuration of a run that trains as the case says."""
    case, precision = training.case, PRECISION[device]
    tree = {
        "run_dir": "none",  # nothing is written
        "seed": training.seed,
        "tokenizer": text.tokenizer,
        "data": {"train": text.corpus},
        "model": model_settings(training).model_dump(exclude={"init"}),
        "masking": {"rate": case.mask_rate},
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
