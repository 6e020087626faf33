"""A step of plain Hugging Face, what is counted of its rows, and that both systems train alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from step.cases import TINY, Case, choose_systems
from step.jobs import Training, run_config
from step.ours import first_model
from step.text import Text
from step.theirs import RowDataset, Theirs, collated_facts, make_collator

from maskloom.models.architecture import longest_piece_of
from maskloom.optim.schedule import learning_rate
from maskloom.tokenizers.base import Tokenizer


@pytest.fixture(scope="module")
def text(corpus_dir: Path, tokenizer_dir: Path) -> Text:
    return Text(str(corpus_dir), str(tokenizer_dir))


@pytest.mark.parametrize("is_padded", [False, True])
def test_facts_of_collated_rows(is_padded: bool, text: Text, tokenizer: Tokenizer) -> None:
    cls_, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    tail = [sep, pad, pad] if is_padded else [9, sep, 9]
    rows = np.array([[cls_, 9, 9, 9, 9, *tail], [cls_, 9, 9, 9, 9, 9, 9, sep]], np.int32)
    dataset = RowDataset(rows, tokenizer)
    batch = make_collator(text, tokenizer, seed=1, rate=0.15)([dataset[0], dataset[1]])
    found = collated_facts(batch, is_padded)
    lengths = (6, 8) if is_padded else (8, 8)
    assert (found.rows, found.all_slots, found.slots) == (2, 16, sum(lengths))
    assert found.pairs == (sum(length**2 for length in lengths),)
    # Each slot sees itself and one neighbour to either side, which the two at the ends lack.
    near = collated_facts(batch, is_padded, (1,))
    assert near.pairs == (sum(3 * length - 2 for length in lengths),)
    assert found.text_tokens == (4 if is_padded else 6) + 6
    assert found.predicted == int((batch["labels"] != -100).sum())


MODERN, ROBERTA = replace(TINY, architecture="modernbert", inner_size=96), replace(TINY, architecture="roberta")


@pytest.mark.parametrize(
    ("case", "name", "embeddings", "output"),
    [
        *[
            (TINY, name, "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.dense.weight")
            for name in ("hf-eager", "hf-sdpa", "hf-lines")
        ],
        *[
            (MODERN, name, "model.embeddings.tok_embeddings.weight", "model.layers.1.mlp.Wo.weight")
            for name in ("hf-sparse", "hf-sparse-lines")
        ],
        (
            ROBERTA,
            "hf-sdpa",
            "roberta.embeddings.word_embeddings.weight",
            "roberta.encoder.layer.1.output.dense.weight",
        ),
    ],
)
def test_a_step_of_hugging_face_trains(case: Case, name: str, embeddings: str, output: str, text: Text) -> None:
    (system,) = choose_systems([name], "cpu", architecture=case.architecture)
    trained = Theirs(system, Training(case, vocab_size=512, lr=1e-3, warmup_steps=1, total_steps=10), text, "cpu")
    assert getattr(trained.module.config, "sparse_prediction", False) is system.is_sparse
    batch = next(trained.read(workers=0))
    assert [part["input_ids"].shape for part in batch.content] == [(TINY.micro_batch_rows, TINY.seq_len)] * 2
    assert ("attention_mask" in batch.content[0]) == name.endswith("lines")  # full rows go without, the fastest way
    before = {key: value.clone() for key, value in trained.module.state_dict().items()}
    trained.step(batch)
    assert trained.mean_loss() == pytest.approx(np.log(512), rel=0.05)  # an untrained model knows nothing
    assert {group["lr"] for group in trained.optimizer.param_groups} == {1e-3}
    assert all(parameter.grad is None for parameter in trained.module.parameters())
    changed = [key for key, value in trained.module.state_dict().items() if not torch.equal(value, before[key])]
    assert {embeddings, output} <= {*changed}


@pytest.mark.parametrize("case", [MODERN, ROBERTA], ids=lambda case: case.architecture)
def test_another_architecture_has_the_sizes_of_its_case(case: Case, text: Text, tokenizer: Tokenizer) -> None:
    training = Training(case, vocab_size=512, max_positions=32)
    (system,) = choose_systems(["hf-sdpa"], "cpu", architecture=case.architecture)
    config = Theirs(system, training, text, "cpu").module.config
    assert (config.model_type, config.num_hidden_layers) == (case.architecture, 2)
    assert (config.hidden_size, config.intermediate_size) == (64, case.inner_size or 256)
    assert longest_piece_of(config) >= 32
    weights = first_model(training, tokenizer).state_dict()
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in Theirs(system, training, text, "cpu").module.state_dict().items()
    }
    settings = run_config(system, replace(training, case=replace(case, mask_rate=0.3)), text, "cpu")
    assert settings.masking.rate == 0.3


def test_both_train_with_the_same_settings(text: Text, tokenizer: Tokenizer) -> None:
    training = Training(TINY, vocab_size=512)
    ours = run_config(choose_systems(["maskloom-compile"], "cpu")[0], training, text, "cpu")
    assert (ours.engine.kernels, ours.engine.precision, ours.engine.zero_stage) == ("compile", "fp32", 0)
    assert (ours.model.hidden_dropout_prob, ours.model.attention_probs_dropout_prob) == (0.1, 0.0)
    theirs = Theirs(choose_systems(["hf-sdpa"], "cpu")[0], training, text, "cpu")
    weights = first_model(training, tokenizer).state_dict()
    shapes = {name: value.shape for name, value in theirs.module.state_dict().items()}
    assert {name: value.shape for name, value in weights.items()} == shapes
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_act", "layer_norm_eps"):
        assert getattr(theirs.module.config, name) == getattr(ours.model, name)
    rates = [learning_rate(step, ours.optimizer, ours.schedules) for step in (1, 100, 1_000_000)]
    assert rates == pytest.approx([1e-6, 1e-4, 1e-4 / 999_901])  # the schedule that both take it from
    decays = sorted(group["weight_decay"] for group in theirs.optimizer.param_groups)
    assert decays == [0.0, ours.optimizer.weight_decay]
