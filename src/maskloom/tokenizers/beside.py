"""What may stand beside a vocabulary: tokens that were added to it, and names of its roles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.tokenizers.roles import SETTINGS, SPECIALS, content_of, read_object

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
"""How an added token is looked for in a text."""


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
    file: Path, settings: dict[str, Any], vocabulary: Mapping[str, int], roles: Collection[str]
) -> list[dict[str, Any]]:
    """The tokens that were added to a vocabulary, as a definition has them, without those of the roles.

    Args:
        settings: the content of `tokenizer_config.json`.

    Raises:
        UserError: they are written in a way that does not say all of them.
    """
    path = file.parent / SETTINGS
    decoder = settings.get("added_tokens_decoder") or {}
    added: list[dict[str, Any]] = []
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
