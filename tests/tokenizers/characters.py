"""A kind of tokenizer as a user would add it: every character is a token, and words stand between blanks.

Its special tokens are spelled otherwise than BERT's. Where a word begins, the token before tells.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from maskloom.tokenizers import TokenizerKind

PATTERN = r"[\s\S]"
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def is_of_characters(tree: dict[str, Any]) -> bool:
    return (tree.get("pre_tokenizer") or {}).get("pattern") == {"Regex": PATTERN}


def train_characters(texts: Iterable[str], vocab_size: int, lowercase: bool | None) -> str:
    """The most frequent characters."""
    counts = Counter("".join(texts))
    best = sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size - len(SPECIALS)]
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *best])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(list(SPECIALS))
    return made.to_str()


@dataclass(frozen=True)
class BehindBlanks:
    """A blank is a word of its own, and another one begins behind it."""

    blank: int

    def __call__(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        begins = tokens == self.blank
        begins[:, 1:] |= begins[:, :-1].copy()
        return begins


def words_at_blanks(tree: dict[str, Any], vocabulary: Mapping[str, int]) -> BehindBlanks | None:
    return BehindBlanks(vocabulary[" "]) if " " in vocabulary else None


CHARACTERS = TokenizerKind("characters", is_of_characters, train_characters, words_at_blanks)


def without_roles(definition: str) -> str:
    """The same tokens under names that say nothing of their roles."""
    tree = json.loads(definition)
    for number, token in enumerate(SPECIALS):
        tree["model"]["vocab"][f"§{number}"] = tree["model"]["vocab"].pop(token)
        tree["added_tokens"][number]["content"] = f"§{number}"
    tree["model"]["unk_token"] = "§1"
    return json.dumps(tree)
