"""What `maskloom probe` does: vectors of the texts, a classifier over them, a table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskloom.commands.encoders import LoadedEncoder, load_encoder
from maskloom.commands.loading import device
from maskloom.data.packing import ADDED
from maskloom.errors import UserError
from maskloom.progress import show, show_json
from maskloom.tasks.encoding import Floats, mean_pooled
from maskloom.tasks.labelled import Examples, read_examples
from maskloom.tasks.probe import bag_of_words, check, features_of, fit
from maskloom.tasks.splits import TEST_SHARE, split_by_hash, split_to_test

SLOTS = 2048  # of a forward

Figures = list[dict[str, float]]
"""Of each seed."""


def probe(options: argparse.Namespace) -> int:
    """Probe, and print the figures. Returns the exit code."""
    if options.seq_len <= ADDED:
        raise UserError(
            f"--seq-len {options.seq_len}: a text has no room beside the first and the last token: raise it"
        )
    parts = _examples(options)
    seeds = range(options.seed, options.seed + options.seeds)
    sides = []
    for seed in seeds:
        train, test = parts if len(parts) == 2 else split_by_hash(parts[0], TEST_SHARE, seed)
        check(train, test)
        sides.append((train, test))
    rows = []
    for name, figures in _probed(options, parts, sides, seeds):
        rows.append({"model": name} | {key: [each[key] for each in figures] for key in ("accuracy", "macro_f1")})
        most_frequent = [each["most_frequent"] for each in figures]
    train, test = sides[0]
    found = {
        "data": options.data,
        "train_examples": len(train),
        "test_examples": len(test),
        "classes": len({str(label) for label in train.labels}),
        "seeds": list(seeds),
        "most_frequent": most_frequent,
        "models": rows,
    }
    if options.json:
        show_json(found)
    else:
        show("\n".join(_table(found)))
    return 0


def _examples(options: argparse.Namespace) -> list[Examples]:
    """Training and test examples, or one part that is to be split."""
    columns = {"text_column": options.text, "pair_column": options.pair, "label_column": options.label}
    if options.test is not None:
        return [read_examples(path, **columns, kind="classes") for path in (options.data, options.test)]
    if tested := split_to_test(options.data):
        return [read_examples(options.data, **columns, split=split, kind="classes") for split in ("train", tested)]
    return [read_examples(options.data, **columns, kind="classes")]


def _probed(
    options: argparse.Namespace, parts: Sequence[Examples], sides: Sequence[tuple[Examples, Examples]], seeds: range
) -> Iterator[tuple[str, Figures]]:
    """(name, figures of each seed) of every row of the table."""
    for source in options.models:
        encoder = load_encoder(source, options.step)
        vectors = _Vectors(encoder, encoder.model.to(device()), options.seq_len, parts)
        yield encoder.source, [vectors.probe(*side, seed) for side, seed in zip(sides, seeds, strict=True)]
        if options.random:
            figures = []
            for side, seed in zip(sides, seeds, strict=True):
                vectors = _Vectors(encoder, encoder.fresh(seed).to(device()), options.seq_len, parts)
                figures.append(vectors.probe(*side, seed))
            yield f"{source} with random weights", figures
    if options.baseline:
        yield "words (TF-IDF)", [bag_of_words(*side, seed) for side, seed in zip(sides, seeds, strict=True)]


class _Vectors:
    """The vectors of all texts by one model. Each text is computed once, however many seeds there are."""

    def __init__(self, encoder: LoadedEncoder, model: Any, seq_len: int, parts: Sequence[Examples]) -> None:
        texts = dict.fromkeys(text for part in parts for text in [*part.texts, *(part.pairs or ())])
        seq_len = min(seq_len, encoder.longest)
        self.places = {text: place for place, text in enumerate(texts)}
        self.vectors = mean_pooled(model, encoder.tokenizer, list(texts), seq_len, max(1, SLOTS // seq_len))
        if not np.isfinite(self.vectors).all():
            raise UserError(f"{encoder.source}: its vectors are not finite (NaN or infinite): it cannot be probed")

    def encode(self, texts: Sequence[str]) -> Floats:
        return self.vectors[[self.places[text] for text in texts]]

    def probe(self, train: Examples, test: Examples, seed: int) -> dict[str, float]:
        known, asked = features_of(self.encode, train), features_of(self.encode, test)
        return fit(known, train.labels, asked, test.labels, seed)


def _table(found: dict[str, Any]) -> list[str]:
    rows = [(row["model"], _shown(row["accuracy"]), _shown(row["macro_f1"])) for row in found["models"]]
    rows.append(("most frequent class", _shown(found["most_frequent"]), ""))
    width = max(len(name) for name, *_ in rows)
    seeds = f", mean and deviation over {len(found['seeds'])} seeds" if len(found["seeds"]) > 1 else ""
    return [
        f"{found['data']}: {found['train_examples']:,} examples to learn from, {found['test_examples']:,} tested, "
        f"{found['classes']} classes{seeds}",
        f"{'':{width}}  {'accuracy':<15} macro F1",
        *(f"{name:{width}}  {accuracy:<15} {macro}".rstrip() for name, accuracy, macro in rows),
    ]


def _shown(values: Sequence[float]) -> str:
    """`61.2 %`, or with several seeds `61.2 ± 0.3 %`."""
    mean = 100 * float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.1f} %"
    return f"{mean:.1f} ± {100 * float(np.std(values, ddof=1)):.1f} %"
