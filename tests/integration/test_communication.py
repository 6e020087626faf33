"""What is sent is what the ZeRO stage and the choices of `engine` say, and no choice changes what is learned.

Two ranks train all cases one after the other, in the same processes; the volumes are those that DeepSpeed's calls were
counted with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig

from maskloom.config import Optimizer
from maskloom.models.masked_lm import MaskedLM, new_model
from maskloom.optim import OPTIMIZERS
from maskloom.tokenizers.loading import load_tokenizer

from .conftest import final_weights, lines, train_in_ranks

RANKS, STEPS, ROWS = 2, 3, 12
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Odd sizes: the equal parts of stages 1 to 3 have padding, which is sent and counted.
MODEL = {"hidden_size": 30, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 63}
SCALARS = 32  # bytes a step for gradient norms and overflow flags: a few numbers


@dataclass(frozen=True)
class Case:
    """One run of two ranks with `accumulation` micro-batches a step."""

    name: str
    stage: int
    accumulation: int = 3
    precision: str = "fp32"
    engine: dict[str, Any] = field(default_factory=dict)
    zero: dict[str, Any] = field(default_factory=dict)

    @property
    def each_micro_batch(self) -> bool:
        return self.engine.get("reduce") == "micro_batch"

    @property
    def wire_bytes(self) -> int:
        """Bytes of a gradient's element on its way."""
        chosen = self.engine.get("reduce_precision", "auto")
        return BYTES[self.precision if chosen == "auto" else chosen]


def cases() -> list[Case]:
    each = {"reduce": "micro_batch"}
    found = [Case(f"zero {stage}, A=1", stage, 1) for stage in range(4)]
    found += [Case(f"zero {stage}, A=3", stage) for stage in range(4)]
    found += [Case(f"zero {stage}, A=3, each micro-batch", stage, engine=each) for stage in (2, 3)]
    found += [Case(f"zero {stage}, overlapped", stage, engine={"overlap": True}) for stage in (1, 2, 3)]
    found += [
        Case(f"zero {stage}, overlapped, each micro-batch", stage, engine={**each, "overlap": True}) for stage in (2, 3)
    ]
    small = {
        "stage3_param_persistence_threshold": 0
    }  # by default every parameter of a model as small as this stays gathered
    nothing = {**small, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}
    found += [Case("zero 3, all gathered", 3, zero=small), Case("zero 3, nothing kept", 3, zero=nothing)]
    found += [
        Case(f"zero {stage}, small buckets", stage, engine=each, zero={"reduce_bucket_size": 1000}) for stage in (2, 3)
    ]
    found += [Case(f"zero {stage}, sent in bf16", stage, engine={"reduce_precision": "bf16"}) for stage in range(4)]
    found += [Case("zero 0 in bf16", 0, 1, "bf16")]
    found += [Case(f"zero {stage} in bf16", stage, 3, "bf16") for stage in (1, 2, 3)]
    found += [Case(f"zero {stage} in bf16, each micro-batch", stage, 3, "bf16", each) for stage in (2, 3)]
    found += [
        Case(f"zero {stage} in bf16, sent in fp32", stage, 3, "bf16", {"reduce_precision": "fp32"}) for stage in (1, 2)
    ]
    found += [Case(f"zero {stage} in fp16", stage, 3, "fp16") for stage in (1, 2, 3)]
    return sorted(found, key=lambda case: case.stage)  # stage 3 leaves traces in a process


@pytest.fixture(scope="module")
def trained(corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of every case, and of one rank with one big batch: `reference`."""
    folder = tmp_path_factory.mktemp("communication")

    def write(name: str, micro_batch_rows: int, **more: Any) -> Path:
        tree = {
            "run_dir": str(folder / name),
            "seed": 3,
            "tokenizer": str(tokenizer_dir),
            "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
            "model": {**MODEL, "hidden_dropout_prob": 0.0},
            "optimizer": {"lr": 1e-3, "gradient_clipping": 0.0},
            "phases": [
                {"steps": STEPS, "seq_len": 32, "global_batch_rows": ROWS, "micro_batch_rows": micro_batch_rows}
            ],
            "checkpoint": {"every_steps": 0},
            "logging": {"every_steps": 1, "peak_tflops": 1.0},
            **more,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    train_in_ranks([write("reference", ROWS, engine={"zero_stage": 0})], 1, folder / "reference.log")
    configs = []
    for case in cases():
        engine = {"zero_stage": case.stage, "precision": case.precision, **case.engine}
        deepspeed: dict[str, Any] = {"zero_optimization": case.zero} if case.zero else {}
        if case.precision == "fp16":
            deepspeed["fp16"] = {"initial_scale_power": 8}
        configs.append(write(case.name, ROWS // RANKS // case.accumulation, engine=engine, deepspeed=deepspeed))
    train_in_ranks(configs, RANKS, folder / "output.log", fake_fp16=True, timeout_s=600)
    return folder


@pytest.fixture(scope="module")
def model(tokenizer_dir: Path) -> MaskedLM:
    return new_model(BertConfig(vocab_size=load_tokenizer(str(tokenizer_dir)).vocab_size, **MODEL))


def up_to(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def expected_bytes(case: Case, model: MaskedLM) -> tuple[int, int]:
    """Bytes of a step for gradients, and for weights.

    N parameters: stages 0 and 1 send N gradients a step, stage 2 that or N a micro-batch, stage 3 the same of parameters that
    are each filled up to equal parts. Stages 1 and 2 gather each group of parameters, filled up to 2 P, after the update.
    Stage 3 gathers what stays gathered (here everything) after the update, once. What does not stay is gathered once a
    micro-batch, and kept from forward to backward; what may not be kept, for the forward and for the backward of every module
    that uses it: the embedding matrix has two.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    groups = [sum(part.numel() for part in group["params"]) for group in OPTIMIZERS["adamw"].groups(model, Optimizer())]
    flat = sum(up_to(size, 2 * RANKS) for size in groups)
    parts = sum(up_to(size, RANKS) for size in sizes)
    assert flat > sum(sizes) and parts > sum(sizes), "there is padding to be counted"
    reductions = case.accumulation if case.each_micro_batch else 1
    gathered = parts
    if "stage3_param_persistence_threshold" in case.zero:
        matrix = up_to(model.bert.embeddings.word_embeddings.weight.numel(), RANKS)
        kept = "stage3_max_reuse_distance" not in case.zero
        gathered = case.accumulation * (parts if kept else 2 * parts + 2 * matrix)
    flattened = case.stage == 1 and case.precision == "bf16" and case.accumulation > 1  # by DeepSpeed's BF16_Optimizer
    gradients = parts if case.stage == 3 else flat if flattened else sum(sizes)
    weights = {0: 0, 1: flat, 2: flat, 3: gathered}[case.stage]
    return reductions * gradients * case.wire_bytes, weights * BYTES[case.precision]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_volume_of_a_step_is_the_expected_one(case: Case, trained: Path, model: MaskedLM) -> None:
    line = lines(trained / case.name)[-1]  # at its first step stage 3 learns the order of the layers, and gathers more
    sent = {name.removeprefix("communication_bytes_"): line[name] for name in line if "communication_bytes_" in name}
    gradients, weights = expected_bytes(case, model)
    reduced = sent.pop("reduce_scatter_tensor") if case.stage == 3 else sent.pop("all_reduce")
    assert 0 <= reduced - gradients <= (0 if case.stage == 3 else SCALARS)
    assert sent.pop("all_gather_into_tensor", 0) == weights
    assert sum(sent.values()) <= SCALARS
    assert line["communication_s"] > 0


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_choice_learns_what_one_big_batch_learns(case: Case, trained: Path) -> None:
    reference, run = lines(trained / "reference"), lines(trained / case.name)
    assert [line["step"] for line in run] == [1, 2, 3]
    exact = case.precision == "fp32" and case.wire_bytes == 4
    for one, other in zip(reference, run, strict=True):
        # Rounding of sums; or of numbers of 8 bits (bf16, 11 in fp16): in a norm once, in the mean loss of 55 tokens less.
        assert other["loss"] == pytest.approx(one["loss"], **({"abs": 2e-6} if exact else {"rel": 2**-11}))
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-6 if exact else 2**-8)
        # FLOPs of a step: the same rows, wherever they are computed.
        assert flops(other, RANKS) == pytest.approx(flops(one, 1), rel=1e-9)
        assert other["mfu"] == pytest.approx(other["tflops_per_s"], rel=1e-9), "of a peak of 1 TFLOP/s"
    if exact:
        expected = final_weights(trained / "reference")
        for name, weight in final_weights(trained / case.name).items():
            # Adam divides by the gradient's size: where that is rounding noise (key.bias), so is the step.
            if "key.bias" not in name:
                assert (weight - expected[name]).abs().max() < 2e-6, name


def test_full_weights_are_those_that_were_trained(trained: Path) -> None:
    """bf16 at stage 1, which is kept by another optimizer of DeepSpeed's than at stage 2: the fp32 weights behind what the
    model computes with, the same as there within a few steps of Adam."""
    one, other = (final_weights(trained / f"zero {stage} in bf16") for stage in (1, 2))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.dtype == torch.float32
        assert weight.shape == other[name].shape
        assert (weight - other[name]).abs().max() <= 2 * STEPS * 1e-3, name  # each step of Adam is at most lr = 1e-3
    assert any((weight != weight.bfloat16()).any() for weight in one.values())


def flops(line: dict, ranks: int) -> float:
    return line["tflops_per_s"] * 1e12 * line["step_time_s"] * ranks
