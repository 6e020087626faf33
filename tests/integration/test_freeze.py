"""Runs that train a part of their model (`model.freeze`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from maskloom.errors import UserError
from maskloom.models.freezing import FROZEN
from maskloom.tokenizers.base import Tokenizer

from .conftest import final_weights, lines, train_in_ranks

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
TRANSFORM = [f"transform.{name}.{part}" for name in ("dense", "LayerNorm") for part in ("weight", "bias")]
HEAD = {f"cls.predictions.{name}" for name in ("bias", *TRANSFORM)}
RUNS = {
    "stage 0 in half": ({"zero_stage": 0, "precision": "bf16"}, "adamw", "embeddings"),
    "stage 1, accumulated in half": ({"zero_stage": 1, "precision": "bf16"}, "lamb", "encoder"),
    "stage 1, fp16": ({"zero_stage": 1, "precision": "fp16"}, "adamw", "encoder"),
    "stage 2": ({"zero_stage": 2, "precision": "fp32"}, "muon", "embeddings"),
    "stage 2, nothing for Muon": ({"zero_stage": 2, "precision": "fp32"}, "muon", "encoder"),
    "stage 3 in half": ({"zero_stage": 3, "precision": "bf16"}, "adamw", "encoder"),
}
"""Name -> engine, optimizer, what is frozen."""
RESUMED = ("stage 1, accumulated in half", "stage 2", "stage 3 in half")


@pytest.fixture
def start(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, **shape)).save_pretrained(tmp_path / "start")
    tokenizer.save(tmp_path / "start" / "tokenizer.json")
    return tmp_path / "start"


def test_frozen_weights_stay_bit_for_bit_and_runs_resume(
    start: Path, run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """At every stage, in every precision, with every optimizer; also after a resume, at another stage too."""

    def tree(name: str, run: str, **engine: object) -> dict:
        settings, optimizer, frozen = RUNS[name]
        accumulates = "accumulated" in name
        return {
            **run_config,
            "run_dir": str(tmp_path / run),
            "model": {"init": str(start), "freeze": frozen},
            "optimizer": {"name": optimizer, "lr": 1e-3, "gradient_clipping": 0.0 if optimizer == "muon" else 1.0},
            "phases": [
                {"steps": 4, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 3 if accumulates else 6}
            ],
            "engine": settings | engine,
            "checkpoint": {"every_steps": 2, "background": False},
            "deepspeed": {"fp16": {"initial_scale_power": 8}} if settings["precision"] == "fp16" else {},
        }

    def train(trees: dict[str, dict]) -> str:
        files = [write_config(each, f"{number}.yaml") for number, each in enumerate(trees.values())]
        return train_in_ranks(files, 2, tmp_path / "log", fake_fp16=True)

    output = train({name: tree(name, name) for name in RUNS})
    before = load_file(start / "model.safetensors")
    assert {name for name in before if "cls" in name} == HEAD
    trained, whole = sum(before[name].numel() for name in HEAD), sum(weight.numel() for weight in before.values())
    assert f"model.freeze encoder: {trained:,} of {whole:,} parameters are trained" in output
    for name in RUNS:
        after = final_weights(tmp_path / name)
        kept = set(load_file(tmp_path / name / "model" / FROZEN))
        assert kept == (
            {EMBEDDINGS} if RUNS[name][2] == "embeddings" else {each for each in before if "cls" not in each}
        )
        for weight in kept:
            assert torch.equal(after[weight], before[weight]), f"{name}: {weight}"
        assert torch.equal(after["cls.predictions.decoder.weight"], before[EMBEDDINGS]), name
        trained = "cls.predictions.transform.dense.weight"
        assert not torch.equal(after[trained], before[trained]), name

    again = {}
    for name in RESUMED:
        shutil.copytree(tmp_path / name, tmp_path / f"{name} again")
        shutil.rmtree(tmp_path / f"{name} again" / "checkpoints" / "step-00000004")
        again[name] = tree(name, f"{name} again")
    shutil.copytree(tmp_path / "stage 2 again", tmp_path / "moved")
    again["moved"] = tree("stage 2", "moved", zero_stage=1)
    train(again)
    for name in RESUMED:
        resumed = final_weights(tmp_path / f"{name} again")
        assert all(torch.equal(weight, resumed[key]) for key, weight in final_weights(tmp_path / name).items()), name
        assert lines(tmp_path / f"{name} again")[-1]["loss"] == lines(tmp_path / name)[-1]["loss"]
    moved = final_weights(tmp_path / "moved")
    assert all((moved[key] - weight).abs().max() < 1e-5 for key, weight in final_weights(tmp_path / "stage 2").items())

    (tmp_path / "moved" / "model" / FROZEN).write_bytes(b"cut off")
    with pytest.raises(UserError, match=f"{FROZEN} is damaged"):
        final_weights(tmp_path / "moved")
