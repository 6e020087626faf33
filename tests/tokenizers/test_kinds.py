"""A kind of one's own is one value in the table: it packs, masks, trains, and goes to reader processes."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from maskloom import tokenizers
from maskloom.config_file import parse_config
from maskloom.data.batch import make_micro_batch
from maskloom.data.cursors import first_cursors
from maskloom.data.index.corpus import Index
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.models.build import build_model
from maskloom.tokenizers import TOKENIZERS, TokenizerKind
from maskloom.tokenizers.base import OTHER, Tokenizer
from maskloom.tokenizers.loading import kind_of, load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.training import train_tokenizer
from tests.conftest import plan_for

from .characters import CHARACTERS, SPECIALS

KINDS = ["wordpiece", "byte-bpe", "unigram"]


@pytest.fixture
def table() -> Iterator[dict[str, TokenizerKind]]:
    """The table, which is as it was afterwards."""
    before = dict(TOKENIZERS)
    yield TOKENIZERS
    TOKENIZERS.clear()
    TOKENIZERS.update(before)


@pytest.fixture
def characters(table: dict[str, TokenizerKind], documents: list[str]) -> Tokenizer:
    tokenizers.add(CHARACTERS)
    return train_tokenizer(documents, 60, kind="characters")


def test_the_table_begins_with_the_kinds_of_the_package() -> None:
    assert list(TOKENIZERS) == [kind.name for kind in TOKENIZERS.values()] == KINDS


def test_a_name_is_given_once(table: dict[str, TokenizerKind]) -> None:
    tokenizers.add(CHARACTERS)
    assert list(table) == ["characters", *KINDS]
    for taken in (CHARACTERS, TokenizerKind("wordpiece", lambda tree: False)):
        with pytest.raises(ValueError, match=f"a kind of tokenizer named '{taken.name}' already"):
            tokenizers.add(taken)


def test_an_added_kind_is_asked_first(table: dict[str, TokenizerKind], tokenizer: Tokenizer) -> None:
    tokenizers.add(TokenizerKind("mine", lambda tree: tree["model"]["type"] == "WordPiece"))
    again = tokenizer_of_definition(tokenizer.definition, "again")
    assert (tokenizer.kind, again.kind) == ("wordpiece", "mine")
    assert not again.knows_words
    assert again.encode(["the river"])[0].tolist() == tokenizer.encode(["the river"])[0].tolist()


def test_what_no_kind_claims_is_another_one() -> None:
    assert kind_of({"model": {"type": "BPE"}}) is OTHER


def test_it_knows_its_roles_and_keeps_literal_ones_as_text(characters: Tokenizer) -> None:
    roles = (characters.pad_id, characters.unk_id, characters.cls_id, characters.sep_id, characters.mask_id)
    assert tuple(characters.token(number) for number in roles if number is not None) == SPECIALS
    (ids,) = characters.encode(["the <mask> of a </s>"])
    assert not {*roles} - {characters.unk_id} & set(ids.tolist())
    assert len(ids) == len("the <mask> of a </s>")
    assert not characters.is_maskable[: len(SPECIALS)].any()
    assert characters.is_maskable[len(SPECIALS) :].all()


def test_saved_and_loaded_it_is_the_same(characters: Tokenizer, tmp_path: Path) -> None:
    characters.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert (again.kind, again.fingerprint) == ("characters", characters.fingerprint)


def first_words(tokenizer: Tokenizer) -> list[str]:
    (ids,) = tokenizer.encode(["the river"])
    begins = tokenizer.starts_word(ids[None], np.zeros((1, len(ids)), bool))[0]
    return [tokenizer.token(number) for number in ids[begins].tolist()]


def test_another_process_has_its_rule(characters: Tokenizer) -> None:
    """One that has not added it: what it needs came with the tokenizer."""
    assert first_words(pickle.loads(pickle.dumps(characters))) == [" ", "r"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_words, (characters,)) == [" ", "r"]


@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_it_packs_masks_and_trains(
    unit: str, characters: Tokenizer, index: Index, run_config: dict, tmp_path: Path
) -> None:
    characters.save(tmp_path / "tokenizer.json")
    tree = run_config | {"tokenizer": str(tmp_path), "masking": {"unit": unit, "rate": 0.3}}
    config = parse_config(tree, "here")
    tokenizer = load_tokenizer(config.tokenizer)
    plan = plan_for(config, (index,), tokenizer)
    torch.manual_seed(0)
    model, _ = build_model(config.model, tokenizer, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in read_steps(plan, World(), first_cursors(plan.lanes, 1), 0, 12):
        if unit == "whole_word":
            check_words(step.rows.tokens, step.rows.chosen, tokenizer)
        batch = make_micro_batch(step.rows, len(step.rows), plan.capacity(0), tokenizer)
        loss = model(batch)[0] / step.rows.chosen.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    # A new model gives each of the characters the same chance; some are more frequent than others, as it learns.
    assert losses[0] == pytest.approx(np.log(tokenizer.vocab_size), rel=0.1)
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


def check_words(tokens: np.ndarray, chosen: np.ndarray, tokenizer: Tokenizer) -> None:
    """By hand: what stands between blanks and special tokens is masked as a whole, or not at all."""
    blank = tokenizer.vocabulary[" "]
    border = (tokens == blank) | ~tokenizer.is_maskable[tokens]
    inside = ~border[:, 1:] & ~border[:, :-1]
    assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()
    assert chosen.any()
    assert not (chosen & ~tokenizer.is_maskable[tokens]).any()
