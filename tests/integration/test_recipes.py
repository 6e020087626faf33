"""Each recipe in configs/, scaled down, trains through all its phases; and one of them resumes between two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import RobertaConfig, RobertaForMaskedLM

from maskloom.config_file import load_config
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from maskloom.optim.schedule import learning_rate
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.extend import extended, find_words
from tests.architectures import SHAPE
from tests.recipes import RECIPES, START_POSITIONS, STEPS, scaled_down

from .conftest import final_weights, lines, losses, train_in_ranks
from .test_checkpoints import forget_after

RESUMED = "modernbert_base"
ADAPTED = "domain_adapt"
WORDS = 20


@pytest.fixture(scope="module")
def runs(
    corpus_dir: Path,
    documents: list[str],
    tokenizer_dir: Path,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The runs of all recipes, trained one after the other by one process, and one that was resumed from its middle."""
    folder = tmp_path_factory.mktemp("recipes")
    other = [text.replace("e ", "e") for text in documents[::2]]
    _write_start(folder / "start", tokenizer, other)
    write_shards([str(_source(other, folder))], folder / "other", Options(block_bytes=8 * 1024))
    files = []
    for recipe in RECIPES:
        corpora = [corpus_dir, folder / "other"]
        tree = scaled_down(recipe, corpora, tokenizer_dir, folder / "start", folder / recipe.stem)
        files.append(folder / recipe.name)
        files[-1].write_text(yaml.safe_dump(tree), encoding="utf-8")
    train_in_ranks(files, 1, folder / "output.log", compiles=False)
    again = folder / "again"
    shutil.copytree(folder / RESUMED, again)
    forget_after(again, STEPS + 1)
    tree = yaml.safe_load((folder / f"{RESUMED}.yaml").read_text(encoding="utf-8"))
    (folder / "again.yaml").write_text(yaml.safe_dump({**tree, "run_dir": str(again)}), encoding="utf-8")
    train_in_ranks([folder / "again.yaml"], 1, folder / "again.log", compiles=False)
    return folder


def _write_start(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    """A checkpoint of another library with its tokenizer, and in `extended` the tokenizer with words of the text."""
    torch.manual_seed(5)
    ids = {"pad_token_id": tokenizer.pad_id, "vocab_size": tokenizer.vocab_size}
    RobertaForMaskedLM(RobertaConfig(**SHAPE, **ids, max_position_embeddings=START_POSITIONS)).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    longer = extended(tokenizer, find_words(tokenizer, texts, WORDS, min_count=2))
    (folder / "extended").mkdir()
    longer.save(folder / "extended" / "tokenizer.json")


def _source(texts: list[str], folder: Path) -> Path:
    """The text of another corpus, for recipes that mix two. It has words that the tokenizer splits."""
    source = folder / "other.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return source


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_trains_through_all_its_phases(recipe: Path, runs: Path) -> None:
    config = load_config(runs / recipe.stem / "config.yaml")
    whole = load_config(recipe)
    assert len(config.phases) == len(whole.phases)
    assert (config.optimizer.name, config.optimizer.schedule) == (whole.optimizer.name, whole.optimizer.schedule)
    assert [phase.mask_rate for phase in config.phases] == [phase.mask_rate for phase in whole.phases]
    steps = lines(runs / recipe.stem)
    assert [line["step"] for line in steps] == list(range(1, STEPS * len(whole.phases) + 1))
    for line in steps:
        assert line["lr"] == pytest.approx(learning_rate(line["step"], config.optimizer, config.schedules))
        assert line["loss"] < 7.0  # that of a guess among 400 tokens is 6.0
        assert line["bad_steps"] == 0


def test_the_recipe_of_adaptation_grows_the_checkpoint(runs: Path, tokenizer: Tokenizer) -> None:
    weights = final_weights(runs / ADAPTED)
    rows = {name: len(value) for name, value in weights.items() if "_embeddings.weight" in name}
    (words,) = [count for name, count in rows.items() if "word_" in name]
    (positions,) = [count for name, count in rows.items() if "position_" in name]
    assert (words, positions) == (tokenizer.vocab_size + WORDS, 34)


def test_a_recipe_in_tokens_and_stages_resumes_exactly(runs: Path) -> None:
    whole, resumed = losses(runs / RESUMED), losses(runs / "again")
    assert resumed == whole
    assert {step for step in whole if step > STEPS + 1}, "something was left to do"
    weights = final_weights(runs / RESUMED)
    assert all(weights[name].equal(value) for name, value in final_weights(runs / "again").items())
