"""200 steps beside a plain loop over Hugging Face's modules, fed the same rows with the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.data.cursors import first_cursors
from maskloom.data.rows import Rows
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.models.build import build_model
from maskloom.optim import OPTIMIZERS
from maskloom.optim.schedule import learning_rate
from maskloom.train.setup import prepare

from .conftest import losses

STEPS = 200


@pytest.fixture
def settings(run_config: dict) -> dict:
    return {
        **run_config,
        "model": {**run_config["model"], "hidden_dropout_prob": 0.0},
        "optimizer": {"lr": 1e-3, "warmup_steps": 20, "gradient_clipping": 0.0},
        "phases": [{"steps": STEPS, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 12}],
        "checkpoint": {"every_steps": 0},
    }


def hugging_face_losses(config: RunConfig, order: Sequence[int]) -> np.ndarray:
    """The losses of a loop that anyone would write; `order`: in which the rows of a batch stand."""
    config, plan = prepare(config, World())
    model = BertForMaskedLM(build_model(config.model, plan.tokenizer, config.seed)[0].config)
    model.load_state_dict(build_model(config.model, plan.tokenizer, config.seed)[0].state_dict())
    settings = config.optimizer
    groups = OPTIMIZERS[settings.name].groups(model, settings)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    found = []
    for number, step in enumerate(read_steps(plan, World(), first_cursors(plan.lanes, 1), 0), start=1):
        loss = model(**hugging_face_inputs(step.rows.take(np.asarray(order)))).loss
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, settings, config.schedules)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return np.asarray(found)


def hugging_face_inputs(rows: Rows) -> dict[str, torch.Tensor]:
    """Packed rows: attention within pieces, positions that restart with each."""
    numbers = torch.from_numpy(np.cumsum(rows.starts, axis=1))
    slots = np.arange(rows.tokens.shape[1])
    starts = np.maximum.accumulate(np.where(rows.starts, slots, 0), axis=1)
    return {
        "input_ids": torch.from_numpy(rows.input_ids).long(),
        "attention_mask": (numbers[:, :, None] == numbers[:, None, :])[:, None],
        "position_ids": torch.from_numpy(slots - starts),
        "labels": torch.from_numpy(np.where(rows.chosen, rows.tokens, -100)).long(),
    }


def test_losses_are_those_of_hugging_faces_modules(
    settings: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    """What rounding does to a run of this length is measured: the same loop, with the rows of a batch in another order."""
    plain = load_config(write_config(settings))
    reference = hugging_face_losses(plain, range(12))
    rounding = np.abs(hugging_face_losses(plain, range(11, -1, -1)) - reference)
    assert reference[:10].mean() - reference[-10:].mean() > 0.5  # it learned something

    def train(name: str, **engine: str) -> np.ndarray:
        run_ranks(write_config({**settings, "run_dir": str(tmp_path / name), "engine": engine}))
        return np.asarray([losses(tmp_path / name)[step] for step in range(1, STEPS + 1)])

    for kernels in ("eager", "compile", "onednn"):
        off = np.abs(train(kernels, kernels=kernels) - reference)
        print(
            f"{kernels}: {off.max():.1e}, in the mean {off.mean():.1e}; rounding {rounding.max():.1e}, {rounding.mean():.1e}"
        )
        assert off[0] < 1e-5, kernels
        assert off.max() < 4 * rounding.max(), kernels
        assert off.mean() < 4 * rounding.mean(), kernels
    half = np.abs(train("bf16", precision="bf16") - reference)
    print(f"bf16: {half.max():.1e}, in the mean {half.mean():.1e}")
    assert half.mean() < 2**-8 * reference.mean()
