"""What tokenising costs: maskloom's, and that of `encode_batch_fast` of the tokenizers library, for each kind of tokenizer.

    python benchmarks/tokenizing.py [--out benchmarks/results/tokenizing.json]

The text is the documentation of the Python packages installed beside this one (docstrings, read as `documentation:`). Each
kind is trained on it with 12,000 ids. Byte-level BPE comes in two more forms: with NFC and added runs of blanks as in
ModernBERT, and with Llama 3's pattern. The ids of both sides are equal, which is checked first.

maskloom looks up stretches of text that it has met before. So it reads the first half of the text before a round, and the
second half is measured. Batches have 64 documents.

Time is CPU time of this process (`process_time`) on one thread: the median over rounds, in which the two sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from machine import stamp
from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.pretokens import LLAMA3

CHARS = 6_000_000
VOCAB_SIZE = 12_000
DOCUMENTS = 64  # a batch
ROUNDS = 5


def read_text(most: int) -> list[str]:
    """Documents of at least so many characters together, if there are as many."""
    texts: list[str] = []
    chars = 0
    for source in find_sources(["documentation:"]):
        for _, text in read_source(source, "text", "file"):
            texts.append(text)
            chars += len(text)
            if chars >= most:
                return texts
    return texts


def definitions(texts: Sequence[str]) -> dict[str, str]:
    """Name -> definition of every kind that can be trained, and of the other forms of byte-level BPE."""
    found = {name: kind.train(texts, VOCAB_SIZE, None) for name, kind in TOKENIZERS.items() if kind.train}
    tree = json.loads(found["byte-bpe"])
    composed = Encoder.from_str(json.dumps(tree | {"normalizer": {"type": "NFC"}}))
    composed.add_tokens([AddedToken(" " * size, normalized=True) for size in range(24, 1, -1)])
    steps = [
        {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
        tree["pre_tokenizer"] | {"use_regex": False},
    ]
    llama = tree | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    return found | {"byte-bpe, as ModernBERT's": composed.to_str(), "byte-bpe, as Llama 3's": json.dumps(llama)}


def batches(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + DOCUMENTS] for start in range(0, len(texts), DOCUMENTS)]


def nanoseconds(call: Callable[[Sequence[str]], object], texts: Sequence[str]) -> int:
    began = time.process_time_ns()
    for batch in batches(texts):
        call(batch)
    return time.process_time_ns() - began


def measure(name: str, tokenizer: Tokenizer, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """CPU nanoseconds a token of the second half of the texts, of both sides."""
    encoder, half = tokenizer._encoder, len(texts) // 2

    def plain(batch: Sequence[str]) -> list[Any]:
        return encoder.encode_batch_fast(list(batch), add_special_tokens=False)

    tokens = 0
    for batch in batches(texts):
        for ours, theirs in zip(tokenizer.encode(batch), plain(batch), strict=True):
            assert ours.tolist() == theirs.ids, f"{name} gives other ids than the library"
    for batch in batches(texts[half:]):
        tokens += len(tokenizer.encode(batch).ids)
    mine, library = [], []
    for _ in range(rounds):
        tokenizer._known.clear()
        for batch in batches(texts[:half]):
            tokenizer.encode(batch)
        library.append(nanoseconds(plain, texts[half:]) / tokens)
        mine.append(nanoseconds(tokenizer.encode, texts[half:]) / tokens)
    return {
        "kind": name,
        "tokens": tokens,
        "maskloom_ns_a_token": round(statistics.median(mine), 1),
        "encode_batch_fast_ns_a_token": round(statistics.median(library), 1),
        "times_as_fast": round(statistics.median(theirs / ours for theirs, ours in zip(library, mine, strict=True)), 2),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a markdown table."""
    lines = ["| kind | maskloom | encode_batch_fast | times as fast |", "|---|---|---|---|"]
    lines += [
        f"| {row['kind']} | {row['maskloom_ns_a_token']:.0f} ns | {row['encode_batch_fast_ns_a_token']:.0f} ns "
        f"| {row['times_as_fast']:.1f} |"
        for row in results
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure tokenising beside the tokenizers library.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokenizing.json")
    parser.add_argument("--chars", type=int, default=CHARS, help="of text, at least")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    texts = read_text(options.chars)
    results = [
        measure(name, tokenizer_of_definition(definition, name), texts, options.rounds)
        for name, definition in definitions(texts).items()
    ]
    command = f"python benchmarks/tokenizing.py --chars {options.chars} --rounds {options.rounds}"
    report = stamp(command, "cpu", ["maskloom", "tokenizers", "numpy"]) | {
        "characters": sum(map(len, texts)),
        "rounds": options.rounds,
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
