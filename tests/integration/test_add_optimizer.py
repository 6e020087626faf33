"""examples/add_optimizer.py: an optimizer of one's own trains, resumes and moves between layouts as ours do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from maskloom import config as config_module
from maskloom import extensions, optim
from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.models.build import build_model
from maskloom.optim.schedule import learning_rate
from maskloom.tokenizers.loading import load_tokenizer

from .conftest import environment, final_weights, train_in_ranks
from .test_optimizers import Weights, reference_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 6


def imports_it() -> None:
    """In a rank: what `MASKLOOM_IMPORT=add_optimizer PYTHONPATH=examples` is to a program that begins."""
    sys.path.insert(0, str(EXAMPLES))
    os.environ[extensions.VARIABLE] = "add_optimizer"


@pytest.fixture
def lion(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process knows the optimizer, for as long as the test runs."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv(extensions.VARIABLE, "")
    extensions.load(["add_optimizer"])
    yield
    del sys.modules["add_optimizer"], optim.OPTIMIZERS["lion"], config_module.OPTIMIZERS["lion"]


@pytest.fixture
def settings(run_config: dict) -> dict:
    """Six steps of 12 rows, in several micro-batches, without dropout."""
    return {
        **run_config,
        "model": {**run_config["model"], "hidden_dropout_prob": 0.0},
        "optimizer": {"name": "lion", "lr": 1e-3, "beta2": 0.99, "weight_decay": 0.1},
        "phases": [{"steps": STEPS, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 3}],
        "checkpoint": {"every_steps": 3, "keep_last": 9},
    }


def train(config: Path, ranks: int, log: Path) -> str:
    return train_in_ranks([config], ranks, log, compiles=False, patch=imports_it)


def reference_lion(weights: Weights, gradients: Weights, state: Weights, number: int, config: RunConfig) -> None:
    """Algorithm 2 of Chen et al. (2023), a tensor at a time."""
    settings = config.optimizer
    lr = learning_rate(number, settings, config.schedules)
    for name, weight in weights.items():
        m = state.setdefault(name, torch.zeros_like(weight))
        update = torch.sign(settings.beta1 * m + (1 - settings.beta1) * gradients[name])
        if weight.ndim > 1:
            update += settings.weight_decay * weight
        m.copy_(settings.beta2 * m + (1 - settings.beta2) * gradients[name])
        weight -= lr * update


def way_off(found: Weights, expected: Weights, begun: Weights) -> float:
    """How far the matrices are from the expected ones, relative to the way that these went; the largest.

    The sign of a gradient that is nearly 0 is that of its rounding: a few weights go the other way.
    """
    return max(
        float((found[name].detach() - weight.detach()).norm() / (weight.detach() - begun[name]).norm())
        for name, weight in expected.items()
        if weight.ndim > 1
    )


def first_weights(path: Path) -> Weights:
    config = load_config(path)
    model, _ = build_model(config.model, load_tokenizer(config.tokenizer), config.seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("stage", "ranks"), [(0, 2), (1, 3), (2, 2), (3, 3)])
def test_it_is_the_reference_at_every_stage(
    stage: int, ranks: int, settings: dict, write_config: Callable[..., Path], tmp_path: Path, lion: None
) -> None:
    config = write_config({**settings, "engine": {"zero_stage": stage}})
    assert "optimizer: Lion, schedule linear" in train(config, ranks, tmp_path / "log")
    expected = reference_weights(config, reference_lion)
    assert way_off(final_weights(settings["run_dir"]), expected, first_weights(config)) < 0.05


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, "bf16", 2), (1, "bf16", 2)),
        ((3, "fp32", 2), (3, "fp32", 2)),
        ((1, "fp32", 2), (3, "fp32", 3)),
        ((3, "fp32", 3), (2, "fp32", 1)),
        ((2, "fp32", 2), (0, "fp32", 2)),
    ],
)
def test_a_resumed_run_is_the_undisturbed_one(
    before: tuple[int, str, int],
    after: tuple[int, str, int],
    settings: dict,
    write_config: Callable[..., Path],
    tmp_path: Path,
    lion: None,
) -> None:
    """From step 3 of 6: with the same layout bit for bit; at another ZeRO stage and on other ranks but for rounding."""

    def run(layout: tuple[int, str, int]) -> tuple[str, Weights]:
        stage, precision, ranks = layout
        config = write_config({**settings, "engine": {"zero_stage": stage, "precision": precision}})
        return train(config, ranks, tmp_path / "log"), final_weights(settings["run_dir"])

    _, whole = run(before)
    shutil.rmtree(Path(settings["run_dir"], "checkpoints/step-00000006"))
    output, resumed = run(after)
    assert "resuming after step 3 of 6" in output
    if before == after:
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    else:
        begun = first_weights(write_config(settings))
        assert way_off(resumed, {name: whole[name] for name in begun}, begun) < 0.05


def test_a_program_takes_it_into_its_ranks_and_their_readers(settings: dict, write_config: Callable[..., Path]) -> None:
    """`maskloom train CONFIG --import MODULE`, with two ranks and a reader process for each."""
    tree = {**settings, "phases": [{**settings["phases"][0], "steps": 2}], "data": {**settings["data"], "workers": 1}}
    command = [sys.executable, "-m", "maskloom.cli", "train", write_config(tree), "--processes", "2"]
    path = os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH", "")]))
    variables = environment(PYTHONPATH=path)
    done = subprocess.run(
        [*command, "--import", "add_optimizer"], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "optimizer: Lion" in done.stdout
    refused = subprocess.run([*command, "run_dir=another"], env=variables, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert (
        "optimizer.name = 'lion': should be one of adamw, lamb, muon, stable_adamw; one of your own needs --import"
        in refused.stderr
    )


def test_without_the_module_its_name_is_refused_with_what_to_do(
    settings: dict, write_config: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.name = 'lion': should be one of adamw, .*--import MODULE"):
        load_config(write_config(settings))
