"""Roles of special tokens: which token pads, begins, ends and masks, whatever its spelling.

A role is read from what says it most plainly. In this order:

1. `tokenizer_config.json` and `special_tokens_map.json` beside the definition, if the vocabulary has the token;
2. BERT's spellings, if the vocabulary has those of all roles but the unknown's;
3. the post-processor for the first and the last token of a text, and the model for the unknown token;
4. the beginning and end of a sequence (`bos`, `eos`) in the files of 1;
5. the usual spellings, among the special tokens that were added.

The files of 1 are not part of a definition. If they change a role, the role joins the tokenizer's fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.tokenizers.pipeline import Tree, steps_of, unknown_of

LARGEST_BYTES = 1 << 28  # of a file: the largest published ones have about 35 MB
SETTINGS, SPECIALS = "tokenizer_config.json", "special_tokens_map.json"
USUAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Role -> its usual spellings, BERT's first."""
NEEDED = ("pad", "cls", "sep", "mask")
IN_PLACE = {"cls": "bos", "sep": "eos"}


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The tokens of the roles, as the vocabulary spells them.

    Attributes:
        pad: fills a row.
        unk: stands for what the vocabulary does not hold; None if it holds everything.
        cls, sep: the first and the last token of every piece of text.
        mask: stands for a token that is predicted.
    """

    pad: str
    unk: str | None = None
    cls: str
    sep: str
    mask: str

    @property
    def spellings(self) -> frozenset[str]:
        return frozenset(self.by_role().values())

    def by_role(self) -> dict[str, str]:
        """Role -> token, without a role that no token has."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {role: token for role, token in found.items() if token is not None}


BERT = Roles(**{role: spellings[0] for role, spellings in USUAL.items()})


def find_roles(tree: Tree, vocabulary: Mapping[str, int], source: str, said: Mapping[str, str]) -> Roles:
    """The roles of a definition.

    Args:
        vocabulary: token -> id, with the tokens that were added.
        source: what messages call the tokenizer.
        said: role -> token, from the files beside it (`roles_beside`).

    Raises:
        UserError: a role has no token, or shares one with another.
    """
    usual = {role: spellings[0] for role, spellings in USUAL.items()}
    is_berts = all(usual[role] in vocabulary for role in NEEDED)
    places: list[Mapping[str, str | None]] = [
        said,
        usual if is_berts else {},
        dict(_ends_of(tree.get("post_processor"))) | {"unk": unknown_of(tree)},
        {role: said.get(other) for role, other in IN_PLACE.items()},
        _usual_specials(tree),
    ]
    found: dict[str, str] = {}
    for role in USUAL:
        tokens = (place.get(role) for place in places)
        if (token := next((token for token in tokens if token in vocabulary), None)) is not None:
            found[role] = token
    absent = [usual[role] for role in USUAL if role not in found and (role != "unk" or unknown_of(tree) is not None)]
    if absent:
        raise UserError(
            f"{source} has no {', '.join(absent)}, nor another token with that role: training needs tokens for "
            f"{', '.join(NEEDED)}. If it has them, name them in {SETTINGS} beside it ({NEEDED[-1]}_token and so on)"
        )
    if unknown_of(tree) is None and found.get("unk") in [found[role] for role in NEEDED]:
        del found["unk"]  # some files name one although the model never gives it
    _check_apart(found, source, unknown_of(tree))
    return Roles(**found)


def roles_beside(folder: Path) -> dict[str, str]:
    """Role -> token, as the small files of a tokenizer's folder name them; `bos` and `eos` too.

    Raises:
        UserError: one of the files is damaged.
    """
    found: dict[str, str] = {}
    for name in (SPECIALS, SETTINGS):  # the second one counts if they differ
        settings = read_object(folder / name)
        for role in (*USUAL, *IN_PLACE.values()):
            token = content_of(settings.get(f"{role}_token"))
            if isinstance(token, str):
                found[role] = token
    return found


def content_of(token: object) -> object:
    """The spelling of a token that a file gives as a string, or as an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def read_small(path: Path) -> bytes:
    """The content of one of a tokenizer's files.

    Raises:
        UserError: it is larger than any tokenizer's.
        OSError: it cannot be read.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise UserError(f"{path} has more than {LARGEST_BYTES >> 20} MiB: no tokenizer has, and it was not read")
    return read_plain(path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises UserError if it is damaged."""
    try:
        values = json.loads(read_small(path).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or remove it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a JSON object: restore it, or remove it")
    return values


def ends_template(roles: Roles, vocabulary: Mapping[str, int]) -> Tree:
    """The post-processor that puts `cls` and `sep` around a text, and a `sep` behind a second one."""
    first, last = ({"id": role, "type_id": 0} for role in (roles.cls, roles.sep))
    single = [{"SpecialToken": first}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": last}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": roles.sep, "type_id": 1}}]
    tokens = {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (roles.cls, roles.sep)}
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, *second], "special_tokens": tokens}


def _ends_of(post_processor: object) -> Iterator[tuple[str, str]]:
    """("cls", token) and ("sep", token) of a post-processor that puts them around a text."""
    for step in steps_of(post_processor, "processors"):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            yield from (("cls", step["cls"][0]), ("sep", step["sep"][0]))
        elif step.get("type") == "TemplateProcessing" and step["single"]:
            for role, piece in (("cls", step["single"][0]), ("sep", step["single"][-1])):
                tokens = step["special_tokens"].get(piece.get("SpecialToken", {}).get("id"), {}).get("tokens", [])
                if len(tokens) == 1:
                    yield role, tokens[0]


def _usual_specials(tree: Tree) -> dict[str, str | None]:
    special = {token["content"] for token in tree.get("added_tokens") or [] if token.get("special")}
    return {role: _first(spellings, special) for role, spellings in USUAL.items()}


def _first(spellings: Iterable[str], known: set[str]) -> str | None:
    return next((spelling for spelling in spellings if spelling in known), None)


def _check_apart(found: Mapping[str, str], source: str, unknown: str | None) -> None:
    """Raises UserError if a token has two roles; only the first and the last token of a text may be one."""
    needed = {role: found[role] for role in NEEDED}
    for token in (unknown, found.get("unk")):
        if token in needed.values():
            others = ", ".join(f"{role}: {other}" for role, other in needed.items())
            raise UserError(
                f"{source} has {token} for what its vocabulary does not hold: that has to be a token of its own (it has {others})"
            )
    for role in ("pad", "mask"):
        for other in NEEDED:
            if other != role and needed[other] == needed[role]:
                raise UserError(f"{source} has {needed[role]} for both {role} and {other}: they have to be two tokens")
