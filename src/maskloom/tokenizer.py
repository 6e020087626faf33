"""WordPiece tokenizers: train, load, encode, fingerprint.

A tokenizer is Hugging Face's `tokenizer.json`. Text is encoded with `encode_special_tokens=True`, so that a literal
"[MASK]" in a document stays text and never becomes the special token.
"""

from __future__ import annotations

import functools
import hashlib
import json
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

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MOST_KNOWN = 1 << 18  # stretches of text whose ids are kept: about 60 MiB a process
LONGEST_KNOWN_CHARS = 64
MAX_ENCODE_CHARS = 1 << 16  # longer texts are encoded in parts: the encoder's memory grows with the longest text


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
    """A WordPiece tokenizer and the ids that packing and masking need.

    Picklable: a reader process gets the JSON and builds its own encoder.

    Attributes:
        vocab_size: number of ids.
        pad_id, cls_id, sep_id, mask_id, unk_id: ids of the five special tokens.
        is_maskable: bool [vocab_size]; False for special tokens and for `[unused*]`, which are never masked.
        is_continuation: bool [vocab_size]; True for tokens that go on with the word before them (`##...`).
        random_ids: int32 [n]; the ids that may replace a masked token.
        fingerprint: sha256 of what determines the encoding.
    """

    def __init__(self, definition: str, source: str) -> None:
        self.source = source
        tree = json.loads(definition)
        tree["truncation"] = tree["padding"] = None  # many published files truncate to 128 tokens: that would lose text
        self.definition = json.dumps(tree, sort_keys=True, ensure_ascii=False)
        self.fingerprint = hashlib.sha256(self.definition.encode()).hexdigest()
        vocabulary = self._encoder.get_vocab(with_added_tokens=True)
        absent = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if absent:
            raise UserError(f"{source} has no {', '.join(absent)}: a BERT tokenizer needs {', '.join(SPECIAL_TOKENS)}")
        self.vocab_size = max(vocabulary.values()) + 1
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (vocabulary[t] for t in SPECIAL_TOKENS)
        self.is_maskable = np.zeros(self.vocab_size, dtype=bool)
        self.is_continuation = np.zeros(self.vocab_size, dtype=bool)
        for token, number in vocabulary.items():
            self.is_maskable[number] = not token.startswith("[unused")
            self.is_continuation[number] = token.startswith("##")
        special = [number for number, token in self._encoder.get_added_tokens_decoder().items() if token.special]
        self.is_maskable[[*special, *(vocabulary[token] for token in SPECIAL_TOKENS)]] = False
        self.random_ids: NDArray[np.int32] = np.flatnonzero(self.is_maskable).astype(np.int32)

    @functools.cached_property
    def _encoder(self) -> HFTokenizer:
        encoder = HFTokenizer.from_str(self.definition)
        encoder.encode_special_tokens = True
        return encoder

    @functools.cached_property
    def _known(self) -> dict[str, bytes]:
        """Stretches of text between white space that were encoded before -> their ids, int32."""
        return {}

    @functools.cached_property
    def _is_local(self) -> bool:
        """Whether the ids of a text are those of its stretches between white space, one after the other.

        So it is for BERT's normaliser and pre-tokeniser, which look at characters and words and never across white space,
        unless a token was added that can hold white space or take some from its sides.
        """
        tree = json.loads(self.definition)
        types = [(tree.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        added = [token for token in tree.get("added_tokens") or [] if not token.get("special")]
        return types == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not added

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_encoder", "_known")}

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """Token ids of texts, without [CLS] and [SEP].

        Text repeats itself: most stretches between white space were seen before, and looking one up costs a tenth of
        encoding it.
        """
        parts = [_stretches(text) if self._is_local else _parts(text) for text in texts]
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
        for encoding in self._encoder.encode_batch_fast(texts, add_special_tokens=False):
            ids = encoding.ids
            yield struct.pack(f"={len(ids)}i", *ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self._encoder.decode(list(ids), skip_special_tokens=False))

    def token(self, number: int) -> str:
        """The token of one id."""
        return str(self._encoder.id_to_token(number))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        path.write_text(json.dumps(json.loads(self.definition), ensure_ascii=False, indent=1), encoding="utf-8")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load `tokenizer.json` (or the folder that holds it). Raises UserError where there is none or it is unusable."""
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    try:
        definition = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no tokenizer at {file}: train one with `maskloom tokenizer CORPUS {path}` or name a folder that holds "
            "tokenizer.json"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None
    try:
        return Tokenizer(definition, str(file))
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None


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


def _parts(text: str) -> list[str]:
    """Cut a very long text at white space; WordPiece treats the parts as it treats the whole."""
    if len(text) <= MAX_ENCODE_CHARS:
        return [text]
    parts, start = [], 0
    while len(text) - start > MAX_ENCODE_CHARS:
        cut = max(text.rfind(space, start, start + MAX_ENCODE_CHARS) for space in (" ", "\n"))
        cut = cut if cut > start else start + MAX_ENCODE_CHARS
        parts.append(text[start:cut])
        start = cut
    return [*parts, text[start:]]


def _stretches(text: str) -> list[str]:
    """The text cut at blanks, line ends and tabs, none of which is left; a stretch too long to encode at once is cut."""
    stretches = text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")
    if len(text) <= MAX_ENCODE_CHARS:
        return stretches
    return [part for stretch in stretches for part in _parts(stretch)]
