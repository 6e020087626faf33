"""The same words for all models, and figures that equal those of a slow loop over Hugging Face's classes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from maskloom.errors import UserError
from maskloom.scoring.models import Scored
from maskloom.scoring.score import Prepared, difference, figures_of, pieces_to_score, prepare, score
from maskloom.scoring.words import words_of

from .conftest import KINDS, MOST_TOKENS, TEXTS

RATE = 0.4


def ignored(done: float) -> None:
    pass


@pytest.fixture(scope="module")
def prepared(scored: list[Scored]) -> Prepared:
    return prepare(TEXTS, scored, RATE, 0, 512)


def slow_word_losses(folder: Path, text: str, spans: list[tuple[int, int]]) -> list[tuple[float, int, int]]:
    """(loss, tokens, hits) of each word of a text that fits into the model, all of them masked at once, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt", return_token_type_ids=False)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    if len(offsets) == 0 or encoded["input_ids"][0, 0] != tokenizer.cls_token_id:
        ids = [tokenizer.cls_token_id, *encoded["input_ids"][0].tolist(), tokenizer.sep_token_id]
        offsets = [[0, 0], *offsets, [0, 0]]
    else:
        ids = encoded["input_ids"][0].tolist()
    of_word = [
        [
            slot
            for slot, (first, last) in enumerate(offsets)
            if first < end and last > start and text[first:last].strip()
        ]
        for start, end in spans
    ]
    masked = torch.tensor([ids])
    for slots in of_word:
        masked[0, slots] = tokenizer.mask_token_id
    with torch.no_grad():
        logits = model(input_ids=masked).logits[0].log_softmax(-1)
    return [
        (
            -sum(float(logits[slot, ids[slot]]) for slot in slots),
            len(slots),
            sum(int(logits[slot].argmax()) == ids[slot] for slot in slots),
        )
        for slots in of_word
    ]


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_the_figures_are_those_of_a_slow_loop(
    number: int, scored: list[Scored], prepared: Prepared, models_dir: Path
) -> None:
    outcome = score(number, scored[number], prepared, ignored)
    place = checked = 0
    for document in prepared.documents:
        spans = [tuple(span) for span in document.spans[document.masked].tolist()]
        found = slice(place, place + len(spans))
        place += len(spans)
        if len(document.pieces) > 1:
            continue  # the slow loop cuts nothing
        slow = slow_word_losses(models_dir / list(KINDS)[number], document.text, spans)
        np.testing.assert_allclose(outcome.loss[found], [loss for loss, _, _ in slow], rtol=2e-4)
        assert outcome.tokens[found].tolist() == [tokens for _, tokens, _ in slow]
        assert outcome.hits[found].tolist() == [hits for _, _, hits in slow]
        checked += len(spans)
    assert checked >= 10


def test_figures_by_hand(scored: list[Scored], prepared: Prepared) -> None:
    outcome = score(0, scored[0], prepared, ignored)
    figures = figures_of(outcome, prepared)
    assert figures["tokens"] == outcome.tokens.sum()
    assert figures["loss"] == pytest.approx(outcome.loss.sum() / outcome.tokens.sum())
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["accuracy"] == outcome.hits.sum() / outcome.tokens.sum()
    texts = [document.text for document in prepared.documents]
    masked = [
        texts[number][start:end]
        for number, document in enumerate(prepared.documents)
        for start, end in document.spans[document.masked]
    ]
    assert figures["nats_per_byte"] == pytest.approx(outcome.loss.sum() / len("".join(masked).encode()))
    assert figures["word_accuracy"] == np.mean(outcome.hits == outcome.tokens)
    assert sum(band["words"] for band in figures["accuracy_by_frequency"]) == len(masked)
    assert sum(band["tokens"] for band in figures["accuracy_by_frequency"]) == figures["tokens"]


def test_every_piece_fits_and_every_word_is_in_one(scored: list[Scored], prepared: Prepared) -> None:
    several = 0
    for document in prepared.documents:
        words = [word for start, end in document.pieces for word in range(start, end)]
        assert words == sorted(set(words))
        assert document.can_score[words].sum() == document.can_score.sum()
        several += len(document.pieces) > 1
        for model, tokens in zip(scored, document.tokens, strict=True):
            for start, end in document.pieces:
                assert tokens.starts[end] - tokens.starts[start] + 2 <= model.longest_piece
    assert several
    assert min(model.longest_piece for model in scored) == MOST_TOKENS
    assert pieces_to_score(prepared) >= 3


def test_masked_words_are_whole_in_every_tokenizer(scored: list[Scored], prepared: Prepared) -> None:
    for document in prepared.documents:
        for model, tokens in zip(scored, document.tokens, strict=True):
            for word in np.flatnonzero(document.masked):
                ids = tokens.ids[tokens.word == word]
                assert len(ids)
                assert model.tokenizer.is_maskable[ids].all()


def test_the_masks_do_not_depend_on_the_models(scored: list[Scored], documents: list[str]) -> None:
    """As long as every model can score the words: plain text."""

    def masked(models: list[Scored]) -> list[tuple[int, int, int]]:
        found = prepare(documents[:20], models, 0.15, 0, 512)
        assert not found.joins
        assert not found.left_out.total()
        return [
            (number, *span) for number, each in enumerate(found.documents) for span in each.spans[each.masked].tolist()
        ]

    assert masked(scored[:1]) == masked(scored[1:2]) == masked(scored)


def test_the_same_model_twice(scored: list[Scored]) -> None:
    prepared = prepare(TEXTS, [scored[0], scored[0]], RATE, 0, 512)
    first, second = (score(number, scored[0], prepared, ignored) for number in range(2))
    assert figures_of(first, prepared) == figures_of(second, prepared)
    assert difference(first, second, prepared) == (0.0, 0.0)


def test_the_difference_and_its_error_by_hand(scored: list[Scored], documents: list[str]) -> None:
    prepared = prepare(documents[:30], scored[:2], RATE, 0, 512)
    first, second = (score(number, scored[number], prepared, ignored) for number in range(2))
    more, error = difference(second, first, prepared)
    figures = [figures_of(each, prepared)["nats_per_byte"] for each in (first, second)]
    assert more == pytest.approx(figures[1] - figures[0])
    # The jackknife over documents comes to about the same.
    numbers = np.unique(prepared.document)
    without = []
    for number in numbers:
        kept = prepared.document != number
        without.append((second.loss - first.loss)[kept].sum() / prepared.size_bytes[kept].sum())
    count = len(numbers)
    jackknife = math.sqrt((count - 1) / count * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert error == pytest.approx(jackknife, rel=0.25)


def test_what_is_left_out_is_counted(scored: list[Scored]) -> None:
    """A word of 60 letters is never masked, nor one that WordPiece does not know; at this rate, all others are."""
    text = f"the river {'x' * 60} reads ☃ the tree"
    found = prepare([text], scored[:1], 1.0, 0, 512)
    assert found.left_out == Counter({"too long": 1, "unknown to a tokenizer": 1})
    assert len(found.document) == len(words_of(text)) - 2


def test_nothing_to_mask(scored: list[Scored]) -> None:
    with pytest.raises(UserError, match="no word of the text is masked: it has 1 words"):
        prepare(["", "x" * 60], scored, 1.0, 0, 512)


def test_an_uncased_tokenizer_counts_the_bytes_of_the_text(scored: list[Scored]) -> None:
    text = "Ångström RIVER"
    found = prepare([text], scored[:1], 1.0, 0, 512)
    assert found.size_bytes.sum() == len(text.replace(" ", "").encode())
