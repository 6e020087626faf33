"""Pseudo-perplexity equals a slow loop over transformers alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from maskloom.scoring.models import Scored
from maskloom.scoring.pseudo import choose_sentences, pseudo_perplexity, tokens_to_score
from maskloom.scoring.score import Prepared, prepare

from .conftest import KINDS, TEXTS


@pytest.fixture(scope="module")
def prepared(scored: list[Scored]) -> Prepared:
    return prepare(TEXTS, scored, 0.4, 0, 512)


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_each_token_is_masked_in_turn(number: int, scored: list[Scored], prepared: Prepared, models_dir: Path) -> None:
    model = scored[number]
    tokenizer = model.tokenizer
    chosen = choose_sentences(prepared, scored, 3, 0, 512)
    assert len(chosen) == 3
    done: list[float] = []
    figures = pseudo_perplexity(number, model, chosen, done.append)
    plain = AutoModelForMaskedLM.from_pretrained(models_dir / list(KINDS)[number]).eval()
    loss, tokens, size = 0.0, 0, 0
    for sentence in chosen:
        document = sentence.document
        begin = document.spans[sentence.first - 1, 1] if sentence.first else 0  # with the white space in front
        end = document.spans[sentence.end - 1, 1]
        ids, offsets = tokenizer.encode_with_offsets(document.text)
        inside = [place for place, (start, last) in enumerate(offsets) if start < end and last > begin]
        words = [document.spans[word].tolist() for word in range(sentence.first, sentence.end)]
        for word, (first, last) in enumerate(words, sentence.first):
            if not document.can_score[word]:
                continue
            size += len(document.text[first:last].encode())
            of_word = [place for place in inside if offsets[place][0] < last and offsets[place][1] > first]
            for at, place in enumerate(of_word):
                masked = [tokenizer.mask_id if other in of_word[at:] else int(ids[other]) for other in inside]
                slots = torch.tensor([[tokenizer.cls_id, *masked, tokenizer.sep_id]])
                with torch.no_grad():
                    logits = plain(input_ids=slots).logits[0, inside.index(place) + 1].log_softmax(-1)
                loss, tokens = loss - float(logits[ids[place]]), tokens + 1
    assert figures["pseudo_tokens"] == tokens == tokens_to_score(number, chosen) == sum(done)
    assert figures["pseudo_sentences"] == 3
    assert figures["pseudo_perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-3)
    assert figures["pseudo_nats_per_byte"] == pytest.approx(loss / size, rel=1e-4)


def test_sentences_are_a_sample_that_fits(scored: list[Scored], prepared: Prepared) -> None:
    everything = choose_sentences(prepared, scored, 1000, 0, 512)
    some = choose_sentences(prepared, scored, 4, 0, 512)
    assert everything[:4] == some
    assert choose_sentences(prepared, scored, 4, 1, 512) != some
    short = choose_sentences(prepared, scored, 1000, 0, 16)
    assert 0 < len(short) < len(everything)
    for sentence in short:
        for tokens in sentence.document.tokens:
            assert tokens.starts[sentence.end] - tokens.starts[sentence.first] + 2 <= 16
