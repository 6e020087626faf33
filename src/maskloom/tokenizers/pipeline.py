"""What follows from a tokenizer's definition, the tree of its `tokenizer.json`, without encoding anything.

The encoder differs from what the file describes in two ways, and gives the file's ids for every text without the literals
of the five roles. Its roles have names that no text holds, so that a literal "[MASK]" stays text, also where the model
would find it in the vocabulary. All other added tokens are tokens wherever they stand in a text, the special ones too.

A long text is encoded in parts. It is cut only where a cut changes no token:

- BERT's pipeline: before ASCII punctuation and before what the normaliser puts blanks around, for they are words of
  their own;
- other pipelines that are known: at a blank between two characters that are no white space. No pre-token holds a blank
  but at its front, and no token was added that could hold one beside other characters, or that takes white space from
  its sides;
- any other pipeline: nowhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from typing import Any

from maskloom.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The five roles."""
WORD_PREFIX = "##"
BERT = ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
AT_BLANKS = re.compile(r"(?<=\S)(?= \S)")
BLANKS = "\u00a0\u3000"  # blanks beside U+0020 that BERT's normaliser keeps as such
CJK = "\u4e00-\u9fff\u3001\u3002\uff0c"  # of all that BERT splits, what long texts without a blank have much of
PLAIN_NORMALIZERS = frozenset({"NFC", "NFD", "Lowercase"})
WORD_NORMALIZERS = PLAIN_NORMALIZERS | {"BertNormalizer", "StripAccents"}
DROP_BLANKS = frozenset({"BertPreTokenizer", "WhitespaceSplit", "Whitespace"})
SPLIT_MORE = DROP_BLANKS | {"Punctuation", "Digits"}

Tree = dict[str, Any]


def parse_definition(text: str) -> Tree:
    """The tree of a `tokenizer.json`, without truncation and padding, which would lose text: many published files ask for
    128 tokens.

    Raises:
        ValueError: it is no JSON object with a model.
        UserError: it draws tokens at random.
    """
    tree = json.loads(text)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise ValueError("a JSON object with a 'model' is needed")
    tree["truncation"] = tree["padding"] = None
    if tree["model"].get("dropout"):
        raise UserError(
            f"model.dropout {tree['model']['dropout']} draws the tokens of a text at random, and no two readings of a corpus "
            "would agree: set it to null"
        )
    return tree


def encoder_definition(tree: Tree) -> str:
    """The definition of the encoder, `tokenizer.json` as text: see the module. It has to be told to encode special tokens."""
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    names = {role: f"\uffff{digest}{role}" for role in SPECIAL_TOKENS}
    model = dict(tree["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # of Unigram: (token, score) each
        model["vocab"] = [[names.get(token, token), *score] for token, *score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if isinstance(model.get("merges"), list):
        model["merges"] = [merge for merge in model["merges"] if not _makes_a_role(merge)]
    added = [
        {**token, "content": names.get(token["content"], token["content"]), "special": token["content"] in names}
        for token in _added(tree)
    ]
    return json.dumps({**tree, "model": model, "added_tokens": added, "post_processor": None}, ensure_ascii=False)


def is_plain(tree: Tree) -> bool:
    """Whether it is BERT's pipeline with the five roles as its only added tokens, all special."""
    return _types(tree) == BERT and all(
        token["content"] in SPECIAL_TOKENS and bool(token.get("special")) for token in _added(tree)
    )


def is_local(tree: Tree) -> bool:
    """Whether the ids of a text are those of its stretches between blanks, line ends and tabs, one after the other.

    So it is for BERT's normaliser and pre-tokeniser, which look at characters and words and never across white space,
    unless a token was added that can hold white space or take some from its sides. One that is looked for in normalised
    text must be ASCII: the normaliser puts blanks around other characters.
    """
    return _types(tree) == BERT and all(
        not (token.get("lstrip") or token.get("rstrip"))
        and not any(map(str.isspace, token["content"]))
        and (token["content"].isascii() or not token.get("normalized"))
        for token in _own(tree)
    )


def marks_words(tree: Tree) -> bool:
    """Whether a token says by itself that it goes on with the word before it."""
    model = tree["model"]
    default = WORD_PREFIX if model.get("type") == "WordPiece" else None
    return bool(model.get("continuing_subword_prefix", default) == WORD_PREFIX)


def unknown_of(tree: Tree) -> str | None:
    """The token that stands for what the vocabulary does not hold."""
    model = tree["model"]
    if isinstance(model.get("vocab"), list) and isinstance(model.get("unk_id"), int):
        return str(model["vocab"][model["unk_id"]][0])
    token: str | None = model.get("unk_token")
    return token


def cut_points(tree: Tree) -> re.Pattern[str] | None:
    """What matches, without taking a character, where a text may be cut; None: nowhere."""
    own = _own(tree)
    if is_local(tree):
        held = set("".join(token["content"] for token in own))
        # The underscore is part of words to tokens that are looked for as whole words only.
        marks = re.escape("".join(mark for mark in string.punctuation if mark != "_" and mark not in held))
        cjk = CJK if tree["normalizer"].get("handle_chinese_chars") and not own else ""
        return re.compile(f"(?=[{BLANKS}{marks}{cjk}])")
    if not _splits_at_blanks(tree) or any(_minds_blanks(token, _normalizers(tree)) for token in own):
        return None
    return AT_BLANKS


def _splits_at_blanks(tree: Tree) -> bool:
    """Whether no pre-token holds a blank but at its front, whatever the text."""
    normalizers = _normalizers(tree)
    steps = _steps(tree.get("pre_tokenizer"), "pretokenizers")
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


def _normalizers(tree: Tree) -> set[str | None]:
    return {part.get("type") for part in _steps(tree.get("normalizer"), "normalizers")}


def _steps(part: Any, name: str) -> list[Tree]:
    """The normalisers or pre-tokenisers of a tree in their order."""
    if not isinstance(part, dict):
        return []
    inner = part.get(name) if part.get("type") == "Sequence" else None
    return [step for found in inner for step in _steps(found, name)] if isinstance(inner, list) else [part]


def _types(tree: Tree) -> list[str | None]:
    return [(tree.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]


def _added(tree: Tree) -> list[Tree]:
    added: list[Tree] = tree.get("added_tokens") or []
    return added


def _own(tree: Tree) -> list[Tree]:
    """The added tokens that are none of the roles."""
    return [token for token in _added(tree) if token["content"] not in SPECIAL_TOKENS]


def _minds_blanks(token: Tree, normalizers: set[str | None]) -> bool:
    """Whether a cut at a blank may change where an added token is found. BERT's normaliser makes runs of blanks longer."""
    content = token["content"]
    strips = token.get("lstrip") or token.get("rstrip")
    holds = " " in content and (content.strip(" ") or not normalizers <= PLAIN_NORMALIZERS)
    return bool(strips or holds or (token.get("normalized") and not content.isascii()))


def _makes_a_role(merge: Any) -> bool:
    """Whether a merge of BPE ("a b", or [a, b]) has a role among its parts, or makes one."""
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    return not {*parts, "".join(parts)}.isdisjoint(SPECIAL_TOKENS)
