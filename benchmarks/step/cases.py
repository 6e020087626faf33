"""What is measured: model shapes with their batches, and the ways to run a step.

A GPU gets BERT-base and BERT-large at 128 and 512 slots a row in bf16, in steps of 147,456 slots: more than 130,000 tokens of
text whatever the packing, so that the optimizer is below a hundredth of the step. A CPU gets BERT-mini (4 layers of 256) and
BERT-base in fp32, in steps of a few seconds. Each has ModernBERT too, with its own share of predicted tokens, 30 %, and a CPU a
RoBERTa of BERT-mini's size.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from maskloom.config import Engine
from maskloom.errors import UserError

Device = Literal["cpu", "cuda"]
BERT_VOCABULARY = 30522  # of bert-base-uncased: the head has its size whatever the tokenizer, so that FLOPs are BERT's


@dataclass(frozen=True)
class Case:
    """A model shape and a batch.

    Attributes:
        hidden_size, layers, heads: of the encoder.
        seq_len: slots a row.
        step_rows: rows an optimizer step.
        micro_batch_rows: rows that are run forward and backward at once.
        warm_steps: steps at the start of a turn that are not measured: the first ones after another process' turn are slower.
        steps: measured steps of a turn, after them.
        rounds: turns of every system.
        leaves_out: systems that are measured only where they are named.
        architecture: as `model.architecture` of a run.
        inner_size: width of the inner layer; None: four times the hidden size.
        mask_rate: share of the tokens that are predicted.
        local_attention: window of the layers that have one, where the architecture has such.
        vocab_size: of the model; the tokenizer may have fewer ids.
    """

    name: str
    title: str
    hidden_size: int
    layers: int
    heads: int
    seq_len: int
    step_rows: int
    micro_batch_rows: int
    warm_steps: int
    steps: int
    rounds: int
    leaves_out: tuple[str, ...] = ()
    architecture: str = "bert"
    inner_size: int | None = None
    mask_rate: float = 0.15
    local_attention: int = 128
    vocab_size: int = BERT_VOCABULARY

    @staticmethod
    def loads(tree: dict[str, Any]) -> Case:
        """From what `asdict` made, and JSON kept; what an older file lacks has its default."""
        return Case(**{"warm_steps": 0, **tree, "leaves_out": tuple(tree["leaves_out"])})

    @property
    def intermediate_size(self) -> int:
        """Width of the inner layer."""
        return self.inner_size or 4 * self.hidden_size

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step."""
        return self.step_rows // self.micro_batch_rows

    def changed(self, steps: int | None, rounds: int | None, micro_batch_rows: int | None) -> Case:
        """With what the user chose. Raises UserError for micro-batches that do not fill a step."""
        case = replace(self, steps=steps or self.steps, rounds=rounds or self.rounds)
        if micro_batch_rows and case.step_rows % micro_batch_rows:
            raise UserError(
                f"--micro-batch-rows {micro_batch_rows}: the {case.step_rows} rows a step of {case.name} are no multiple of it"
            )
        return replace(case, micro_batch_rows=micro_batch_rows or case.micro_batch_rows)


MINI, BASE, LARGE = (256, 4, 4), (768, 12, 12), (1024, 24, 16)  # width, layers, heads
MODERN_TINY, MODERN_MINI, MODERN_BASE = (128, 2, 2), (256, 6, 4), (768, 22, 12)
SLOW = ("hf-eager", "hf-lines")
TINY = Case("tiny", "two layers of 64", 64, 2, 2, 32, 8, 4, warm_steps=1, steps=2, rounds=2)
"""Seconds, to see that everything runs; never measured unless it is asked for."""


def modern_bert(size: str, shape: tuple[int, int, int], *batch: int, steps: int, rounds: int, **more: Any) -> Case:
    """A ModernBERT: the inner layer is one and a half times as wide, and 30 % of the tokens are predicted."""
    name, title, inner_size = f"modernbert-{size}-{batch[0]}", f"ModernBERT-{size}, {batch[0]}", 3 * shape[0] // 2
    case = Case(name, title, *shape, *batch, warm_steps=1, steps=steps, rounds=rounds)
    return replace(case, architecture="modernbert", inner_size=inner_size, mask_rate=0.3, **more)


FEW = ("maskloom-compile", "hf-eager", "hf-sdpa-compile", "hf-lines")
FEWER = ("maskloom-onednn", *FEW)  # `engine.kernels: auto` is eager below a width of 256
CASES: dict[Device, tuple[Case, ...]] = {
    "cpu": (
        Case("mini-128", "BERT-mini, 128", *MINI, 128, 32, 32, warm_steps=1, steps=3, rounds=3),
        Case("mini-512", "BERT-mini, 512", *MINI, 512, 8, 8, warm_steps=1, steps=3, rounds=3, leaves_out=SLOW),
        Case("base-128", "BERT-base, 128", *BASE, 128, 16, 16, warm_steps=1, steps=2, rounds=3, leaves_out=SLOW),
        Case(
            "base-512",
            "BERT-base, 512",
            *BASE,
            512,
            4,
            4,
            warm_steps=1,
            steps=2,
            rounds=3,
            leaves_out=(*SLOW, "maskloom-compile"),
        ),
        modern_bert("tiny", MODERN_TINY, 128, 32, 32, steps=4, rounds=5, leaves_out=FEWER),
        modern_bert("tiny", MODERN_TINY, 512, 8, 8, steps=4, rounds=5, leaves_out=FEWER),
        modern_bert("mini", MODERN_MINI, 128, 32, 32, steps=3, rounds=4, leaves_out=FEW),
        modern_bert("mini", MODERN_MINI, 512, 8, 8, steps=3, rounds=4, leaves_out=FEW),
        replace(
            Case("roberta-mini-128", "RoBERTa-mini, 128", *MINI, 128, 32, 32, warm_steps=1, steps=3, rounds=3),
            leaves_out=FEW,
            architecture="roberta",
        ),
        TINY,
    ),
    "cuda": (
        Case("base-128", "BERT-base, 128", *BASE, 128, 1152, 576, warm_steps=1, steps=20, rounds=5),
        Case("base-512", "BERT-base, 512", *BASE, 512, 288, 144, warm_steps=1, steps=20, rounds=5),
        Case("large-128", "BERT-large, 128", *LARGE, 128, 1152, 288, warm_steps=1, steps=20, rounds=5),
        Case("large-512", "BERT-large, 512", *LARGE, 512, 288, 72, warm_steps=1, steps=20, rounds=5),
        modern_bert("base", MODERN_BASE, 1024, 144, 36, steps=20, rounds=5, leaves_out=SLOW, vocab_size=50368),
        TINY,
    ),
}
PRECISION: dict[Device, Literal["fp32", "bf16"]] = {"cpu": "fp32", "cuda": "bf16"}
HIDDEN_DROPOUT, ATTENTION_DROPOUT = 0.1, 0.0  # of every system, where the architecture has dropouts of these names


@dataclass(frozen=True)
class System:
    """One way to run a training step.

    Attributes:
        name: what `--systems` calls it.
        is_ours: maskloom's, or plain Hugging Face's.
        about: in a table.
        rows: `packed` (whole pieces of documents, attention within each), `grouped` (run_mlm's group_texts: one stream of
            tokens, cut every S), `lines` (a document a row, cut and padded to S) or `pieces` (the pieces of our packed rows,
            one a row, padded to the longest).
        kernels: maskloom's `engine.kernels`.
        attention: Hugging Face's `attn_implementation`.
        is_sparse: Hugging Face's head runs on the predicted tokens alone (`sparse_prediction`), which ModernBERT's can.
        compiles: mode of `torch.compile` that is applied here; None: none, or what `kernels` does by itself.
        devices: where it can run.
    """

    name: str
    is_ours: bool
    about: str
    rows: Literal["packed", "grouped", "lines", "pieces"]
    kernels: str = ""
    attention: Literal["", "eager", "sdpa"] = ""
    is_sparse: bool = False
    compiles: Literal["default", "reduce-overhead"] | None = None
    devices: tuple[Device, ...] = ("cpu", "cuda")


KERNELS = tuple(
    choice for choice in typing.get_args(Engine.model_fields["kernels"].annotation) if choice != "auto"
)  # what `auto` becomes
DEVICES: dict[str, tuple[Device, ...]] = dict.fromkeys(KERNELS, ("cpu", "cuda")) | {"onednn": ("cpu",)}
SYSTEMS = (
    *(
        System(f"maskloom-{kernels}", True, f"maskloom, kernels {kernels}", "packed", kernels, devices=DEVICES[kernels])
        for kernels in KERNELS
    ),
    System(
        "maskloom-graphs",
        True,
        "maskloom, compiled with CUDA graphs",
        "packed",
        "compile",
        compiles="reduce-overhead",
        devices=("cuda",),
    ),
    System("hf-eager", False, "Hugging Face, eager attention", "grouped", attention="eager"),
    System("hf-sdpa", False, "Hugging Face, SDPA", "grouped", attention="sdpa"),
    System("hf-sdpa-compile", False, "Hugging Face, SDPA, compiled", "grouped", attention="sdpa", compiles="default"),
    System("hf-lines", False, "Hugging Face, SDPA, a document a row", "lines", attention="sdpa"),
    System("hf-sparse", False, "Hugging Face, SDPA, sparse head", "grouped", attention="sdpa", is_sparse=True),
    System(
        "hf-sparse-lines",
        False,
        "Hugging Face, SDPA, sparse head, a document a row",
        "lines",
        attention="sdpa",
        is_sparse=True,
    ),
)
FED = (
    System("hf-fed", False, "Hugging Face, SDPA, on our batches", "pieces", attention="sdpa"),
    System(
        "hf-fed", False, "Hugging Face, SDPA, sparse head, on our batches", "pieces", attention="sdpa", is_sparse=True
    ),
)
"""What learns beside maskloom from the same batches; the second where the head can be sparse."""
SPARSE_HEADS = ("modernbert",)
"""Architectures whose head Hugging Face can run on the predicted tokens alone."""


def choose_cases(names: Sequence[str] | None, device: Device) -> list[Case]:
    """The cases of a device that are named, or all but the tiny one. Raises UserError for one that it has not."""
    known = {case.name: case for case in CASES[device]}
    return [known[name] for name in _named("--cases", names, known, device)] if names else [*CASES[device][:-1]]


def choose_systems(
    names: Sequence[str] | None, device: Device, leaving_out: Sequence[str] = (), architecture: str = "bert"
) -> list[System]:
    """The systems that are named, or all that run on the device but some. Raises UserError for one that does not run.

    Args:
        architecture: of the model that they run.
    """
    known = {
        system.name: system
        for system in SYSTEMS
        if device in system.devices and (architecture in SPARSE_HEADS or not system.is_sparse)
    }
    if names:
        return [known[name] for name in _named("--systems", names, known, device)]
    return [system for system in known.values() if system.name not in leaving_out]


def _named(option: str, names: Sequence[str], known: typing.Iterable[str], device: Device) -> list[str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        where = {"cpu": "a CPU", "cuda": "a GPU"}[device]
        raise UserError(f"{option} {','.join(unknown)}: on {where} there are {', '.join(known)}")
    return list(dict.fromkeys(names))
