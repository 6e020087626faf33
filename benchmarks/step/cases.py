"""What is measured: model shapes with their batches, and the ways to run a step.

A GPU gets BERT-base and BERT-large at 128 and 512 slots a row in bf16, in steps of 147,456 slots: more than 130,000 tokens of
text whatever the packing, so that the optimizer is below a hundredth of the step. A CPU gets BERT-mini (4 layers of 256) and
BERT-base in fp32, in steps of a few seconds.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from maskloom.config import Engine
from maskloom.errors import UserError

Device = Literal["cpu", "cuda"]
BERT_VOCABULARY = 30522  # of bert-base-uncased: the head has its size whatever the tokenizer, so that FLOPs are BERT's


@dataclass(frozen=True)
class Case:
    """A model shape and a batch.

    Attributes:
        hidden_size, layers, heads: of the encoder; the inner layer is four times as wide.
        seq_len: slots a row.
        step_rows: rows an optimizer step.
        micro_batch_rows: rows that are run forward and backward at once.
        warm_steps: steps at the start of a turn that are not measured: the first ones after another process' turn are slower.
        steps: measured steps of a turn, after them.
        rounds: turns of every system.
        leaves_out: systems that are measured only where they are named.
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
SLOW = ("hf-eager", "hf-lines")
TINY = Case("tiny", "two layers of 64", 64, 2, 2, 32, 8, 4, warm_steps=1, steps=2, rounds=2)
"""Seconds, to see that everything runs; never measured unless it is asked for."""
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
        TINY,
    ),
    "cuda": (
        Case("base-128", "BERT-base, 128", *BASE, 128, 1152, 576, warm_steps=1, steps=20, rounds=5),
        Case("base-512", "BERT-base, 512", *BASE, 512, 288, 144, warm_steps=1, steps=20, rounds=5),
        Case("large-128", "BERT-large, 128", *LARGE, 128, 1152, 288, warm_steps=1, steps=20, rounds=5),
        Case("large-512", "BERT-large, 512", *LARGE, 512, 288, 72, warm_steps=1, steps=20, rounds=5),
        TINY,
    ),
}
PRECISION: dict[Device, Literal["fp32", "bf16"]] = {"cpu": "fp32", "cuda": "bf16"}
HIDDEN_DROPOUT, ATTENTION_DROPOUT = 0.1, 0.0  # of every system


@dataclass(frozen=True)
class System:
    """One way to run a training step.

    Attributes:
        name: what `--systems` calls it.
        is_ours: maskloom's, or plain Hugging Face's.
        about: in a table.
        rows: `packed` (whole pieces of documents, attention within each), `grouped` (run_mlm's group_texts: one stream of
            tokens, cut every S) or `lines` (a document a row, cut and padded to S).
        kernels: maskloom's `engine.kernels`.
        attention: Hugging Face's `attn_implementation`.
        compiles: mode of `torch.compile` that is applied here; None: none, or what `kernels` does by itself.
        devices: where it can run.
    """

    name: str
    is_ours: bool
    about: str
    rows: Literal["packed", "grouped", "lines"]
    kernels: str = ""
    attention: Literal["", "eager", "sdpa"] = ""
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
)


def choose_cases(names: Sequence[str] | None, device: Device) -> list[Case]:
    """The cases of a device that are named, or all but the tiny one. Raises UserError for one that it has not."""
    known = {case.name: case for case in CASES[device]}
    return [known[name] for name in _named("--cases", names, known, device)] if names else [*CASES[device][:-1]]


def choose_systems(names: Sequence[str] | None, device: Device, leaving_out: Sequence[str] = ()) -> list[System]:
    """The systems that are named, or all that run on the device but some. Raises UserError for one that does not run."""
    known = {system.name: system for system in SYSTEMS if device in system.devices}
    if names:
        return [known[name] for name in _named("--systems", names, known, device)]
    return [system for system in known.values() if system.name not in leaving_out]


def _named(option: str, names: Sequence[str], known: typing.Iterable[str], device: Device) -> list[str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        where = {"cpu": "a CPU", "cuda": "a GPU"}[device]
        raise UserError(f"{option} {','.join(unknown)}: on {where} there are {', '.join(known)}")
    return list(dict.fromkeys(names))
