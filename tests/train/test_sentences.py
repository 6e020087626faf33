"""Sentences that a model fills: what is refused before the start, and that the guesses are the model's."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForMaskedLM

from maskloom.config import Bert, Evaluation
from maskloom.errors import UserError
from maskloom.models.build import build_model
from maskloom.models.masked_lm import MaskedLM
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.sentences import GUESSES, Filled, fill, read_sentences

SENTENCES = ("the [MASK] reads a [MASK] stone", "water [MASK]", "[MASK] mountain of every tree and some paper")


def settings(*sentences: str, rows: int = 2) -> Evaluation:
    return Evaluation(every_steps=1, seq_len=32, micro_batch_rows=rows, sentences=sentences)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> MaskedLM:
    torch.manual_seed(5)
    shape = Bert(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    return build_model(shape, tokenizer, 1)[0].eval()


def filled(model: MaskedLM, tokenizer: Tokenizer, rows: int) -> list[Filled]:
    given = settings(*SENTENCES, rows=rows)
    sentences = read_sentences(given, tokenizer)
    assert sentences is not None
    return fill(model.masked_logits, sentences, tokenizer, given, torch.device("cpu"))


def test_the_guesses_are_those_of_the_model_alone_with_each_sentence(model: MaskedLM, tokenizer: Tokenizer) -> None:
    """Hugging Face's forward, one sentence at a time; three sentences fall into two micro-batches."""
    state = torch.get_rng_state()
    found = filled(model, tokenizer, rows=2)
    assert torch.equal(torch.get_rng_state(), state)
    plain = BertForMaskedLM(model.config).eval()
    plain.load_state_dict(model.state_dict())
    assert [each.sentence for each in found] == list(SENTENCES)
    for sentence, each in zip(SENTENCES, found, strict=True):
        ids = tokenizer.encode_with_masks(sentence)
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([ids])).logits[0]
        places = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
        assert len(places) == len(each.masks) == sentence.count("[MASK]")
        for place, guesses in zip(places, each.masks, strict=True):
            shares, tokens = logits[place].softmax(-1).topk(GUESSES)
            assert [token for token, _ in guesses] == [tokenizer.shown(token) for token in tokens.tolist()]
            torch.testing.assert_close(torch.tensor([share for _, share in guesses]), shares, rtol=1e-4, atol=1e-6)
            ids[place] = int(tokens[0])
        assert each.text == tokenizer.decode(ids[1:-1])


def test_the_rows_of_a_micro_batch_do_not_matter(model: MaskedLM, tokenizer: Tokenizer) -> None:
    one, other = filled(model, tokenizer, rows=1), filled(model, tokenizer, rows=8)
    assert [each.text for each in one] == [each.text for each in other]


def test_without_sentences_there_is_nothing_to_fill(tokenizer: Tokenizer) -> None:
    assert read_sentences(settings(), tokenizer) is None


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("no blank here", r"evaluation.sentences.1 'no blank here' has no mask: write \[MASK\]"),
        ("the <mask> reads", r"has <mask>, which is another tokenizer's mask: write \[MASK\]"),
        ("the [MASK] reads a <mask>", r"has <mask>, which is another"),
        ("[mask] reads", "has no mask"),
        ("tree " * 40 + "[MASK]", r"and a row of the evaluation 32 slots \(evaluation.seq_len\): shorten it"),
    ],
)
def test_a_sentence_that_cannot_be_filled_is_refused_by_its_number(
    sentence: str, said: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=said):
        read_sentences(settings("water [MASK]", sentence), tokenizer)
