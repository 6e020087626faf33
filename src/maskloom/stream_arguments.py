"""The arguments of a `MaskedStream`, as a configuration has them: checked as one, and named in messages as the arguments are."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed

from maskloom.config import Corpus, Masking, RunConfig, Storage
from maskloom.config_file import parse_config
from maskloom.config_values import MOST_SEQ_LEN
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.scalars import is_count
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer

Source = str | os.PathLike[str]
NAMES = (
    (r"\bphases\.0\.", ""),
    (r"\bphases\.0: ", ""),
    (r"\bdata\.train\b", "corpus"),
    (r"\bdata\.(?=[a-z])", ""),
    (r"; set on_bad_data: skip to leave such data out", ""),
)
"""Names in messages about configurations -> what they are here."""


def checked(phase: Mapping[str, Any], data: Mapping[str, Any], masking: Any, seed: int) -> RunConfig:
    """The arguments as a configuration, which checks them. What a stream does not have has a value that fits."""
    return parse_config(
        {
            "run_dir": "-",
            "tokenizer": "-",
            "phases": [dict(phase)],
            "data": dict(data),
            "masking": {} if masking is None else masking,
            "seed": seed,
            "model": {"max_position_embeddings": MOST_SEQ_LEN},
        },
        "MaskedStream",
    )


def python_int(number: Any) -> Any:
    """A whole number of numpy's as one of Python's; everything else as it is."""
    return int(number) if isinstance(number, np.integer) else number


def plain(section: Any) -> Any:
    """A section of a configuration as plain values."""
    if isinstance(section, Masking | Storage | Corpus):
        return section.model_dump(mode="json")
    return dict(section) if isinstance(section, Mapping) else {} if section is None else section


def plain_corpus(corpus: Any) -> Any:
    """`corpus` as `data.train` has it."""
    if isinstance(corpus, os.PathLike):
        return os.fspath(corpus)
    if isinstance(corpus, str) or not isinstance(corpus, Sequence):
        return corpus
    items = [plain(item) if isinstance(item, Mapping | Corpus) else {"path": item} for item in corpus]
    return [{**item, "path": os.fspath(item["path"])} if isinstance(item.get("path"), Path) else item for item in items]


def tokenizer_of(given: Any) -> Tokenizer:
    """The tokenizer that an argument is or names. Raises UserError if it is something else."""
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return load_tokenizer(os.fspath(given))
    raise UserError(
        f"tokenizer is a {type(given).__name__}: give maskloom.load_tokenizer(FOLDER) or the folder. One of Hugging Face's goes "
        "there with its save_pretrained(FOLDER)"
    )


def world_of(rank: int | None, world_size: int | None) -> World:
    """This process among the ranks: as given, or as torch.distributed says, or the launcher."""
    if (rank is None) != (world_size is None):
        raise UserError(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None or world_size is None:
        known = World.discover()
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return known
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return World(rank, world_size, known.local_rank, known.local_size)
    if not is_count(rank) or not is_count(world_size) or rank >= world_size:
        raise UserError(f"rank={rank!r} of world_size={world_size!r}: ranks are whole numbers from 0 to world_size - 1")
    return World(rank, world_size)


@contextlib.contextmanager
def arguments_named() -> Iterator[None]:
    """Errors within call the settings by the names of the arguments."""
    try:
        yield
    except (UserError, ChildProcessError) as error:
        error.args = (_renamed(str(error)),)
        raise


def _renamed(message: str) -> str:
    for setting, argument in NAMES:
        message = re.sub(setting, argument, message)
    return message
