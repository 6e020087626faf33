"""A vocabulary (`vocab.txt`, `vocab.json`) and the files beside it, made into a definition.

The files beside it name the tokens of its roles and those that were added, and set options of its pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.tokenizers.pipeline import Tree
from maskloom.tokenizers.roles import SETTINGS, SPECIALS, content_of, read_object

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
"""How an added token is looked for in a text."""


def definition_of(added: Iterable[Tree], **parts: Tree | None) -> str:
    """A definition, the text of a `tokenizer.json`.

    Args:
        added: the added tokens, in any order.
        parts: the other parts by their names: `normalizer`, `model` and so on.
    """
    in_order = sorted(added, key=lambda token: int(token["id"]))
    tree = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": in_order, **parts}
    return json.dumps(tree, ensure_ascii=False)


def switches_beside(file: Path, settings: Mapping[str, Any], defaults: Mapping[str, bool | None]) -> dict[str, Any]:
    """Options of a tokenizer's class that are True or False, and may be None if that is the default.

    Args:
        file: the vocabulary.
        settings: the content of `tokenizer_config.json`.
        defaults: option -> default.

    Raises:
        UserError: one of them has another value.
    """
    switches = {name: settings.get(name, default) for name, default in defaults.items()}
    for name, value in switches.items():
        if not isinstance(value, bool) and not (value is None and defaults[name] is None):
            raise UserError(f"{file.parent / SETTINGS}: {name} is {value!r}, not true or false")
    return switches


def check_roles(file: Path, roles: Mapping[str, str], names: Collection[str] = (SETTINGS, SPECIALS)) -> None:
    """Raises UserError if one of the files beside a vocabulary is damaged, or gives a role to another token.

    Args:
        roles: key of a role in these files -> the token that has to have it.
        names: the files.
    """
    for path in (file.parent / name for name in names):
        settings = read_object(path)
        for key, token in roles.items():
            given = content_of(settings.get(key, token))
            if given not in (token, None):
                raise UserError(
                    f"{path} has {key} {given!r}: of a {file.name} it has to be {token}. A tokenizer of another kind has to come "
                    "as tokenizer.json"
                )


def added_beside(
    file: Path, settings: Mapping[str, Any], vocabulary: Mapping[str, int], roles: Collection[str]
) -> list[Tree]:
    """The tokens that were added to a vocabulary, as a definition has them, without those of the roles.

    Args:
        file: the vocabulary.
        settings: the content of `tokenizer_config.json`.
        vocabulary: token -> id.
        roles: the tokens of the roles.

    Raises:
        UserError: the files are damaged, contradict each other, or name a token without its id.
    """
    path = file.parent / SETTINGS
    decoder = settings.get("added_tokens_decoder") or {}
    added: list[Tree] = []
    try:
        for number, token in decoder.items():
            if token["content"] not in roles:
                given = {flag: bool(token.get(flag, False)) for flag in (*FLAGS, "special")}
                added.append({"id": int(number), "content": str(token["content"]), **given})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: added_tokens_decoder is damaged: it has to hold an object for each id") from None
    known = {*roles, *(token["content"] for token in added)}
    other = set(read_object(file.parent / "added_tokens.json"))
    for place in (settings, read_object(file.parent / SPECIALS)):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = place.get(key) or []
            listed = list(listed.values()) if isinstance(listed, dict) else listed
            if not isinstance(listed, list):
                raise UserError(f"{file.parent}: {key} is {listed!r}, not a list of tokens")
            other |= {str(content_of(token)) for token in listed}
    if unknown := sorted(other - known):
        raise UserError(
            f"{file.parent} adds {', '.join(map(repr, unknown[:5]))} to its {file.name} without saying how they are found. "
            "Convert it: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)` of transformers writes tokenizer.json"
        )
    beyond = [token["content"] for token in added if vocabulary.get(token["content"], token["id"]) != token["id"]]
    if beyond:
        raise UserError(f"{path} gives {beyond[0]!r} another id than {file.name}: take one of them out")
    return added
