"""The same masked words for all models: loss, accuracy, and what of them can be compared.

    documents -> words, masks, pieces that all models can read (`prepare`) -> each model's losses (`score`) -> figures

A model guesses the tokens of a masked word each for itself, and their losses add up to the word's. If its tokens are long,
they are few and hard. So a loss a token is only fair between models that cut the text alike. Nats a byte are fair between all:
the sum over words is shared out over their bytes, and each model has the same ones.

Shapes: M masked words of all documents.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskloom.errors import UserError
from maskloom.scoring.alignment import Aligned, Encoded, align, cut, join, joined, reasons_against
from maskloom.scoring.bands import BANDS, band_by_word, band_name
from maskloom.scoring.models import Row, Scored
from maskloom.scoring.words import Bools, Spans, chosen_words, word_bytes, words_of

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Document:
    """A text with its words, and the tokens that each model reads.

    Attributes:
        tokens: as many as there are models.
        pieces: ranges of words.
        can_score: bool [words]; all models can score the word.
        masked: bool [words]; chosen, and all can score it.
    """

    text: str
    spans: Spans
    tokens: list[Aligned]
    pieces: list[tuple[int, int]]
    can_score: Bools
    masked: Bools


@dataclass(frozen=True)
class Prepared:
    """What all models are asked.

    Attributes:
        documents: those with a word.
        left_out: reason -> number of words that were chosen, and that a model cannot score.
        joins: how often a word was joined with the one before it.
        document, size_bytes, band: int64 [M]; of each masked word.
    """

    documents: list[Document]
    left_out: Counter[str]
    joins: int
    document: Int64s
    size_bytes: Int64s
    band: Int64s

    @property
    def words(self) -> int:
        """Words of the text."""
        return sum(len(each.spans) for each in self.documents)


@dataclass(frozen=True)
class Outcome:
    """What a model makes of the masked words.

    Attributes:
        loss: float64 [M]; sum over the word's tokens (nats).
        tokens, hits: int64 [M]; tokens of the word, and how many of them the model guesses.
    """

    loss: Floats
    tokens: Int64s
    hits: Int64s


def prepare(texts: Sequence[str], models: Sequence[Scored], rate: float, seed: int, seq_len: int) -> Prepared:
    """Choose the words, and cut the documents.

    Args:
        rate: the probability of a word to be masked. Words are chosen without a look at the models.
        seq_len: the most tokens of a piece; a model's own limit if that is lower.

    Raises:
        UserError: no word is left to be masked.
    """
    limits = [min(model.longest_piece, seq_len) for model in models]
    left_out: Counter[str] = Counter()
    tokenizers = {model.tokenizer.tokens_mark: model.tokenizer for model in models}
    joins = 0
    documents = []
    for text in texts:
        spans = words_of(text)
        if not len(spans):
            continue
        encoded = {mark: Encoded(*tokenizer.encode_with_offsets(text)) for mark, tokenizer in tokenizers.items()}
        firsts = join(spans, list(encoded.values()))
        chosen = chosen_words(text, spans, rate, seed)[firsts]
        joins += len(spans) - len(firsts)
        spans = joined(spans, firsts)
        by_mark = {mark: align(each, spans, tokenizers[mark]) for mark, each in encoded.items()}
        tokens = [by_mark[model.tokenizer.tokens_mark] for model in models]
        pieces, in_no_piece = cut(tokens, limits)
        reasons = reasons_against(tokens, spans, in_no_piece)
        left_out.update({reason: int((words & chosen).sum()) for reason, words in reasons.items()})
        can_score = ~np.logical_or.reduce(list(reasons.values()))
        documents.append(Document(text, spans, tokens, pieces, can_score, chosen & can_score))
    if not any(each.masked.any() for each in documents):
        raise UserError(
            f"no word of the text is masked: it has {sum(len(each.spans) for each in documents):,} words, and of those that were "
            f"chosen, {left_out.total():,} cannot be scored by every model. Name more text, or raise --mask-rate"
        )
    return Prepared(documents, left_out, joins, *_masked_words(documents))


def score(number: int, model: Scored, prepared: Prepared, advance: Callable[[float], None]) -> Outcome:
    """Losses of one model.

    Args:
        number: the model's place among those that the documents were prepared for.
        advance: is told the pieces that are done.
    """
    rows, words = [], []
    for row, word in _rows(number, model, prepared):
        rows.append(row)
        words.append(word)
    losses, hits = model.losses(rows, advance)
    of_token, count = np.concatenate(words), len(prepared.document)
    return Outcome(
        np.bincount(of_token, losses, count).astype(np.float64),
        np.bincount(of_token, minlength=count),
        np.bincount(of_token, hits, count).astype(np.int64),
    )


def pieces_to_score(prepared: Prepared) -> int:
    """How many pieces have a masked word."""
    return sum(bool(each.masked[start:end].any()) for each in prepared.documents for start, end in each.pieces)


def figures_of(outcome: Outcome, prepared: Prepared) -> dict[str, Any]:
    """What is reported of a model.

    Returns:
        `loss` (nats a token), `perplexity`, `accuracy`, `tokens`. Between all models, these are fair: `nats_per_byte`, and
        `word_accuracy`, for which all tokens of the word have to be right. `accuracy_by_frequency` is a list of bands.
    """
    right = outcome.hits == outcome.tokens
    tokens, loss = int(outcome.tokens.sum()), float(outcome.loss.sum())
    bands = []
    for band in range(BANDS):
        inside = prepared.band == band
        if inside.any():
            of_band = int(outcome.tokens[inside].sum())
            bands.append(
                {
                    "band": band_name(band),
                    "words": int(inside.sum()),
                    "word_accuracy": float(right[inside].mean()),
                    "tokens": of_band,
                    "accuracy": float(outcome.hits[inside].sum() / of_band),
                    "nats_per_byte": float(outcome.loss[inside].sum() / prepared.size_bytes[inside].sum()),
                }
            )
    return {
        "loss": loss / tokens,
        "perplexity": math.exp(min(loss / tokens, 700.0)),
        "accuracy": float(outcome.hits.sum() / tokens),
        "tokens": tokens,
        "nats_per_byte": loss / float(prepared.size_bytes.sum()),
        "word_accuracy": float(right.mean()),
        "accuracy_by_frequency": bands,
    }


def difference(outcome: Outcome, other: Outcome, prepared: Prepared) -> tuple[float, float]:
    """How many nats a byte a model loses more than another, and the standard error of that.

    Words of one text hang together, so it is texts that are drawn at random: the error is that of a ratio of sums over them.
    """
    document, count = prepared.document, len(prepared.documents)
    size = np.bincount(document, prepared.size_bytes, count)
    more = np.bincount(document, outcome.loss - other.loss, count)[size > 0]
    size = size[size > 0]
    mean = float(more.sum() / size.sum())
    if len(size) < 2:
        return mean, math.nan
    spread = float(((more - mean * size) ** 2).sum()) * len(size) / (len(size) - 1)
    return mean, math.sqrt(spread) / float(size.sum())


def _rows(number: int, model: Scored, prepared: Prepared) -> Iterator[tuple[Row, Int64s]]:
    """A row for each piece that has a masked word, and the words (0 to M - 1) of the tokens that it predicts."""
    before = 0
    for document in prepared.documents:
        tokens = document.tokens[number]
        order = before + np.cumsum(document.masked) - 1
        before += int(document.masked.sum())
        is_masked = np.append(document.masked, False)[tokens.word]  # the last entry is for white space, -1
        for start, end in document.pieces:
            if document.masked[start:end].any():
                of_piece = slice(tokens.starts[start], tokens.starts[end])
                places = np.flatnonzero(is_masked[of_piece])
                yield model.row(tokens.ids[of_piece], places, places), order[tokens.word[of_piece][places]]


def _masked_words(documents: Sequence[Document]) -> tuple[Int64s, Int64s, Int64s]:
    """Document, bytes and band of each masked word. Bands are by the counts of all words of the documents, in any case."""

    def spelled(document: Document) -> list[str]:
        return [document.text[start:end].casefold() for start, end in document.spans]

    bands = band_by_word(word for document in documents for word in spelled(document))
    numbers, sizes, of_words = [], [], []
    for number, document in enumerate(documents):
        numbers.append(np.full(int(document.masked.sum()), number, np.int64))
        sizes.append(word_bytes(document.text, document.spans[document.masked]))
        words = spelled(document)
        of_words.append(np.array([bands[words[place]] for place in np.flatnonzero(document.masked)], np.int64))
    return np.concatenate(numbers), np.concatenate(sizes), np.concatenate(of_words)
