"""The probe with an evaluation: what it reads, what it refuses before the first step, and that training does not notice."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch

from maskloom.config import Bert, Evaluation, Probe
from maskloom.data.hashing import make_key
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.models.build import build_model
from maskloom.models.masked_lm import MaskedLM
from maskloom.tasks.encoding import mean_pooled
from maskloom.tasks.probe import fit
from maskloom.tokenizers.base import Tokenizer
from maskloom.train import encoder_probe
from maskloom.train.encoder_probe import Labelled, probe_encoder, read_labelled
from maskloom.train.rank.heartbeats import Pulse

ALONE = World()
SETTINGS = Evaluation(every_steps=1, seq_len=32, micro_batch_rows=4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty texts of three classes."""
    rng = random.Random(4)
    rows = [
        {
            "text": " ".join(rng.choices("river tree stone water wind".split(), k=6)),
            "label": label,
            "number": 0.5,
            "same": "x",
        }
        for label in rng.choices(["a", "b", "c"], weights=[2, 1, 1], k=80)
    ]
    path = tmp_path_factory.mktemp("labelled") / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def labelled(file: Path) -> Labelled:
    found = read_labelled(Probe(data=str(file)), ALONE)
    assert found is not None
    return found


@pytest.fixture
def model(tokenizer: Tokenizer) -> MaskedLM:
    settings = Bert(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    return build_model(settings, tokenizer, 1)[0]


def test_a_fifth_is_tested_unless_another_file_is(file: Path, labelled: Labelled) -> None:
    train, test = labelled
    assert len(train) + len(test) == 80
    assert 4 <= len(test) <= 30
    assert not set(train.texts) & set(test.texts)
    other = read_labelled(Probe(data=str(file), test=str(file)), ALONE)
    assert other is not None
    assert [len(part) for part in other] == [80, 80]
    assert read_labelled(None, ALONE) is None
    largest = max(train.labels.count(label) for label in "abc")
    label = next(label for label in "abc" if train.labels.count(label) == largest)
    share = test.labels.count(label) / len(test)
    assert labelled.title.endswith(f"{len(test)} to test; always the most frequent label is right in {share:.1%}")


def test_of_more_examples_those_with_the_smallest_hashes_are_taken_in_their_order(file: Path) -> None:
    found = read_labelled(Probe(data=str(file), test=str(file), most_examples=20), ALONE)
    assert found is not None
    assert [len(part) for part in found] == [20, 5]
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    smallest = sorted(make_key("probe", text) for text in texts)[:20]
    assert sorted(make_key("probe", text) for text in found.train.texts) == smallest
    assert found.train.numbers == sorted(found.train.numbers)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": "no/such.csv"}, "no/such.csv: there is no such file"),
        ({"label": "kind"}, "has no column 'kind'"),
        ({"label": "number"}, "labels are numbers; a probe needs classes"),
        ({"label": "same"}, "a probe needs two classes"),
    ],
)
def test_what_cannot_be_probed_is_refused(settings: dict, said: str, file: Path) -> None:
    given = Probe(**({"data": str(file)} | settings))
    with pytest.raises(UserError, match=said) as error:
        read_labelled(given, ALONE)
    assert str(error.value).startswith("evaluation.probe: ")


def test_a_missing_library_is_said_before_the_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'maskloom\[tasks\]'"):
        read_labelled(Probe(data=str(file)), ALONE)


def test_the_figures_are_those_of_the_frozen_encoder_and_training_does_not_notice(
    model: MaskedLM, tokenizer: Tokenizer, labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train()
    before, weights = torch.get_rng_state(), [weight.clone() for weight in model.parameters()]
    monkeypatch.setattr(encoder_probe, "TEXTS_AT_ONCE", 7)
    found = probe_encoder(model, tokenizer, labelled, SETTINGS, ALONE, Pulse())
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(weight.grad is None for weight in model.parameters())
    vectors = [mean_pooled(model, tokenizer, part.texts, 32, 8) for part in labelled]
    wanted = fit(vectors[0], labelled.train.labels, vectors[1], labelled.test.labels, 0)
    assert found.keys() == {"evaluation_probe_accuracy", "evaluation_probe_macro_f1"}
    for name in ("accuracy", "macro_f1"):
        assert found[f"evaluation_probe_{name}"] == pytest.approx(wanted[name], abs=1.5 / len(labelled.test))


def test_an_encoder_that_is_not_finite_has_no_figures(
    model: MaskedLM, tokenizer: Tokenizer, labelled: Labelled, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert probe_encoder(model, tokenizer, labelled, SETTINGS, ALONE, Pulse()) == {}
    assert "WARNING: the probe says nothing here: " in capsys.readouterr().err
