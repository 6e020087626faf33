"""Tokenizers written for Hugging Face's libraries: `tokenizer.json` and `tokenizer_config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Encoder

from maskloom.files import write_atomically
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import OTHER, Tokenizer
from maskloom.tokenizers.pipeline import Tree
from maskloom.tokenizers.roles import SETTINGS, ends_template

MODEL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def write_for_others(
    folder: Path, tokenizer: Tokenizer, longest: int | None = None, has_token_types: bool = True
) -> None:
    """Write `tokenizer.json`, and the `tokenizer_config.json` with which Hugging Face's libraries take it as it is.

    The class is one that transformers 4 and 5 know. Without a class, or with that of an architecture, transformers 5 builds
    the pipeline anew from the vocabulary. A kind adds what such a class would have to know for that, for those who name it.

    Args:
        longest: tokens of the longest text that the model reads.
        has_token_types: the model tells the two texts of a pair apart by types of tokens.
    """
    tree = json.loads(tokenizer.definition)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in tokenizer.roles.by_role().items()},
        "model_input_names": [name for name in MODEL_INPUTS if has_token_types or name != "token_type_ids"],
        **({"model_max_length": longest} if longest else {}),
        **TOKENIZERS.get(tokenizer.kind, OTHER).settings(tree),
    }
    files: dict[str, Any] = {SETTINGS: settings, "tokenizer.json": with_ends(tree, tokenizer)}
    for name, content in files.items():  # the tokenizer last: it says that both are there
        write_atomically(folder / name, json.dumps(content, ensure_ascii=False, indent=1))


def with_ends(tree: Tree, tokenizer: Tokenizer) -> Tree:
    """The definition, which puts `cls` and `sep` around a text: the model was trained with them."""
    if Encoder.from_str(tokenizer.definition).encode("").ids == [tokenizer.cls_id, tokenizer.sep_id]:
        return tree
    given = tree.get("post_processor") or {}
    ends = ends_template(tokenizer.roles, tokenizer.vocabulary)
    if given.get("type") == "ByteLevel":  # it trims offsets, which the ends do not replace
        ends = {"type": "Sequence", "processors": [given, ends]}
    return tree | {"post_processor": ends}
