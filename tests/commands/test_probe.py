"""`maskloom probe`: runs, exports and other encoders side by side, on the same examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertConfig, ElectraConfig, ElectraModel, T5Config

from maskloom.commands.encoders import load_encoder
from maskloom.tokenizers.base import Tokenizer

from .conftest import Command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 texts about water or stones: one word tells which, in an equal share."""
    path = tmp_path_factory.mktemp("labelled") / "texts.csv"
    rows = [f"the {word} of machine {number},{word}" for number in range(30) for word in ("water", "stone")]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def test_a_run_beside_random_weights_and_words(trained_run: Path, data: Path, succeeds: Command) -> None:
    arguments = ("probe", trained_run, data, "--random", "--baseline", "--seeds", 2)
    found = json.loads(succeeds(*arguments, "--json"))
    names = [row["model"] for row in found["models"]]
    assert names == [f"{trained_run} at step 12", f"{trained_run} with random weights", "words (TF-IDF)"]
    assert found["train_examples"] + found["test_examples"] == 60
    assert (found["classes"], found["seeds"]) == (2, [0, 1])
    assert all(len(row[figure]) == 2 for row in found["models"] for figure in ("accuracy", "macro_f1"))
    assert found["models"][2]["accuracy"] == [1.0, 1.0]
    text = succeeds(*arguments)
    assert f"{found['train_examples']} examples to learn from, {found['test_examples']} tested, 2 classes" in text
    for row in found["models"]:
        assert f"{100 * sum(row['accuracy']) / 2:.1f} ±" in text


def test_a_file_to_test_and_several_models(
    trained_run: Path, tokenizer_dir: Path, tokenizer: Tokenizer, data: Path, tmp_path: Path, succeeds: Command
) -> None:
    """The second is of an architecture that maskloom does not train."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ElectraModel(ElectraConfig(vocab_size=tokenizer.vocab_size, **shape)).save_pretrained(tmp_path / "electra")
    shutil.copy(tokenizer_dir / "tokenizer.json", tmp_path / "electra")
    models = (f"{trained_run}@8", tmp_path / "electra")
    found = json.loads(succeeds("probe", *models, data, "--test", data, "--json"))
    assert [row["model"] for row in found["models"]] == [f"{trained_run} at step 8", str(tmp_path / "electra")]
    assert (found["train_examples"], found["test_examples"], found["most_frequent"]) == (60, 60, [0.5])


def test_fresh_weights_are_those_of_their_seed(trained_run: Path) -> None:
    encoder = load_encoder(str(trained_run))
    one, same, other = (encoder.fresh(seed).state_dict() for seed in (1, 1, 2))
    weight = "bert.encoder.layer.0.output.dense.weight"
    assert one[weight].equal(same[weight])
    assert not one[weight].equal(other[weight])
    assert not one[weight].equal(encoder.model.state_dict()[weight])


def test_what_is_no_encoder_is_refused(
    tokenizer_dir: Path, trained_run: Path, data: Path, tmp_path: Path, fails: Command
) -> None:
    assert "is neither a run directory nor" in fails("probe", data.parent, data)
    T5Config().save_pretrained(tmp_path)
    shutil.copy(tokenizer_dir / "tokenizer.json", tmp_path)
    assert "has a decoder" in fails("probe", tmp_path, data)
    BertConfig().save_pretrained(tmp_path)
    assert "cannot be loaded" in fails("probe", tmp_path, data)
    assert "has no column 'mood'" in fails("probe", trained_run, data, "--label", "mood")
    assert "--seq-len 2: a text has no room" in fails("probe", trained_run, data, "--seq-len", 2)
