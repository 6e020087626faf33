"""Losses of masked tokens do not depend on how rows are put together, and the short way through the head gives the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import FNetConfig, FNetForMaskedLM

from maskloom.errors import UserError
from maskloom.scoring import models as module
from maskloom.scoring.models import Row, Scored


def rows_of(model: Scored) -> list[Row]:
    generator = np.random.default_rng(0)
    found = []
    for length in (3, 30, 7, 30, 12):
        ids = generator.choice(model.tokenizer.random_ids, length)
        places = np.sort(generator.choice(length, max(length // 3, 1), replace=False))
        found.append(model.row(ids, places, places))
    return found


def test_each_row_alone_gives_the_same(scored: list[Scored], monkeypatch: pytest.MonkeyPatch) -> None:
    for model in scored:
        rows = rows_of(model)
        alone = [model.losses([row]) for row in rows]
        done: list[float] = []
        losses, hits = model.losses(rows, done.append)
        np.testing.assert_allclose(losses, np.concatenate([each[0] for each in alone]), rtol=1e-4)
        assert (hits == np.concatenate([each[1] for each in alone])).all()
        assert sum(done) == len(rows)
        monkeypatch.setattr(module, "MOST_SLOTS", 40)
        np.testing.assert_allclose(model.losses(rows)[0], losses, rtol=1e-4)
        monkeypatch.undo()


def test_a_head_without_a_projection_of_its_own(scored: list[Scored], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the logits of all slots are computed, and those of masks are taken."""
    model = scored[0]
    expected = model.losses(rows_of(model))
    monkeypatch.setattr(type(model.model), "get_output_embeddings", lambda self: None)
    found = model.losses(rows_of(model))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert (found[1] == expected[1]).all()


def test_a_model_that_takes_no_padding(scored: list[Scored]) -> None:
    """FNet mixes all slots of a row: rows of one length go together."""
    torch.manual_seed(0)
    tokenizer = scored[0].tokenizer
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    fnet = FNetForMaskedLM(FNetConfig(vocab_size=tokenizer.vocab_size, **shape)).eval()
    model = dataclasses.replace(scored[0], model=fnet)
    rows = rows_of(model)
    found = model.losses(rows)[0]
    np.testing.assert_allclose(found, np.concatenate([model.losses([row])[0] for row in rows]), rtol=1e-4)
    whole = fnet(input_ids=torch.from_numpy(rows[0].ids)[None].long()).logits[0, rows[0].places].log_softmax(-1)
    expected = -whole[range(len(rows[0].targets)), rows[0].targets]
    np.testing.assert_allclose(found[: len(expected)], expected.detach().numpy(), rtol=1e-4)


def test_batches_are_bounded(scored: list[Scored], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LOGITS", 12 * 100)
    rows = rows_of(scored[0])
    batches = list(module._batches(rows, 100))
    assert sorted(number for batch in batches for number in batch) == list(range(len(rows)))
    assert all(len(batch) == 1 or sum(len(rows[number].places) for number in batch) <= 12 for batch in batches)
    assert len(batches) > 1


def test_losses_that_are_not_finite(scored: list[Scored]) -> None:
    class Broken(torch.nn.Module):
        device = torch.device("cpu")

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return torch.nn.Embedding(600, 1)

        def get_output_embeddings(self) -> None:
            return None

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return dataclasses.make_dataclass("Output", ["logits"])(torch.full((*input_ids.shape, 600), torch.nan))

    broken = dataclasses.replace(scored[0], model=Broken())
    with pytest.raises(UserError, match="wordpiece gives losses that are not finite"):
        broken.losses(rows_of(scored[0]))
