"""Tokenizers from outside: found in a folder or on the Hub, read, and recognised as one of the kinds.

A definition is the text of a `tokenizer.json`. A kind may know other files, and makes a definition of them (BERT's
`vocab.txt`). Roles of special tokens are taken from the small files beside it, too (`roles`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from maskloom.errors import UserError
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import OTHER, Tokenizer, TokenizerKind, faults_of
from maskloom.tokenizers.pipeline import Tree, parse_definition
from maskloom.tokenizers.roles import SETTINGS, SPECIALS, read_small, roles_beside

DEFINITION = "tokenizer.json"
FOREIGN = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
"""Files of SentencePiece. They are not converted here: different versions of transformers make different definitions of one file,
and a run knows its tokenizer by the definition."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load a tokenizer: its `tokenizer.json` or a file that a kind knows, the folder that holds one, or a name on the Hub.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    file = find_tokenizer(source)
    definition = read_definition(file)
    said = roles_beside(file.parent) if file.name == DEFINITION else {}
    with faults_of(f"{file} is not a {_named(file)}"):
        return tokenizer_of_definition(definition, str(file), said)


def tokenizer_of_definition(definition: str, source: str, said: Mapping[str, str] | None = None) -> Tokenizer:
    """The tokenizer that a definition describes.

    Args:
        definition: a `tokenizer.json`.
        source: where it is from, for messages.
        said: role -> token, from the files beside it.

    Raises:
        UserError: it has no tokens for the roles, ids that a model cannot have, or draws tokens at random.
        ValueError: it is not a `tokenizer.json`. The library raises bare Exception for some faults.
    """
    tree = parse_definition(definition)
    return Tokenizer(tree, source, kind_of(tree), said or {})


def kind_of(tree: Tree) -> TokenizerKind:
    """The kind of a definition: the first of the table that claims it."""
    return next((kind for kind in TOKENIZERS.values() if kind.is_of_kind(tree)), OTHER)


def find_tokenizer(source: str | Path) -> Path:
    """The `tokenizer.json`, or other file of a known kind, that a file, a folder or a name on the Hub stands for.

    Raises:
        UserError: there is none.
    """
    path, names = Path(source), _names()
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise UserError(f"no tokenizer in {path}: {_what_else(path)}")
    if path.name in FOREIGN and path.is_file():
        raise UserError(f"{' or '.join(names)} is needed, and {path} {_how_to_convert(path)}")
    if path.exists():
        return path
    is_here = len(path.parts) > 1 and path.parent.is_dir()  # a folder that was mistyped, or is not made yet
    if is_here or path.name in (*names, SETTINGS) or not HUB_NAME.fullmatch(str(source)):
        raise UserError(
            f"no tokenizer at {path}: name a folder that holds {' or '.join(names)}, or train one with "
            f"`maskloom tokenizer CORPUS {path.parent if path.name in names else path}`"
        )
    return _from_hub(str(source))


def read_definition(file: Path) -> str:
    """The definition in a file that `find_tokenizer` found.

    Raises:
        UserError: it is too large, not text, or its kind refuses what it holds.
    """
    try:
        content = read_small(file)
    except OSError as error:
        raise UserError(f"the tokenizer {file} cannot be read: {error.strerror}") from None
    read = _reader_of(file)[1]
    try:
        return read(file, content)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a {_named(file)}: {error}") from None


def _names() -> list[str]:
    """Names of the files that stand for a tokenizer, the definition first."""
    return [DEFINITION, *(name for kind in TOKENIZERS.values() for name in kind.files)]


def _reader_of(file: Path) -> tuple[str, Callable[[Path, bytes], str]]:
    """The usual name of such a file, and what makes a definition of its content. Files of other names are known by endings."""
    for kind in TOKENIZERS.values():
        for name, read in kind.files.items():
            if file.name == name or file.suffix == Path(name).suffix != Path(DEFINITION).suffix:
                return name, read
    return DEFINITION, lambda file, content: content.decode("utf-8")


def _named(file: Path) -> str:
    return _reader_of(file)[0]


def _needed_beside(name: str) -> Iterator[str]:
    """Names of the files that have to stand beside one of this name."""
    return (needed for kind in TOKENIZERS.values() for needed in kind.needed_beside.get(name, ()))


def _what_else(folder: Path) -> str:
    """What a folder without a tokenizer that can be read holds, and what to do."""
    needed = f"{' or '.join(_names())} is needed"
    for name in FOREIGN:
        if (folder / name).exists():
            return f"{needed}, and {name} there {_how_to_convert(folder / name)}"
    advice = f"name a folder that holds one, or train one with `maskloom tokenizer CORPUS {folder}`"
    return f"{needed}: {advice if not (folder / 'config.json').exists() else 'copy that of the model there'}"


def _how_to_convert(file: Path) -> str:
    """What a file of `FOREIGN` is, and how to make a definition of it."""
    script = f"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{file.parent}').save_pretrained('OTHER')"
    return (
        "is of a SentencePiece tokenizer. Convert it, with the model's config.json beside it: `pip install sentencepiece "
        f'protobuf`, then `python -c "{script}"` writes OTHER/tokenizer.json'
    )


def _from_hub(name: str) -> Path:
    """A file of a model on the Hub: this machine's copy if it has one. transformers is imported here: it takes a second."""
    from transformers.utils import cached_file

    def get(wanted: str, asks: bool) -> str | None:
        flags = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": asks}
        found: str | None = cached_file(name, wanted, local_files_only=not asks, **flags)
        return found

    names = _names()
    try:
        for asks in (False, True):
            for wanted in names:
                found = get(wanted, asks)
                if found is None:
                    continue
                # Fetch what may stand beside it, too: a vocabulary means nothing without its settings.
                needed = [] if wanted == DEFINITION else [SETTINGS, *_needed_beside(wanted)]
                for beside in dict.fromkeys((SETTINGS, SPECIALS, *needed)):
                    if get(beside, False) is None and (asks or beside in needed):
                        get(beside, True)
                return Path(found)
        why = f"it cannot be reached, or the model there has none of {', '.join(names)}"
    except Exception as error:  # the library raises many kinds, for a name that does not exist as well
        why = str(error).strip().partition("\n")[0]
    raise UserError(
        f"no tokenizer at {name}: no file or folder here has this name, and from the Hub neither {' nor '.join(names)} "
        f"can be had ({why}). Name a folder that holds one of them, or fetch the model where the Hub can be reached (HF_HOME "
        "says where copies are)"
    )
