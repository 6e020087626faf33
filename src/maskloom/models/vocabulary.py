"""How the vocabulary of a checkpoint fits a run's tokenizer, and rows for tokens that are new.

A run may take a tokenizer that has the checkpoint's own tokens by their ids, and more after them (`maskloom.tokenizers.extend`).
A new row is the mean of the rows of the tokens that stood for the word before; so is its bias. The model then reads the word as
a mixture of what it knows, and the probabilities of the old tokens hardly change. Random rows take probability from all of
them at first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from maskloom.errors import UserError
from maskloom.models.architecture import unused_positions_of
from maskloom.models.outline import outline_of
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.extend import is_extension, pieces_of_new
from maskloom.tokenizers.loading import find_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from maskloom.models.warm_start import Checkpoint

MOST_SPARE_ROWS = 1 << 10
"""The most rows beyond the tokenizer's ids that pass for padding, if the checkpoint has no tokenizer to tell. People pad to
128 for each of 8 tensor-parallel ranks at most."""


class NewTokens(NamedTuple):
    """What a tokenizer has beyond the checkpoint's own.

    Attributes:
        rows: of the embeddings, from now on.
        pieces: each new id, and the old ids that stood for it. If there are none, the mean of all old rows is taken.
        old_ids: of the checkpoint's own tokenizer. Rows beyond them were never trained.
    """

    rows: int
    pieces: Sequence[tuple[int, Sequence[int]]]
    old_ids: int


def fit_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[NewTokens | None, str]:
    """How the tokenizer of a run fits a checkpoint.

    Returns:
        the tokens that need new rows, if the checkpoint's own tokenizer was extended; and a note on what differs, or "".

    Raises:
        UserError: the rows are not those of the tokenizer's ids, or positions would begin elsewhere.
    """
    rows, ids, name = checkpoint.config.vocab_size, tokenizer.vocab_size, checkpoint.name
    _check_first_position(checkpoint, tokenizer)
    differ = f"{name} has a vocabulary of {rows}, the tokenizer {tokenizer.source} one of {ids}"
    own = _own_tokenizer(checkpoint.folder, tokenizer)
    if own is not None and own.vocab_size <= rows and is_extension(tokenizer, own):
        new = NewTokens(max(rows, ids), list(pieces_of_new(tokenizer, own)), own.vocab_size)
        said = "each row begins as the mean of those of the tokens that stood for it"
        return new, f"; {ids - own.vocab_size:,} tokens more than the {own.vocab_size:,} of its own tokenizer: {said}"
    if rows < ids:
        remedy = "" if own is None or own.vocab_size > rows else f" (set tokenizer={checkpoint.folder})"
        raise UserError(
            f"{differ}: its last {ids - rows} ids would have no embedding. Use the checkpoint's own tokenizer{remedy}, one that "
            f"`maskloom tokenizer extend` made of it, or give the checkpoint more rows by resize_token_embeddings({ids}) in "
            "transformers"
        )
    if own is None and rows - ids >= MOST_SPARE_ROWS:
        raise UserError(f"{differ}: use the checkpoint's own tokenizer")
    notes = []
    if own is not None:
        if own.vocab_size != ids:
            raise UserError(
                f"{differ}. The checkpoint's own has {own.vocab_size} ids: set tokenizer={checkpoint.folder}"
            )
        other = sum(own.token(number) != tokenizer.token(number) for number in range(ids))
        if 2 * other > ids:
            raise UserError(
                f"{name}: {other:,} of the {ids:,} ids of {tokenizer.source} are other tokens in its own tokenizer: set "
                f"tokenizer={checkpoint.folder}"
            )
        if other:
            notes.append(f"{other:,} of {ids:,} ids are other tokens in its own tokenizer")
    if rows > ids:
        notes.append(
            f"{rows - ids} of its {rows:,} rows are beyond the tokenizer's {ids:,} ids: they stay in the softmax, and are never "
            "targets"
        )
    return None, "".join(f"; {note}" for note in notes)


def _check_first_position(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises UserError if positions begin after the padding token's id, and the tokenizer pads with another."""
    config = copy.copy(checkpoint.config)
    begins = unused_positions_of(config)
    config.update(checkpoint.outline.architecture.token_ids(tokenizer))
    if begins != unused_positions_of(config):
        raise UserError(
            f"{checkpoint.name} was trained with positions that begin behind the padding token's id, {begins - 1}. The tokenizer "
            f"{tokenizer.source} pads with id {tokenizer.pad_id}: use the checkpoint's own tokenizer"
        )


def _own_tokenizer(folder: Path, tokenizer: Tokenizer) -> Tokenizer | None:
    """The tokenizer that stands beside a checkpoint's weights; None if there is none that can be read.

    `tokenizer` may be it: one of 250,000 ids takes seconds to load.
    """
    try:
        return tokenizer if str(find_tokenizer(folder)) == tokenizer.source else load_tokenizer(folder)
    except (UserError, OSError):
        return None


def grow_vocabulary(weights: dict[str, torch.Tensor], config: PretrainedConfig, new: NewTokens) -> None:
    """Give the tables of the vocabulary their new rows, in place.

    Args:
        weights: a checkpoint's, by name. It may lack a head.
        config: the checkpoint's own.
    """
    for name in vocabulary_tables(config):
        if name not in weights:
            continue
        old = weights[name]
        table = torch.cat([old, old.new_zeros(max(0, new.rows - len(old)), *old.shape[1:])])
        mean = old[: new.old_ids].mean(dim=0)
        for number, pieces in new.pieces:
            table[number] = old[list(pieces)].mean(dim=0) if pieces else mean
        weights[name] = table


def vocabulary_tables(config: PretrainedConfig) -> list[str]:
    """Names of the weights that have a row or an element for each token."""
    larger = copy.deepcopy(config)
    larger.vocab_size += 1
    before, after = (outline_of(each, 1).shapes for each in (config, larger))
    return [name for name, shape in after.items() if shape != before[name]]
