"""Tokenizers written for Hugging Face's libraries: `tokenizer.json` and `tokenizer_config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Encoder

from maskloom.files import write_atomically
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import OTHER, Tokenizer, faults_of
from maskloom.tokenizers.pipeline import Tree
from maskloom.tokenizers.roles import BERT, SETTINGS, Roles, ends_template

INPUTS = ["input_ids", "attention_mask"]
INPUTS_WITH_TYPES = ["input_ids", "token_type_ids", "attention_mask"]


def write_for_others(
    folder: Path, tokenizer: Tokenizer, longest: int | None = None, has_token_types: bool = True
) -> None:
    """Write `tokenizer.json`, and the `tokenizer_config.json` with which Hugging Face's libraries take it as it is.

    The class is one that transformers 4 and 5 know. Without a class, or with that of an architecture, transformers 5 builds
    the pipeline anew from the vocabulary. For users who name such a class all the same, a kind adds the keys that it needs.

    Args:
        longest: tokens of the longest text that the model reads.
        has_token_types: whether the model has more than one type of token. Others must not be given `token_type_ids`.
    """
    tree, kind = json.loads(tokenizer.definition), TOKENIZERS.get(tokenizer.kind, OTHER)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in _names_of(tokenizer.roles).items()},
        "model_input_names": INPUTS_WITH_TYPES if has_token_types and kind.has_token_types else INPUTS,
        **({"model_max_length": longest} if longest else {}),
        **kind.settings(tree),
    }
    files: dict[str, Any] = {SETTINGS: settings, "tokenizer.json": with_ends(tree, tokenizer)}
    for name, content in files.items():  # the tokenizer last: it says that both are there
        write_atomically(folder / name, json.dumps(content, ensure_ascii=False, indent=1))


def _names_of(roles: Roles) -> dict[str, str]:
    """Role -> token in Hugging Face's names. Tokenizers without BERT's spellings have `bos` and `eos`, too."""
    names = roles.by_role()
    return names if roles.cls == BERT.cls else names | {"bos": roles.cls, "eos": roles.sep}


def with_ends(tree: Tree, tokenizer: Tokenizer) -> Tree:
    """The definition, changed if need be so that it puts `cls` and `sep` around a text: the model was trained with them.

    Raises:
        UserError: its post-processor does not work.
    """
    with faults_of(f"the post-processor of {tokenizer.source} cannot be followed"):
        empty = Encoder.from_str(tokenizer.definition).encode("").ids
    if empty == [tokenizer.cls_id, tokenizer.sep_id]:
        return tree
    given = tree.get("post_processor") or {}
    ends = ends_template(tokenizer.roles, tokenizer.vocabulary)
    if given.get("type") == "ByteLevel":  # it trims offsets: keep it
        ends = {"type": "Sequence", "processors": [given, ends]}
    return tree | {"post_processor": ends}
