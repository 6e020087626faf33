"""What packing and masking need of any tokenizer, and what differs from one kind of tokenizer to another.

A tokenizer is Hugging Face's `tokenizer.json`, its definition. Special tokens are known by their roles (`roles`). In a
document, a literal "[MASK]", or however a role is spelled, stays text; tokens that a user added stay one token each
(`pipeline`). A `TokenizerKind` is all that the rest of maskloom knows of WordPiece and others; `maskloom.tokenizers` has
the table of kinds.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Encoder

from maskloom.errors import UserError
from maskloom.files import naming
from maskloom.tokenizers import pipeline
from maskloom.tokenizers.pipeline import Tree
from maskloom.tokenizers.roles import SPECIALS, USUAL, Roles, find_roles

TOKENIZING = 2
"""Version of how text becomes ids. It is raised whenever a tokenizer gives other ids for a text. In version 1, tokens that
users had added were split, and a stretch of text without a blank was cut after every `MAX_ENCODE_CHARS` characters."""
MOST_KNOWN = 1 << 18  # stretches of text whose ids are kept: about 60 MiB a process
LONGEST_KNOWN_CHARS = 64
MAX_ENCODE_CHARS = 1 << 16  # longer texts are encoded in parts: the encoder's memory grows with the longest text
MOST_IDS_A_TOKEN, FEW_IDS = 4, 1 << 16
"""A vocabulary with more ids than so many for each token, and more than few, is refused: a model has a row for each."""
UNUSED = "[unused"  # how placeholders of a vocabulary begin
NOT_USED = frozenset({"<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"})  # CamemBERT's
MASK = USUAL["mask"][0]  # what people write for a mask, whatever the tokenizer's own spelling

Int32s = NDArray[np.int32]
Bools = NDArray[np.bool_]
WordRule = Callable[[Int32s, Bools], Bools]


@dataclass(frozen=True)
class Extension:
    """How tokenizers of a kind take whole words into their vocabulary (`maskloom.tokenizers.extend`)."""

    word_of: Callable[[Tree, str], str | None]
    """(definition, pre-token) -> the token that would stand for the word in it; None if there is no word of letters in it."""
    extended: Callable[[Tree, Sequence[str], int], Tree]
    """(definition, tokens of words, first new id) -> the definition with these tokens, such that each word becomes its token. It
    may raise UserError."""


@dataclass(frozen=True)
class TokenizerKind:
    """What differs between kinds of tokenizers. Each kind is one value of this type, a row of `maskloom.tokenizers.TOKENIZERS`.

    The members are functions of a definition (`Tree`, the JSON of `tokenizer.json`), most of them with a default that is
    right for any tokenizer. A word rule and what cuts stretches go to reader processes, so they have to be picklable.
    """

    name: str
    """What the command line and messages call it."""
    is_of_kind: Callable[[Tree], bool]
    """Whether a definition is of this kind. The first kind of the table that says so has it."""
    train: Callable[[Iterable[str], int, bool | None], str] | None = None
    """(documents, most ids, lower-case or not; None: as is usual for the kind) -> the definition of a new tokenizer, as
    `tokenizers.Tokenizer.to_str` gives it. It needs special tokens, best in a spelling of `roles.USUAL`. Left out: this kind
    can be read, but not trained."""
    word_rule: Callable[[Tree, Mapping[str, int]], WordRule | None] = lambda tree, vocabulary: None
    """(definition, token -> id) -> the rule of where words begin, `Tokenizer.starts_word`. None: tokens do not tell, and
    whole words and spans cannot be masked."""
    cut_points: Callable[[Tree, frozenset[str]], re.Pattern[str] | None] = pipeline.cut_points
    """(definition, tokens of the roles) -> what matches, without taking a character, where a long text may be cut without
    changing a token. None: nowhere."""
    stretches: Callable[[Tree, frozenset[str]], Callable[[str], list[str]] | None] = lambda tree, roles: None
    """(definition, tokens of the roles) -> what cuts any text into stretches such that the ids of the text are those of its
    stretches, one after the other. The ids of short stretches are kept: looking them up is faster than encoding, if they
    repeat as words do. None: a text is encoded whole."""
    oldest_version: Callable[[Tree, frozenset[str]], int] = lambda tree, roles: TOKENIZING
    """(definition, tokens of the roles) -> the oldest version of tokenizing (`TOKENIZING`) that it can still give."""
    extension: Extension | None = None
    """How it takes further words. None: not at all."""
    files: Mapping[str, Callable[[Path, bytes], str]] = field(default_factory=dict)
    """Name of a file that can take the place of `tokenizer.json` -> function of (path, content) that makes a definition of it."""
    needed_beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of such a file -> names of the files that have to stand beside it."""
    settings: Callable[[Tree], dict[str, Any]] = lambda tree: {}
    """definition -> keys of the `tokenizer_config.json` that is written for Hugging Face, beside class and roles."""
    shown: Callable[[str], str] = str
    """A token as the vocabulary spells it -> as people can read it."""
    vocab_multiple: int = 1
    """A new vocabulary is padded with `[unused*]` to a multiple of this, unless the user sets another multiple."""
    train_bytes: int = 256 << 20
    """Text to learn from, in bytes, unless the user sets another limit."""
    has_token_types: bool = True
    """Whether Hugging Face's libraries should tell the two texts of a pair apart by token types, as BERT does."""


OTHER = TokenizerKind("other", is_of_kind=lambda tree: True)
"""Any definition that no kind of the table claims. Its single tokens can be masked."""


@dataclass(frozen=True)
class Tokenized(Sequence[Int32s]):
    """Token ids of documents, without special tokens: a sequence of int32 arrays that lie one after the other.

    Attributes:
        ids: int32 [tokens].
        lengths: int64 [documents].
    """

    ids: Int32s
    lengths: NDArray[np.int64]

    @functools.cached_property
    def ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: Any) -> Any:
        end = self.ends[number]
        return self.ids[end - self.lengths[number] : end]

    @staticmethod
    def of(documents: Sequence[Int32s]) -> Tokenized:
        ids = np.concatenate(documents) if documents else np.empty(0, np.int32)
        return Tokenized(ids, np.fromiter(map(len, documents), np.int64, len(documents)))

    def select(self, chosen: Bools) -> Tokenized:
        """The documents where `chosen`, bool [documents], is True."""
        if chosen.all():
            return self
        return Tokenized(self.ids[np.repeat(chosen, self.lengths)], self.lengths[chosen])


class Tokenizer:
    """A tokenizer of any kind, and the ids that packing and masking need.

    Picklable: a reader process gets the JSON and builds its own encoder.

    Attributes:
        source: where it is from, for messages.
        kind: name of its kind.
        definition: its `tokenizer.json`.
        roles: the special tokens, as it spells them.
        fingerprint: sha256 of the definition, and of roles that do not follow from it.
        tokenizing: version of tokenizing, as `TOKENIZING`.
        oldest_version: the oldest version of tokenizing that `as_of` can give.
        vocab_size: number of ids.
        pad_id, cls_id, sep_id, mask_id: ids of the roles.
        unk_id: id of the token for unknown text; None if there is none, as for tokenizers of bytes.
        is_maskable: bool [vocab_size]; False for special tokens and for `[unused*]`, which are never masked.
        random_ids: int32 [n]; the ids that may replace a masked token.
        knows_words: whether `starts_word` can be asked.
    """

    def __init__(self, tree: Tree, source: str, kind: TokenizerKind, said: Mapping[str, str]) -> None:
        """Use `tokenizer_of_definition`, which finds the kind.

        Args:
            tree: from `parse_definition`.
            said: role -> token, from the files beside it.

        Raises:
            UserError: roles or ids that a model cannot be trained with.
        """
        self.source, self.kind = source, kind.name
        self.definition = json.dumps(tree, sort_keys=True, ensure_ascii=False)
        self.tokenizing = TOKENIZING
        vocabulary = self.vocabulary
        self.roles = find_roles(tree, vocabulary, source, said)
        # Whether the roles need a file beside the definition: without it, other ones would be found, or none.
        self._roles_are_said = bool(said) and not _has_roles(tree, vocabulary, self.roles)
        identity = self.definition + (json.dumps(self.roles.by_role()) if self._roles_are_said else "")
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self.vocab_size = max(vocabulary.values()) + 1
        self._check_ids(tree)
        roles = self.roles
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = (
            vocabulary[token] for token in (roles.pad, roles.cls, roles.sep, roles.mask)
        )
        self.unk_id = vocabulary[roles.unk] if roles.unk is not None else None
        self.is_maskable = np.zeros(self.vocab_size, dtype=bool)
        for token, number in vocabulary.items():
            self.is_maskable[number] = not token.startswith(UNUSED) and token not in NOT_USED
        special = [number for number, token in self._whole.get_added_tokens_decoder().items() if token.special]
        self.is_maskable[[*special, *(vocabulary[token] for token in roles.spellings)]] = False
        self.random_ids: Int32s = np.flatnonzero(self.is_maskable).astype(np.int32)
        self._shown = kind.shown
        self._word_rule = kind.word_rule(tree, vocabulary)
        self.knows_words = self._word_rule is not None
        self.oldest_version = kind.oldest_version(tree, roles.spellings)
        self._cut_points = kind.cut_points(tree, roles.spellings)
        self._stretches = kind.stretches(tree, roles.spellings)
        assert self._encoder, "built here, so that a file is refused where it is loaded"

    def _check_ids(self, tree: Tree) -> None:
        """Raises UserError for ids that a model cannot have: two tokens share one, the library gives an added token another
        one, or so many have no token that it must be a mistake."""
        tokens: dict[int, str] = {}
        for added in pipeline.added_tokens(tree):
            if added["id"] != self.vocabulary[added["content"]]:
                raise UserError(
                    f"{self.source} gives {added['content']!r} id {added['id']}, and it would be read as "
                    f"{self.vocabulary[added['content']]}: added tokens need the ids behind the vocabulary, in their order"
                )
        for token, number in self.vocabulary.items():
            if tokens.setdefault(number, token) != token:
                raise UserError(
                    f"{self.source} gives id {number} to {tokens[number]!r} and to {token!r}: correct one of them"
                )
        if self.vocab_size > max(MOST_IDS_A_TOKEN * len(tokens), FEW_IDS):
            raise UserError(
                f"{self.source} has {len(tokens):,} tokens, and ids up to {self.vocab_size - 1:,}: a model has a row for each "
                "id. Number them without such gaps"
            )

    def as_of(self, tokenizing: int) -> Tokenizer:
        """This tokenizer, with the ids that a version of tokenizing gave.

        Raises:
            UserError: it cannot give them.
        """
        if tokenizing == self.tokenizing:
            return self
        if self.oldest_version <= tokenizing <= TOKENIZING:
            older = copy.copy(self)
            older.tokenizing = tokenizing
            return older
        raise UserError(
            f"version {tokenizing} of tokenizing gave other ids for {self.source} than this maskloom, which has version "
            f"{TOKENIZING}. They differ for added tokens and a literal {self.roles.mask} in a text. Resume with the maskloom "
            "that began the run, or begin a new run"
        )

    @property
    def tokens_mark(self) -> str:
        """What identifies the ids of a text: the fingerprint and the version of tokenizing."""
        return f"{self.fingerprint}:{self.tokenizing}"

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, with the tokens that were added."""
        found: dict[str, int] = self._whole.get_vocab(with_added_tokens=True)
        return found

    @functools.cached_property
    def _whole(self) -> Encoder:
        """What the file describes: for names and decoding."""
        return Encoder.from_str(self.definition)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        encoder = Encoder.from_str(pipeline.encoder_definition(json.loads(self.definition), self.roles.spellings))
        encoder.encode_special_tokens = True
        return encoder

    @functools.cached_property
    def _known(self) -> dict[str, bytes]:
        """Stretches of text that were encoded before -> their ids, int32."""
        return {}

    def __getstate__(self) -> dict[str, object]:
        built = ("_encoder", "_known", "_whole", "vocabulary")
        return {key: value for key, value in self.__dict__.items() if key not in built}

    def starts_word(self, tokens: Int32s, starts: Bools) -> Bools:
        """Where a word begins, as far as the tokens tell. The first token of a piece, and one behind a token that cannot be
        masked, begin a word in any case: who asks adds them.

        Args:
            tokens: int32 [R, S].
            starts: bool [R, S]; True in the first slot of every piece.

        Returns:
            bool [R, S].
        """
        assert self._word_rule is not None, "asked only if knows_words"
        return self._word_rule(tokens, starts)

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """Token ids of texts, without `cls` and `sep`.

        Text repeats itself: if the kind has stretches, most of them were seen before, and looking one up costs a tenth of
        encoding it.
        """
        parts = [self._parts(text) for text in texts]
        known = self._known if self._stretches else {}
        fresh = list(set().union(*parts).difference(known))
        for stretch, encoding in zip(fresh, self._encode(fresh), strict=True):
            known[stretch] = encoding
        lookup = known.__getitem__
        ids = [b"".join(map(lookup, part)) for part in parts]
        if len(known) > MOST_KNOWN:
            known.clear()
        else:
            for stretch in fresh:
                if len(stretch) > LONGEST_KNOWN_CHARS:
                    del known[stretch]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids)) // np.dtype(np.int32).itemsize
        return Tokenized(np.frombuffer(b"".join(ids), np.int32), lengths)

    def _encode(self, texts: Sequence[str]) -> Iterator[bytes]:
        """Token ids of each text as bytes of int32."""
        with faults_of(f"{self.source} cannot encode a text"):
            encodings = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        for encoding in encodings:
            ids = encoding.ids
            yield struct.pack(f"={len(ids)}i", *ids)

    def encode_with_offsets(self, text: str) -> tuple[Int32s, NDArray[np.int64]]:
        """The ids that `encode` gives for one text, and which characters of the text each stands for.

        Returns:
            int32 [tokens], and int64 [tokens, 2]: first character, and the one behind the last. The range may hold white space
            at its ends. Several tokens of one character have the same range.
        """
        with faults_of(f"{self.source} cannot encode a text"):
            encoding = self._encoder.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def _parts(self, text: str) -> list[str]:
        """The parts of a text that are encoded each for itself."""
        if self._stretches is None:
            return parts_of(text, self._cut_points)
        stretches = self._stretches(text)
        if len(text) <= MAX_ENCODE_CHARS:
            return stretches
        if self.tokenizing == 1:  # cut anywhere, also inside a word
            return [
                stretch[start : start + MAX_ENCODE_CHARS]
                for stretch in stretches
                for start in range(0, max(len(stretch), 1), MAX_ENCODE_CHARS)
            ]
        return [part for stretch in stretches for part in parts_of(stretch, self._cut_points)]

    def encode_with_masks(self, text: str) -> list[int]:
        """Token ids of a text between `cls` and `sep`. "[MASK]" and the tokenizer's own mask token become the mask. It takes the
        blanks beside it if the definition says so. All other text is read as in training."""
        tree = json.loads(self.definition)
        definition, mask = pipeline.masking_definition(tree, self.roles.spellings, self.roles.mask, self.mask_id)
        encoder = Encoder.from_str(definition)
        encoder.encode_special_tokens = True
        masked = re.sub(f"{re.escape(MASK)}|{re.escape(self.roles.mask)}", lambda found: mask, text)
        with faults_of(f"{self.source} cannot encode a text"):
            return [self.cls_id, *encoder.encode(masked, add_special_tokens=False).ids, self.sep_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self._whole.decode(list(ids), skip_special_tokens=False))

    def token(self, number: int) -> str:
        """The token of one id; empty for an id without one."""
        return str(self._whole.id_to_token(number) or "")

    def shown(self, number: int) -> str:
        """The token of one id as people read it."""
        return self._shown(self.token(number))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, and `special_tokens_map.json` beside it if the roles do not follow from the definition."""
        with naming(path):
            if self._roles_are_said:
                names = {f"{role}_token": token for role, token in self.roles.by_role().items()}
                path.with_name(SPECIALS).write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")
            path.write_text(json.dumps(json.loads(self.definition), ensure_ascii=False, indent=1), encoding="utf-8")


def parts_of(text: str, cut_points: re.Pattern[str] | None) -> list[str]:
    """A very long text in parts, each cut at the first point where that can be done; whole if there is none."""
    parts, start = [], 0
    while cut_points and len(text) - start > MAX_ENCODE_CHARS:
        found = cut_points.search(text, start + MAX_ENCODE_CHARS)
        if not found:
            break
        parts.append(text[start : found.start()])
        start = found.start()
    return [*parts, text[start:]]


@contextlib.contextmanager
def faults_of(what: str) -> Iterator[None]:
    """Name what failed. The library raises bare Exception, and if it panics not even that."""
    try:
        yield
    except (UserError, MemoryError):  # memory that this machine lacks is not the fault of a text
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {error}") from None


def _has_roles(tree: Tree, vocabulary: Mapping[str, int], roles: Roles) -> bool:
    """Whether a definition alone gives these roles."""
    try:
        return find_roles(tree, vocabulary, "", {}) == roles
    except UserError:
        return False
