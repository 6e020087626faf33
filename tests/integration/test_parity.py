"""200 steps beside a plain loop over Hugging Face's modules, fed the same rows with the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.data.cursors import first_cursors
from maskloom.data.rows import Rows
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.build import build_model
from maskloom.optim import OPTIMIZERS
from maskloom.optim.schedule import learning_rate
from maskloom.train.setup import prepare

from .conftest import losses, tiny


@pytest.fixture
def settings(run_config: dict) -> dict:
    return {
        **run_config,
        "optimizer": {"lr": 1e-3, "warmup_steps": 20, "gradient_clipping": 0.0},
        "checkpoint": {"every_steps": 0},
    }


def hugging_face_losses(config: RunConfig, order: Sequence[int]) -> np.ndarray:
    """The losses of a loop that anyone would write; `order`: in which the rows of a batch stand."""
    config, plan = prepare(config, World())
    ours, _ = build_model(config.model, plan.tokenizer, config.seed)
    model = ARCHITECTURES[config.model.architecture].hf_class(ours.config)
    model.load_state_dict(ours.state_dict())
    inputs = packed_inputs if config.model.architecture == "bert" else padded_inputs
    settings = config.optimizer
    groups = OPTIMIZERS[settings.name].groups(model, settings)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    found = []
    for number, step in enumerate(read_steps(plan, World(), first_cursors(plan.lanes, 1), 0), start=1):
        loss = model(**inputs(step.rows.take(np.asarray(order)))).loss
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, settings, config.schedules)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return np.asarray(found)


def packed_inputs(rows: Rows) -> dict[str, torch.Tensor]:
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


def padded_inputs(rows: Rows) -> dict[str, torch.Tensor]:
    """Each piece in a row of its own, as the models' own attention masks and positions want it; id 0 is the padding."""
    tokens, starts = rows.tokens.ravel(), rows.starts.ravel().copy()
    starts[:: rows.tokens.shape[1]] = True
    bounds = np.flatnonzero(starts)[1:]
    labels = np.where(rows.chosen, rows.tokens, -100).ravel()

    def padded(values: np.ndarray, filling: int) -> torch.Tensor:
        pieces = [torch.from_numpy(part).long() for part in np.split(values, bounds)]
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=filling)

    return {
        "input_ids": padded(rows.input_ids.ravel(), 0),
        "attention_mask": padded(np.ones_like(tokens), 0),
        "labels": padded(labels, -100),
    }


@pytest.mark.parametrize(
    ("architecture", "steps", "kernels"),
    [("bert", 200, ("eager", "compile", "onednn")), ("roberta", 100, ("eager",)), ("modernbert", 100, ("eager",))],
)
def test_losses_are_those_of_hugging_faces_modules(
    architecture: str,
    steps: int,
    kernels: tuple[str, ...],
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
    tmp_path: Path,
) -> None:
    """What rounding does to a run of this length is measured: the same loop, with the rows of a batch in another order."""
    phase = {"steps": steps, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 12}
    settings = {**settings, "model": tiny(architecture), "phases": [phase]}
    plain = load_config(write_config(settings))
    reference = hugging_face_losses(plain, range(12))
    rounding = np.abs(hugging_face_losses(plain, range(11, -1, -1)) - reference)
    assert reference[:10].mean() - reference[-10:].mean() > 0.5  # it learned something

    def train(name: str, **engine: str) -> np.ndarray:
        run_ranks(write_config({**settings, "run_dir": str(tmp_path / name), "engine": engine}))
        return np.asarray([losses(tmp_path / name)[step] for step in range(1, steps + 1)])

    for name in kernels:
        off = np.abs(train(name, kernels=name) - reference)
        print(
            f"{name}: {off.max():.1e}, in the mean {off.mean():.1e}; rounding {rounding.max():.1e}, {rounding.mean():.1e}"
        )
        assert off[0] < 1e-5, name
        assert off.max() < 4 * rounding.max(), name
        assert off.mean() < 4 * rounding.mean(), name
    half = np.abs(train("bf16", precision="bf16") - reference)
    print(f"bf16: {half.max():.1e}, in the mean {half.mean():.1e}")
    assert half.mean() < 2**-8 * reference.mean()
