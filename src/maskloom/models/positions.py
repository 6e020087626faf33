"""How many positions a model has, and how a checkpoint gets more of them.

Learned positions are a table. Its rows are repeated, as for Longformer (Beltagy et al., 2020, arXiv:2004.05150, section 5), so
that a piece within the old length is computed as before. Positions that are computed, such as rotary ones, need no table. Then
only the configuration changes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from maskloom.errors import UserError
from maskloom.models.architecture import longest_piece_of, unused_positions_of
from maskloom.models.outline import outline_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_positions(config: PretrainedConfig, name: str, seq_lens: Mapping[str, int], raise_by: str = "") -> None:
    """Check that a model has a position for each slot of the sequences.

    Args:
        name: what messages call the model.
        seq_lens: setting -> its sequence length.
        raise_by: how the user can give the model more positions: "raise max_position_embeddings". Empty if that is impossible.

    Raises:
        UserError: a sequence is longer than the model has positions.
    """
    most, unused = longest_piece_of(config), unused_positions_of(config)
    wrong = [f"{setting} {length}" for setting, length in seq_lens.items() if length > most]
    if not wrong:
        return
    said = f"{', '.join(wrong)}: more than the {max(most, 0)} positions of {name}. "
    if unused:
        said += (
            f"Of its max_position_embeddings {config.max_position_embeddings} the first {unused:,} are for no token: positions "
            f"begin behind the padding token's id, {unused - 1}. "
        )
    first = "Lower seq_len" if most > 0 else "Take a tokenizer whose padding token has a small id"
    raise UserError(f"{said}{first}{f', or {raise_by} to {max(seq_lens.values()) + unused}' if raise_by else ''}")


def _positions(config: PretrainedConfig) -> int:
    return longest_piece_of(config) + unused_positions_of(config)


def check_growth(config: PretrainedConfig, changed: PretrainedConfig, name: str) -> None:
    """Raises UserError if the changed configuration of a checkpoint has fewer positions."""
    has, given = map(_positions, (config, changed))
    if given < has:
        raise UserError(
            f"model.max_position_embeddings {given} is less than the {has} of {name}: leave it out (a shorter seq_len needs no "
            "fewer positions)"
        )


def grow_tables(weights: dict[str, torch.Tensor], config: PretrainedConfig, grown: PretrainedConfig) -> None:
    """Give tables of positions the rows of the grown configuration, in place.

    Args:
        weights: a checkpoint's, by name.
        config: the checkpoint's own.
    """
    for name in position_tables(config, grown):
        weights[name] = repeated(weights[name], unused_positions_of(config), _positions(grown))


def position_tables(config: PretrainedConfig, grown: PretrainedConfig) -> list[str]:
    """Names of the weights whose shape follows from the number of positions."""
    if _positions(config) == _positions(grown):
        return []
    config = copy.deepcopy(config)
    config.vocab_size = grown.vocab_size  # which may have grown, too
    before, after = (outline_of(each, 1).shapes for each in (config, grown))
    return [name for name, shape in after.items() if shape != before[name]]


def repeated(table: torch.Tensor, unused: int, rows: int) -> torch.Tensor:
    """A table of positions [P, D] with more rows [rows, D]: the first `unused` stay, what follows them is repeated."""
    numbers = torch.arange(rows)
    return table[torch.where(numbers < len(table), numbers, unused + (numbers - unused) % (len(table) - unused))]


def growth_note(config: PretrainedConfig, grown: PretrainedConfig) -> str:
    """A note for the log on positions that were grown; empty if they were not."""
    if _positions(grown) == _positions(config):
        return ""
    tables = position_tables(config, grown)
    how = f"{', '.join(tables)} is repeated" if tables else "no weight depends on them"
    return f"; {longest_piece_of(grown):,} positions instead of {longest_piece_of(config):,}: {how}"
