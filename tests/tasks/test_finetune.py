"""What is trained, and what is kept of several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskloom.tasks import training
from maskloom.tasks.finetune import Data, finetune
from maskloom.tasks.heads import Encoder, open_encoder
from maskloom.tasks.labelled import Examples
from maskloom.tasks.target import target_of
from maskloom.tasks.training import Settings
from maskloom.tokenizers.base import Tokenizer

from .folders import exported

SETTINGS = Settings(epochs=1, lr=1e-3, batch_rows=8, warmup_share=0.1, weight_decay=0.01, max_tokens=16)


@pytest.fixture
def encoder(tokenizer: Tokenizer, tmp_path: Path) -> Encoder:
    return open_encoder(exported("bert", tokenizer, tmp_path / "model"), "made")


@pytest.fixture
def data() -> Data:
    texts = [f"the {word} of machine {number}" for number in range(8) for word in ("river", "stone")]
    examples = Examples(texts, None, ["water", "land"] * 8, "classes", "made", list(range(16)))
    return Data(target_of(examples), examples, {"test": examples})


class Watched:
    """What the Trainer begins with, and what it gives for the test examples, run by run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begins: list[dict[str, torch.Tensor]] = []
        self.outputs: list[Any] = []
        train, step, predict = (getattr(training.Trainer, name) for name in ("train", "training_step", "predict"))

        def trained(trainer: Any) -> Any:
            self.is_new = True
            return train(trainer)

        def stepped(trainer: Any, model: Any, *others: Any, **named: Any) -> Any:
            if self.is_new:
                self.begins.append({name: weight.clone() for name, weight in model.state_dict().items()})
                self.is_new = False
            return step(trainer, model, *others, **named)

        def predicted(trainer: Any, *others: Any) -> Any:
            trainer.preprocess_logits_for_metrics = None
            outputs = predict(trainer, *others)
            self.outputs.append(outputs.predictions)
            return outputs._replace(predictions=outputs.predictions.argmax(-1))

        monkeypatch.setattr(training.Trainer, "train", trained)
        monkeypatch.setattr(training.Trainer, "training_step", stepped)
        monkeypatch.setattr(training.Trainer, "predict", predicted)


def silent(line: str) -> None:
    """Say nothing."""


def test_training_begins_with_the_stored_weights_and_from_scratch_with_none(
    encoder: Encoder, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = load_file(encoder.folder / "model.safetensors")
    stored = {name: weight + 0.25 for name, weight in stored.items()}  # no fresh model has such weights
    save_file(stored, encoder.folder / "model.safetensors", {"format": "pt"})
    watched = Watched(monkeypatch)
    for from_scratch in (False, True):
        finetune(encoder, data, SETTINGS, [0], tmp_path / "work", silent, None, from_scratch)
    kept, fresh = watched.begins
    shared = [name for name in kept if name in stored]
    assert len(shared) > 30  # two layers of 16 weights, and the embeddings
    assert all(torch.equal(kept[name], stored[name]) for name in shared)
    assert not any(torch.equal(fresh[name], stored[name]) for name in shared)
    head = "classifier.weight"
    assert head not in stored
    assert kept[head].std() < 0.1  # drawn anew
    with_weights, without = watched.outputs
    assert with_weights.shape == without.shape == (16, 2)
    assert (with_weights != without).all()


def test_the_first_seed_is_kept_whatever_its_figures(
    encoder: Encoder, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of one seed is that of no other, so it tells whose model was kept."""
    watched = Watched(monkeypatch)
    (tmp_path / "kept").mkdir()
    outcome = finetune(encoder, data, SETTINGS, [3, 4], tmp_path / "work", silent, tmp_path / "kept")
    assert list(outcome.seeds) == [3, 4]
    kept = load_file(tmp_path / "kept" / "model.safetensors")["classifier.weight"]
    nearest = [float((begin["classifier.weight"] - kept).abs().max()) for begin in watched.begins]
    moved = 2 * SETTINGS.lr  # two steps of AdamW, each at most of about the rate
    assert nearest[0] < 2 * moved < nearest[1]
