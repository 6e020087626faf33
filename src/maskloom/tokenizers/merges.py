"""RoBERTa's tokenizer as it was published, `vocab.json` and `merges.txt`, made into a definition.

The definition is that of Hugging Face's `RobertaTokenizer`; `tokenizer_config.json` decides about blanks in front of a text.
It is made here, and not by that class, so that it is the same with every version of transformers. In one thing the versions
differ: whether `<mask>` takes the blank before it. Here it does, unless the files say otherwise.

Other tokenizers have files of these names, too, and cut a text differently. So a folder is refused if it names a class or a
model that does not have RoBERTa's pipeline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.tokenizers.beside import FLAGS, added_beside, check_roles, definition_of, switches_beside
from maskloom.tokenizers.roles import SETTINGS, Roles, read_object, read_small

ROBERTA = Roles(cls="<s>", pad="<pad>", sep="</s>", unk="<unk>", mask="<mask>")
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""RoBERTa's spellings of the roles. All but the mask are in its order."""
ROLE_KEYS = {f"{role}_token": token for role, token in ROBERTA.by_role().items()}
ROLE_KEYS |= {"bos_token": ROBERTA.cls, "eos_token": ROBERTA.sep}
VOCABULARY, MERGES, MODEL = "vocab.json", "merges.txt", "config.json"
SHARING = ("roberta", "bart", "led", "longformer", "mvp")
"""Models with RoBERTa's tokenizer, by `model_type`. The classes of their tokenizers are named after them."""
SWITCHES = {"add_prefix_space": False, "trim_offsets": True}
"""Options of `RobertaTokenizer`, and their defaults."""
HEAD = "#version"  # begins a line of merges.txt that is not a merge
MOST_IDS = 1 << 32


def definition_of_merges(file: Path, content: bytes) -> str:
    """The definition of `RobertaTokenizer` for a `vocab.json`, which maps tokens to ids, with `merges.txt` beside it.

    Raises:
        UserError: one of the files is damaged or absent, or lacks RoBERTa's special tokens; or the files beside them are of
            another tokenizer.
    """
    settings = _settings_beside(file)
    vocabulary = _vocabulary_of(file, content)
    merges = _merges_beside(file, vocabulary)
    absent = [role for role in SPECIAL_TOKENS if role not in vocabulary]
    if absent:
        raise UserError(
            f"{file} has no {', '.join(absent)}: a {VOCABULARY} of RoBERTa's kind has {', '.join(SPECIAL_TOKENS)} among its "
            "tokens. A tokenizer of another kind has to come as tokenizer.json"
        )
    added = [_special(role, vocabulary[role], settings) for role in SPECIAL_TOKENS]
    added += added_beside(file, settings, vocabulary, SPECIAL_TOKENS)
    switches = switches_beside(file, settings, SWITCHES)
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return definition_of(
        added,
        normalizer=None,
        pre_tokenizer=byte_level | {"add_prefix_space": switches["add_prefix_space"]},
        post_processor={
            "type": "RobertaProcessing",
            "sep": [ROBERTA.sep, vocabulary[ROBERTA.sep]],
            "cls": [ROBERTA.cls, vocabulary[ROBERTA.cls]],
            **switches,
        },
        decoder=byte_level | {"add_prefix_space": True},
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    )


def _settings_beside(file: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says; nothing if there is none.

    Raises:
        UserError: it is damaged, gives a role to another token than RoBERTa's, or the files are of another tokenizer.
    """
    settings = read_object(file.parent / SETTINGS)
    check_roles(file, ROLE_KEYS)
    named = settings.get("tokenizer_class")
    model = read_object(file.parent / MODEL).get("model_type")
    shared = [f"{name}tokenizer{fast}" for name in SHARING for fast in ("", "fast")]
    for place, key, value, known in (
        (SETTINGS, "tokenizer_class", named, shared),
        (MODEL, "model_type", model, SHARING),
    ):
        if value is not None and str(value).lower() not in known:
            raise UserError(
                f"{file.parent / place} has {key} {value!r}, whose {VOCABULARY} cuts a text otherwise than RoBERTa's. Convert "
                "it: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)` of transformers writes tokenizer.json"
            )
    return settings


def _vocabulary_of(file: Path, content: bytes) -> dict[str, int]:
    """Token -> id."""
    try:
        vocabulary = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a {VOCABULARY}: {error}") from None
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise UserError(f"{file} is not a {VOCABULARY}: a JSON object with an id for each token is needed")
    for token, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < MOST_IDS:
            raise UserError(f"{file} gives {token!r} the id {number!r}: it has to be a whole number from 0")
    return vocabulary


def _merges_beside(file: Path, vocabulary: dict[str, int]) -> list[list[str]]:
    """The pairs of `merges.txt`, one a line.

    Raises:
        UserError: it is absent or without a pair, or a line of it is not a pair that gives a token.
    """
    path = file.parent / MERGES
    try:
        lines = read_small(path).decode("utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(
            f"{file} needs {MERGES} beside it, and there is none: copy that of the same tokenizer"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a {MERGES}: {error}") from None
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if line.startswith(HEAD) or (not line and number == len(lines)):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not a pair of tokens with a blank between them")
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise UserError(
                    f"{path}, line {number}: {file.name} has no {token!r}: the two have to be of one tokenizer"
                )
        merges.append(pair)
    longer = (token for token in vocabulary if len(token) > 1 and token not in SPECIAL_TOKENS)
    if not merges and (unmade := next(longer, None)) is not None:
        raise UserError(
            f"{path} has no pair of tokens, and no text would become {unmade!r} of {file.name}: copy the whole file, with line "
            "ends of LF or CRLF"
        )
    return merges


def _special(role: str, number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The added token of a role; the files say whether it takes the white space beside it."""
    flags = dict.fromkeys(FLAGS, False) | {"lstrip": role == ROBERTA.mask}
    decoder = settings.get("added_tokens_decoder")
    told = [decoder.get(str(number)) if isinstance(decoder, dict) else None]
    told += [settings.get(key) for key, token in ROLE_KEYS.items() if token == role]
    for found in told:
        if isinstance(found, dict) and found.get("content") == role:
            flags |= {flag: bool(found[flag]) for flag in ("lstrip", "rstrip") if flag in found}
            break
    return {"id": number, "content": role, **flags, "special": True}
