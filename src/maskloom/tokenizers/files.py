"""The files of a tokenizer: found in a folder or on the Hub, read into one definition, and written for Hugging Face.

A definition is the text of a `tokenizer.json`. A folder with BERT's `vocab.txt` alone has one too: that of Hugging Face's
`BertTokenizer`, with what its `tokenizer_config.json` says of case, accents and Chinese characters. It is made here, and
not by that class, so that another version of transformers never makes another one: a run knows its tokenizer by it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Encoder

from maskloom.errors import UserError
from maskloom.files import read_plain, write_atomically
from maskloom.tokenizers.pipeline import SPECIAL_TOKENS, WORD_PREFIX

LARGEST_BYTES = 1 << 28  # of a file: the largest that are published have about 35 MB
NAMES = ("tokenizer.json", "vocab.txt")
SETTINGS = "tokenizer_config.json"
OTHERS = {
    "vocab.json": "byte-level BPE",
    "merges.txt": "byte-level BPE",
    "sentencepiece.bpe.model": "SentencePiece",
    "tokenizer.model": "SentencePiece",
    "spiece.model": "SentencePiece",
}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Unicode's White_Space, which is not what `str.rstrip` takes: the tokenizers library reads a vocabulary by it."""
ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
SWITCHES = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
"""What `BertTokenizer` may be told, and its defaults."""
MODEL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def find_tokenizer(source: str | Path) -> Path:
    """The `tokenizer.json` or `vocab.txt` that a file, a folder or a name on the Hub stands for.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        for name in NAMES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"no tokenizer in {path}: {_what_else(path)}")
    if path.exists():
        return path
    is_here = len(path.parts) > 1 and path.parent.is_dir()  # a folder that was mistyped, or is not made yet
    if is_here or path.name in (*NAMES, SETTINGS) or not HUB_NAME.fullmatch(str(source)):
        raise UserError(
            f"no tokenizer at {path}: name a folder that holds tokenizer.json or BERT's vocab.txt, or train one with "
            f"`maskloom tokenizer CORPUS {path.parent if path.name in NAMES else path}`"
        )
    return _from_hub(str(source))


def read_definition(file: Path) -> str:
    """The definition in a file that `find_tokenizer` found.

    Raises:
        UserError: it is too large, not text, or a vocabulary that is not BERT's.
    """
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise UserError(f"{file} has more than {LARGEST_BYTES >> 20} MiB: no tokenizer has, and it was not read")
        text = read_plain(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a {_kind(file)}: {error}") from None
    except OSError as error:
        raise UserError(f"the tokenizer {file} cannot be read: {error.strerror}") from None
    return text if file.suffix != ".txt" else _bert_definition(file, text)


def write_for_others(folder: Path, definition: str, longest: int | None = None) -> None:
    """Write `tokenizer.json`, and the `tokenizer_config.json` with which Hugging Face's libraries take it as it is.

    A class of transformers 5 is unknown to transformers 4; without a class, or with BERT's, transformers 5 builds the
    pipeline anew from the vocabulary. What BERT's class would have to know for that is written too, for those who name it.
    A definition that puts no [CLS] and [SEP] around a text gets them: the model was trained with them.

    Args:
        longest: tokens of the longest text that the model reads.
    """
    tree = json.loads(definition)
    encoder = Encoder.from_str(definition)
    vocabulary = encoder.get_vocab(with_added_tokens=True)
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    if encoder.encode("").ids != [cls, sep]:
        given = tree.get("post_processor") or {}
        ends = _ends(cls, sep)
        keeps = given.get("type") == "ByteLevel"
        tree["post_processor"] = {"type": "Sequence", "processors": [given, ends]} if keeps else ends
    normalizer = tree.get("normalizer") or {}
    switches = {}
    if normalizer.get("type") == "BertNormalizer":
        keys = ("lowercase", "strip_accents", "handle_chinese_chars")
        switches = {name: normalizer.get(key) for name, key in zip(SWITCHES, keys, strict=True)}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **ROLES,
        "model_input_names": MODEL_INPUTS,
        **({"model_max_length": longest} if longest else {}),
        **switches,
    }
    for name, content in (
        (SETTINGS, settings),
        ("tokenizer.json", tree),
    ):  # the tokenizer last: it says that both are there
        write_atomically(folder / name, json.dumps(content, ensure_ascii=False, indent=1))


def _ends(cls: int, sep: int) -> dict[str, Any]:
    """The post-processor that puts [CLS] and [SEP] around a text, and a [SEP] behind a second one."""
    first, last = ({"id": role, "type_id": 0} for role in ("[CLS]", "[SEP]"))
    single = [{"SpecialToken": first}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": last}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    tokens = {
        role: {"id": role, "ids": [number], "tokens": [role]} for role, number in (("[CLS]", cls), ("[SEP]", sep))
    }
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *second],
        "special_tokens": tokens,
    }


def _kind(file: Path) -> str:
    return "vocab.txt" if file.suffix == ".txt" else "tokenizer.json"


def _what_else(folder: Path) -> str:
    """What a folder without a tokenizer that can be read holds, and what to do."""
    needed = "tokenizer.json or BERT's vocab.txt is needed"
    for name, kind in OTHERS.items():
        if (folder / name).exists():
            return (
                f"{needed}, and it has {name}, of a {kind} tokenizer. Convert it: `AutoTokenizer.from_pretrained(FOLDER)."
                "save_pretrained(OTHER)` of transformers writes tokenizer.json"
            )
    advice = f"name a folder that holds one, or train one with `maskloom tokenizer CORPUS {folder}`"
    return f"{needed}: {advice if not (folder / 'config.json').exists() else 'copy that of the model there'}"


def _from_hub(name: str) -> Path:
    """A file of a model on the Hub: this machine's copy if it has one. transformers is imported here: it takes a second."""
    from transformers.utils import cached_file

    def get(wanted: str, asks: bool) -> str | None:
        flags = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": asks}
        found: str | None = cached_file(name, wanted, local_files_only=not asks, **flags)
        return found

    try:
        for asks in (False, True):
            for wanted in NAMES:
                found = get(wanted, asks)
                if found is not None:
                    if wanted == "vocab.txt" and get(SETTINGS, False) is None:
                        get(SETTINGS, True)  # beside it, if the model has one
                    return Path(found)
        why = "it cannot be reached, or the model there has neither of them"
    except Exception as error:  # the library raises many kinds, for a name that does not exist as well
        why = str(error).strip().partition("\n")[0]
    raise UserError(
        f"no tokenizer at {name}: no file or folder here has this name, and from the Hub neither tokenizer.json nor vocab.txt "
        f"can be had ({why}). Name a folder that holds one of them, or fetch the model where the Hub can be reached (HF_HOME "
        "says where copies are)"
    )


def _bert_definition(file: Path, text: str) -> str:
    """The definition of `BertTokenizer` for a vocabulary with one token a line; the number of its line is a token's id.

    As for that class, lines end at a line feed and nowhere else, white space behind a token is none of it (a carriage return,
    too), and of a token that is there twice the last line counts. A line without a token has no id that is ever used; a byte
    order mark belongs to no token.
    """
    settings = _settings_beside(file)
    lines = text.removeprefix("\ufeff").split("\n")
    vocabulary = {token: number for number, line in enumerate(lines) if (token := line.rstrip(WHITE_SPACE))}
    absent = [role for role in SPECIAL_TOKENS if role not in vocabulary]
    if absent:
        raise UserError(
            f"{file} has no {', '.join(absent)}: a vocab.txt has one token a line, with {', '.join(SPECIAL_TOKENS)} among them"
        )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added: list[dict[str, Any]] = [
        {"id": vocabulary[role], "content": role, **flags, "special": True} for role in SPECIAL_TOKENS
    ]
    added += _added_beside(file, settings, vocabulary)
    switches = {name: settings.get(name, default) for name, default in SWITCHES.items()}
    for name, value in switches.items():
        if not isinstance(value, bool) and not (value is None and SWITCHES[name] is None):
            raise UserError(f"{file.parent / SETTINGS}: {name} is {value!r}, not true or false")
    tree: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: int(token["id"])),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": switches["tokenize_chinese_chars"],
            "strip_accents": switches["strip_accents"],
            "lowercase": switches["do_lower_case"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _ends(vocabulary["[CLS]"], vocabulary["[SEP]"]),
        "decoder": {"type": "WordPiece", "prefix": WORD_PREFIX, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": WORD_PREFIX,
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    return json.dumps(tree, ensure_ascii=False)


def _settings_beside(file: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` beside a vocabulary says; nothing if there is none.

    Raises:
        UserError: it is damaged, or gives a role to another token than BERT's.
    """
    path = file.parent / SETTINGS
    settings = _read_object(path)
    for role, token in ROLES.items():
        given = settings.get(role, token)
        given = given.get("content") if isinstance(given, dict) else given
        if given not in (token, None):
            raise UserError(
                f"{path} has {role} {given!r}: of a vocab.txt it has to be {token}. A tokenizer of another kind has to come as "
                "tokenizer.json"
            )
    return settings


def _added_beside(file: Path, settings: dict[str, Any], vocabulary: dict[str, int]) -> list[dict[str, Any]]:
    """The tokens that were added to a vocabulary.

    Raises:
        UserError: they are written in a way that does not say all of them.
    """
    path = file.parent / SETTINGS
    decoder = settings.get("added_tokens_decoder") or {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added: list[dict[str, Any]] = []
    try:
        for number, token in decoder.items():
            if token["content"] not in SPECIAL_TOKENS:
                given = {flag: bool(token.get(flag, False)) for flag in flags}
                added.append({"id": int(number), "content": str(token["content"]), **given})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: added_tokens_decoder is damaged: it has to hold an object for each id") from None
    known = {*SPECIAL_TOKENS, *(token["content"] for token in added)}
    other = set(_read_object(file.parent / "added_tokens.json"))
    for place in (settings, _read_object(file.parent / "special_tokens_map.json")):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = place.get(key) or []
            other |= {
                str(token.get("content") if isinstance(token, dict) else token)
                for token in (listed.values() if isinstance(listed, dict) else listed)
            }
    if unknown := sorted(other - known):
        raise UserError(
            f"{file.parent} adds {', '.join(map(repr, unknown[:5]))} to its vocab.txt without saying how they are found. Convert "
            "it: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)` of transformers writes tokenizer.json"
        )
    beyond = [token["content"] for token in added if vocabulary.get(token["content"], token["id"]) != token["id"]]
    if beyond:
        raise UserError(f"{path} gives {beyond[0]!r} another id than {file.name}: take one of them out")
    return added


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises UserError if it is damaged."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"more than {LARGEST_BYTES >> 20} MiB")
        values = json.loads(read_plain(path).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or remove it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a JSON object: restore it, or remove it")
    return values
