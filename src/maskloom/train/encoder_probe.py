"""The probe with an evaluation (`evaluation.probe`): how well labels are read off the encoder's vectors.

Every rank works out the vectors of all texts. So all make the same calls of the model, as ZeRO-3 needs, and nothing is sent. The
first rank fits, and tells the others. Nothing is drawn from torch's generator, and dropout is off: the training stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maskloom.config import Evaluation, Probe
from maskloom.distributed import World, gather_objects
from maskloom.errors import UserError
from maskloom.models.masked_lm import MaskedLM
from maskloom.progress import warn
from maskloom.tasks.encoding import Floats, mean_pooled
from maskloom.tasks.labelled import Examples, read_examples
from maskloom.tasks.probe import check, features_of, fit
from maskloom.tasks.splits import TEST_SHARE, at_most, split_by_hash
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.rank.heartbeats import Pulse

TEXTS_AT_ONCE = 256
"""Texts between two signs of life."""


class Labelled(NamedTuple):
    """Examples to learn from, and to test with."""

    train: Examples
    test: Examples

    @property
    def title(self) -> str:
        names, counts = np.unique(np.asarray(self.train.labels), return_counts=True)
        share = np.mean(np.asarray(self.test.labels) == names[counts.argmax()])
        return (
            f"{len(self.train):,} texts to learn {len(names)} labels from, {len(self.test):,} to test; always the most frequent "
            f"label is right in {share:.1%}"
        )


def read_labelled(settings: Probe | None, world: World) -> Labelled | None:
    """The examples of a run's probe; None if it has no probe. Every rank calls it.

    Raises:
        UserError: on all ranks, if one of them cannot read a file, has no scikit-learn, or the examples cannot be probed.
    """
    if settings is None:
        return None
    found, fault = None, ""
    try:
        found = _read(settings)
    except UserError as error:
        fault = f"evaluation.probe: {error}"
    if fault := next(filter(None, gather_objects(fault, world)), ""):
        raise UserError(fault)
    return found


def _read(settings: Probe) -> Labelled:
    columns = (settings.text, settings.pair, settings.label)
    train = read_examples(settings.data, *columns)
    if settings.test is None:
        train, test = split_by_hash(train, TEST_SHARE, seed=0)
    else:
        test = read_examples(settings.test, *columns)
    check(train, test)
    return Labelled(at_most(train, settings.most_examples), at_most(test, max(settings.most_examples // 4, 1)))


def probe_encoder(
    model: MaskedLM, tokenizer: Tokenizer, labelled: Labelled, settings: Evaluation, world: World, pulse: Pulse
) -> dict[str, float]:
    """Probe the encoder; every rank calls it, and all get the same figures.

    Returns:
        of the test examples `evaluation_probe_accuracy` and `evaluation_probe_macro_f1`.
    """
    seq_len = settings.seq_len
    assert seq_len is not None, "RunConfig.evaluation_filled fills it"

    def encode(texts: Sequence[str]) -> Floats:
        parts = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            pulse.tick("evaluate")
            part = texts[start : start + TEXTS_AT_ONCE]
            parts.append(mean_pooled(model, tokenizer, part, seq_len, settings.micro_batch_rows))
        return np.concatenate(parts)

    train, test = features_of(encode, labelled.train), features_of(encode, labelled.test)
    found: dict[str, float] = {}
    if world.is_first:
        try:
            found = fit(train, labelled.train.labels, test, labelled.test.labels, seed=0)
        except ValueError as error:
            warn(f"the probe says nothing here: {error}")  # of vectors that are not finite
    found = gather_objects(found, world)[0]
    pulse.tick("evaluate")
    return {f"evaluation_probe_{name}": found[name] for name in ("accuracy", "macro_f1") if name in found}
