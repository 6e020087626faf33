"""Numbers that are not finite: counted, found, and explained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskloom.config_file import parse_config
from maskloom.distributed import World
from maskloom.models.bert import MaskedLM
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.divergence import collapsed, count_not_finite, diverged, first_not_finite
from tests.models.test_bert import bucket, make_rows, tiny_config
from tests.trees import tree_with


@pytest.fixture
def engine(tokenizer: Tokenizer) -> Any:
    """What of an engine is looked at: a model in fp16, and its loss scale."""
    torch.manual_seed(0)
    model = MaskedLM(tiny_config(tokenizer.vocab_size)).half().train()
    return SimpleNamespace(model=model, loss_scale=1.0, parts=model.named_parameters)


def test_weights_that_are_no_numbers_are_counted(engine: Any) -> None:
    assert count_not_finite(engine, torch.device("cpu")) == 0
    with torch.no_grad():
        engine.model.bert.embeddings.LayerNorm.weight[:3] = torch.nan
        engine.model.cls.predictions.bias[5] = torch.inf
    assert count_not_finite(engine, torch.device("cpu")) == 4


def test_the_first_micro_batch_that_overflows_tells_where(engine: Any, tokenizer: Tokenizer) -> None:
    buckets = [bucket(make_rows([[32], [10, 20]], tokenizer, seed), tokenizer) for seed in range(3)]
    seeded: list[int] = []
    assert first_not_finite(engine, buckets, seeded.append, 1.0, World()) == ""
    assert seeded == [0, 1, 2]
    engine.loss_scale = 1e9
    place = "rank 0: the gradient at the output of the head (cls.predictions.transform)"
    assert first_not_finite(engine, buckets, seeded.append, 1.0, World()) == place


@pytest.mark.parametrize(("precision", "advises_bf16"), [("fp16", True), ("bf16", False)])
def test_what_to_do_about_a_run_that_diverged(precision: str, advises_bf16: bool) -> None:
    config = parse_config(tree_with(engine={"precision": precision}, optimizer={"lr": 0.25}), "here")
    said = str(diverged("3 weights are not finite", config))
    assert "the run diverged: 3 weights are not finite. Start anew" in said
    assert "optimizer.lr (now 0.25)" in said
    assert ("or engine.precision=bf16" in said) == advises_bf16


def test_what_to_do_about_fp16_that_collapsed() -> None:
    config = parse_config(tree_with(), "here")
    assert "at step 7:" in (said := str(collapsed(7, "rank 1: the loss", config, "step-00000004")))
    assert f"Not finite: rank 1: the loss. Begin in another run_dir, with from={config.run_dir}@4 and engine" in said
    said = str(collapsed(7, "", config, None))
    assert "Not finite: the sum of the gradients. Begin in another run_dir, with engine.precision=bf16" in said
