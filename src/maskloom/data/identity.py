"""What decides which rows a step sees, beside the settings: corpora, tokenizer, lanes, and the versions of our own parts.

A state that was saved holds it. Whoever loads the state compares it with what there is now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskloom.data.index.corpus import Index
from maskloom.data.plan import VERSIONS, DataPlan
from maskloom.tokenizers.base import Tokenizer

TOKENIZING = "version of tokenizing"


def identity(corpora: Sequence[Index], tokenizer: Tokenizer) -> dict[str, object]:
    """What corpora and tokenizer are, wherever their files lie."""
    digests = {f"corpus {number}": index.digest for number, index in enumerate(corpora)}
    return {**digests, "tokenizer": tokenizer.fingerprint}


def fingerprint(plan: DataPlan) -> dict[str, object]:
    """What decides which rows a step sees, beside the configuration."""
    return {
        **identity(plan.corpora, plan.tokenizer),
        "lanes": plan.lanes,
        **{f"version of {part}": version for part, version in VERSIONS.items()},
        TOKENIZING: plan.tokenizer.tokenizing,
    }


def tokenizing_of(stored: Mapping[str, object]) -> int:
    """The version of tokenizing that a stored fingerprint says; the first one was not written down."""
    version = stored.get(TOKENIZING, 1)
    return version if isinstance(version, int) else 0


def unlike(old: Mapping[str, object], new: Mapping[str, object], where: str) -> list[str]:
    """A line for each key whose values differ; `where` says what the old ones are of."""
    return [
        f"  {key}: {old.get(key)} {where}, {new.get(key)} now" for key in {**new, **old} if old.get(key) != new.get(key)
    ]
