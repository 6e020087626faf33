"""What follows from a tokenizer's definition, the tree of its `tokenizer.json`, without encoding anything.

The encoder differs from what the file describes in two ways, and gives the file's ids for every text without a literal
special token of the roles. Its roles have names that no text holds. So a literal "[MASK]" stays text, also if the model
would find it in the vocabulary. All other added tokens are tokens wherever they stand in a text, the special ones too.

A long text is encoded in parts. A cut must not change a token. In the pipelines that are known here, that
is at a blank between two characters that are not white space. There, a pre-token holds a blank at its front only. No
added token may hold a blank beside other characters, or take white space from its sides. Any other pipeline is cut
nowhere, unless its kind knows better (`TokenizerKind.cut_points`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Set
from typing import Any

from maskloom.errors import UserError

AT_BLANKS = re.compile(r"(?<=\S)(?= \S)")
PLAIN_NORMALIZERS = frozenset({"NFC", "NFD", "Lowercase"})
WORD_NORMALIZERS = PLAIN_NORMALIZERS | {"BertNormalizer", "StripAccents"}
DROP_BLANKS = frozenset({"BertPreTokenizer", "WhitespaceSplit", "Whitespace"})
SPLIT_MORE = DROP_BLANKS | {"Punctuation", "Digits"}

Tree = dict[str, Any]


def parse_definition(text: str) -> Tree:
    """The tree of a `tokenizer.json`, without truncation and padding. They would lose text: many published files ask for
    128 tokens.

    Raises:
        ValueError: it is not a JSON object with a model.
        UserError: it draws tokens at random.
    """
    tree = json.loads(text)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise ValueError("a JSON object with a 'model' is needed")
    tree["truncation"] = tree["padding"] = None
    if tree["model"].get("dropout"):
        raise UserError(
            f"a tokenizer's model.dropout {tree['model']['dropout']} draws the tokens of a text at random, and no two readings "
            "of a corpus would agree: set it to null"
        )
    return tree


def encoder_definition(tree: Tree, roles: Set[str]) -> str:
    """The definition of the encoder, `tokenizer.json` as text: see the module. It has to be told to encode special tokens.

    Args:
        roles: the tokens that no text may become.
    """
    names = _hidden_names(tree, roles)
    model = dict(tree["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # of Unigram: (token, score) each
        model["vocab"] = [[names.get(token, token), *score] for token, *score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if isinstance(model.get("merges"), list):
        model["merges"] = [merge for merge in model["merges"] if not _makes_a_role(merge, roles)]
    added = [
        {**token, "content": names.get(token["content"], token["content"]), "special": token["content"] in names}
        for token in added_tokens(tree)
    ]
    return json.dumps({**tree, "model": model, "added_tokens": added, "post_processor": None}, ensure_ascii=False)


def masking_definition(tree: Tree, roles: Set[str], mask: str, mask_id: int) -> tuple[str, str]:
    """`encoder_definition`, in which a text can hold the mask, and the name that stands for the mask in such a text."""
    name = _hidden_names(tree, roles)[mask]
    hidden = json.loads(encoder_definition(tree, roles))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    listed = [token for token in hidden["added_tokens"] if token["content"] == name]  # some files list a token twice
    if not listed:
        listed = [{"id": mask_id, "content": name, **flags}]
        hidden["added_tokens"] += listed
    for token in listed:
        token["special"] = False  # the encoder is told to take special tokens for text
    return json.dumps(hidden, ensure_ascii=False), name


def unknown_of(tree: Tree) -> str | None:
    """The token that stands for what the vocabulary does not hold."""
    model = tree["model"]
    if isinstance(model.get("vocab"), list) and isinstance(model.get("unk_id"), int):
        return str(model["vocab"][model["unk_id"]][0])
    token: str | None = model.get("unk_token")
    return token


def cut_points(tree: Tree, roles: Set[str]) -> re.Pattern[str] | None:
    """What matches, without taking a character, where a text may be cut at blanks; None: nowhere.

    Args:
        roles: the tokens that no text becomes, and that a cut cannot harm.
    """
    own = own_tokens(tree, roles)
    if not splits_at_blanks(tree) or any(_minds_blanks(token, _normalizers(tree)) for token in own):
        return None
    return AT_BLANKS


def part_types(tree: Tree) -> list[str | None]:
    """The types of the normalizer, the pre-tokenizer and the model."""
    return [(tree.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]


def added_tokens(tree: Tree) -> list[Tree]:
    added: list[Tree] = tree.get("added_tokens") or []
    return added


def own_tokens(tree: Tree, roles: Set[str]) -> list[Tree]:
    """The added tokens that have none of the roles."""
    return [token for token in added_tokens(tree) if token["content"] not in roles]


def steps_of(part: Any, name: str) -> list[Tree]:
    """The normalizers, pre-tokenizers or processors of a part of a tree in their order; `name` is the key of a Sequence's."""
    if not isinstance(part, dict):
        return []
    inner = part.get(name) if part.get("type") == "Sequence" else None
    return [step for found in inner for step in steps_of(found, name)] if isinstance(inner, list) else [part]


def splits_at_blanks(tree: Tree) -> bool:
    """Whether no pre-token holds a blank but at its front, whatever the text."""
    normalizers = _normalizers(tree)
    steps = steps_of(tree.get("pre_tokenizer"), "pretokenizers")
    types = [step.get("type") for step in steps]
    if not steps:
        return False
    if types[0] in DROP_BLANKS and set(types[1:]) <= SPLIT_MORE:
        return normalizers <= WORD_NORMALIZERS
    if not normalizers <= PLAIN_NORMALIZERS:
        return False
    if types == ["ByteLevel"]:
        return steps[0].get("use_regex", True) is True
    if types in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        scheme = steps[-1].get("prepend_scheme", "always")
        return steps[-1].get("split", True) is True and (len(steps) == 1 or scheme == "always")
    return False


def _hidden_names(tree: Tree, roles: Set[str]) -> dict[str, str]:
    """Names for roles that no text holds."""
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    return {role: f"\uffff{digest}{role}" for role in roles}


def _normalizers(tree: Tree) -> set[str | None]:
    return {part.get("type") for part in steps_of(tree.get("normalizer"), "normalizers")}


def _minds_blanks(token: Tree, normalizers: set[str | None]) -> bool:
    """Whether a cut at a blank may change where an added token is found. BERT's normalizer makes runs of blanks longer."""
    content = token["content"]
    strips = token.get("lstrip") or token.get("rstrip")
    holds = " " in content and (content.strip(" ") or not normalizers <= PLAIN_NORMALIZERS)
    return bool(strips or holds or (token.get("normalized") and not content.isascii()))


def _makes_a_role(merge: str | list[str], roles: Set[str]) -> bool:
    """Whether a merge of BPE ("a b", or [a, b]) has a role among its parts, or makes one."""
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    return not {*parts, "".join(parts)}.isdisjoint(roles)
