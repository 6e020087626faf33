"""Tokenizers: train, load, encode, fingerprint.

A tokenizer is Hugging Face's `tokenizer.json`. A literal "[MASK]" in a document stays text and never becomes the special
token, and neither do the other four roles; tokens that a user added stay one token each (`pipeline`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.processors import TemplateProcessing

from maskloom.errors import UserError
from maskloom.files import naming
from maskloom.tokenizers import pipeline
from maskloom.tokenizers.files import find_tokenizer, read_definition
from maskloom.tokenizers.pipeline import SPECIAL_TOKENS as SPECIAL_TOKENS
from maskloom.tokenizers.pipeline import WORD_PREFIX

TOKENIZING = 2
"""Version of how text becomes ids: it is raised whenever a tokenizer gives other ids for a text. In version 1, tokens that
users had added were split, and a stretch of text without a blank was cut after every `MAX_ENCODE_CHARS` characters."""
MOST_KNOWN = 1 << 18  # stretches of text whose ids are kept: about 60 MiB a process
LONGEST_KNOWN_CHARS = 64
MAX_ENCODE_CHARS = 1 << 16  # longer texts are encoded in parts: the encoder's memory grows with the longest text
MOST_IDS_A_TOKEN, FEW_IDS = 4, 1 << 16
"""A vocabulary with more ids than so many for each token, and more than few, is refused: a model has a row for each."""


@dataclass(frozen=True)
class Tokenized(Sequence[NDArray[np.int32]]):
    """Token ids of documents, without special tokens: a sequence of int32 arrays that lie one after the other.

    Attributes:
        ids: int32 [tokens].
        lengths: int64 [documents].
    """

    ids: NDArray[np.int32]
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
    def of(documents: Sequence[NDArray[np.int32]]) -> Tokenized:
        ids = np.concatenate(documents) if documents else np.empty(0, np.int32)
        return Tokenized(ids, np.fromiter(map(len, documents), np.int64, len(documents)))

    def select(self, chosen: NDArray[np.bool_]) -> Tokenized:
        """The documents where `chosen`, bool [documents], is True."""
        if chosen.all():
            return self
        return Tokenized(self.ids[np.repeat(chosen, self.lengths)], self.lengths[chosen])


class Tokenizer:
    """A tokenizer and the ids that packing and masking need.

    Picklable: a reader process gets the JSON and builds its own encoder.

    Attributes:
        source: where it is from, for messages.
        definition: its `tokenizer.json`.
        fingerprint: sha256 of the definition.
        tokenizing: version of tokenizing, as `TOKENIZING`.
        vocab_size: number of ids.
        pad_id, cls_id, sep_id, mask_id, unk_id: ids of the five special tokens.
        is_maskable: bool [vocab_size]; False for special tokens and for `[unused*]`, which are never masked.
        marks_words: whether a token says by itself that it goes on with the word before it.
        is_continuation: bool [vocab_size]; True for tokens that do (`##...`).
        random_ids: int32 [n]; the ids that may replace a masked token.
    """

    def __init__(self, definition: str, source: str) -> None:
        self.source = source
        tree = pipeline.parse_definition(definition)
        self.definition = json.dumps(tree, sort_keys=True, ensure_ascii=False)
        self.fingerprint = hashlib.sha256(self.definition.encode()).hexdigest()
        self.tokenizing = TOKENIZING
        vocabulary = self.vocabulary
        absent = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if absent:
            raise UserError(f"{source} has no {', '.join(absent)}: a BERT tokenizer needs {', '.join(SPECIAL_TOKENS)}")
        if (unknown := pipeline.unknown_of(tree)) in SPECIAL_TOKENS and unknown != "[UNK]":
            raise UserError(f"{source} has {unknown} for what its vocabulary does not hold: that has to be [UNK]")
        self.vocab_size = max(vocabulary.values()) + 1
        self._check_ids(tree)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (vocabulary[t] for t in SPECIAL_TOKENS)
        self.marks_words = pipeline.marks_words(tree)
        self.is_maskable = np.zeros(self.vocab_size, dtype=bool)
        self.is_continuation = np.zeros(self.vocab_size, dtype=bool)
        for token, number in vocabulary.items():
            self.is_maskable[number] = not token.startswith("[unused")
            self.is_continuation[number] = token.startswith(WORD_PREFIX)
        special = [number for number, token in self._whole.get_added_tokens_decoder().items() if token.special]
        self.is_maskable[[*special, *(vocabulary[token] for token in SPECIAL_TOKENS)]] = False
        self.random_ids: NDArray[np.int32] = np.flatnonzero(self.is_maskable).astype(np.int32)
        self.is_plain, self._is_local = pipeline.is_plain(tree), pipeline.is_local(tree)
        self._cut_points = pipeline.cut_points(tree)
        assert self._encoder, "built here, so that a file is refused where it is loaded"

    def _check_ids(self, tree: pipeline.Tree) -> None:
        """Raises UserError for ids that two tokens share, for an added token's that is not the one that the library gives it,
        and for so many without a token that it must be a mistake."""
        tokens: dict[int, str] = {}
        for token in tree.get("added_tokens") or []:
            if token["id"] != self.vocabulary[token["content"]]:
                raise UserError(
                    f"{self.source} gives {token['content']!r} id {token['id']}, and it would be read as "
                    f"{self.vocabulary[token['content']]}: added tokens need the ids behind the vocabulary, in their order"
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
        if tokenizing == 1 and self.is_plain:
            older = copy.copy(self)
            older.tokenizing = tokenizing
            return older
        raise UserError(
            f"version {tokenizing} of tokenizing gave other ids for {self.source} than this maskloom does, which has version "
            f"{TOKENIZING} (a literal [MASK], or tokens that were added, in a text): go on with the maskloom that began the run, "
            "or begin a new one"
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
    def _whole(self) -> HFTokenizer:
        """What the file describes: for names and decoding."""
        return HFTokenizer.from_str(self.definition)

    @functools.cached_property
    def _encoder(self) -> HFTokenizer:
        encoder = HFTokenizer.from_str(pipeline.encoder_definition(json.loads(self.definition)))
        encoder.encode_special_tokens = True
        return encoder

    @functools.cached_property
    def _known(self) -> dict[str, bytes]:
        """Stretches of text between white space that were encoded before -> their ids, int32."""
        return {}

    def __getstate__(self) -> dict[str, object]:
        built = ("_encoder", "_known", "_whole", "vocabulary")
        return {key: value for key, value in self.__dict__.items() if key not in built}

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """Token ids of texts, without [CLS] and [SEP].

        Text repeats itself: most stretches between white space were seen before, and looking one up costs a tenth of
        encoding it.
        """
        parts = [self._stretches(text) if self._is_local else parts_of(text, self._cut_points) for text in texts]
        known = self._known if self._is_local else {}
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
        with _faults_of(f"{self.source} cannot encode a text"):
            encodings = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        for encoding in encodings:
            ids = encoding.ids
            yield struct.pack(f"={len(ids)}i", *ids)

    def _stretches(self, text: str) -> list[str]:
        """The text cut at blanks, line ends and tabs, none of which is left; a stretch too long to encode at once is cut."""
        stretches = text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")
        if len(text) <= MAX_ENCODE_CHARS:
            return stretches
        if self.tokenizing == 1:
            return [
                stretch[start : start + MAX_ENCODE_CHARS]
                for stretch in stretches
                for start in range(0, max(len(stretch), 1), MAX_ENCODE_CHARS)
            ]
        return [part for stretch in stretches for part in parts_of(stretch, self._cut_points)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self._whole.decode(list(ids), skip_special_tokens=False))

    def token(self, number: int) -> str:
        """The token of one id; empty for an id without one."""
        return str(self._whole.id_to_token(number) or "")

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        with naming(path):
            path.write_text(json.dumps(json.loads(self.definition), ensure_ascii=False, indent=1), encoding="utf-8")


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load a tokenizer: its `tokenizer.json` or BERT's `vocab.txt`, the folder that holds one, or a name on the Hub.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    file = find_tokenizer(source)
    definition = read_definition(file)
    with _faults_of(f"{file} is not a tokenizer.json" if file.suffix != ".txt" else f"{file} is not a vocab.txt"):
        return Tokenizer(definition, str(file))


@contextlib.contextmanager
def _faults_of(what: str) -> Iterator[None]:
    """Name what failed. The library raises bare Exception, and where it panics not even that."""
    try:
        yield
    except (UserError, MemoryError):  # memory that this machine lacks is no fault of a text
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {error}") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """Train a WordPiece vocabulary (Schuster & Nakajima, 2012) with BERT's normalisation and pre-tokenisation.

    Two trainings on one text can give two vocabularies: the library breaks ties by the order of a randomised hash map
    (huggingface/tokenizers#1794). What a run depends on is therefore the file, known by its fingerprint.

    Args:
        texts: the documents.
        vocab_size: largest number of ids, the five special tokens included.
        lowercase: lower-case and strip accents, as bert-base-uncased does.
    """
    trainer = BertWordPieceTokenizer(lowercase=lowercase)
    trainer.train_from_iterator(
        iter(texts), vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    trainer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, trainer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return Tokenizer(trainer.to_str(), "the trained tokenizer")


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
