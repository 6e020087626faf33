"""Fine-tune an encoder for a task, once for each seed.

    examples -> rows \
                      -> seed 0 -> model with a new head -> trained -> figures of the test sets
    encoder ---------/   seed 1 -> ...                                  -> mean and standard deviation

A seed draws the weights of the head, dropout and the order of the examples. Published figures differ by several points from
seed to seed on small tasks, so one seed shows little (Dodge et al. 2020, arXiv 2002.06305).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from maskloom.errors import UserError
from maskloom.tasks.heads import TOKENIZER_FILES, Encoder, with_head
from maskloom.tasks.labelled import Examples
from maskloom.tasks.rows import encode
from maskloom.tasks.target import Target

if TYPE_CHECKING:
    from maskloom.tasks.training import Settings


@dataclass(frozen=True)
class Data:
    """What a task is learned from, and judged by.

    Attributes:
        tests: test sets by name.
        dev: it chooses the epoch, if there is one.
    """

    target: Target
    train: Examples
    tests: Mapping[str, Examples]
    dev: Examples | None = None

    def parts(self) -> dict[str, Examples]:
        return {"train": self.train, **({"dev": self.dev} if self.dev else {}), **self.tests}

    def check(self) -> None:
        """Raises UserError if a part has examples of another shape than the training part."""
        for name, part in self.parts().items():
            if not len(part):
                raise UserError(f"{part.source}: no example is left for '{name}': it needs more of them")
            if part.kind != self.train.kind:
                raise UserError(
                    f"{part.source} has {part.kind} as labels, {self.train.source} has {self.train.kind}: say with --kind "
                    "what they are"
                )
            if (part.pairs is None) != (self.train.pairs is None):
                raise UserError(
                    f"{part.source} and {self.train.source}: one has pairs of texts, the other single texts: name the columns "
                    "with --text and --pair"
                )


@dataclass(frozen=True)
class Outcome:
    """What fine-tuning gave.

    Attributes:
        seeds: the figures of each seed. With several test sets, a name is `SET_METRIC`.
        cut: by part, how many examples were too long for the model.
        drawn: names of the weights that were drawn anew.
    """

    seeds: Mapping[int, dict[str, float]]
    cut: Mapping[str, int]
    drawn: Sequence[str]

    @property
    def means(self) -> dict[str, float]:
        return {name: fmean(each[name] for each in self.seeds.values()) for name in self._names}

    @property
    def deviations(self) -> dict[str, float]:
        """Standard deviations of the sample; none for one seed."""
        if len(self.seeds) < 2:
            return {}
        return {name: stdev(each[name] for each in self.seeds.values()) for name in self._names}

    @property
    def _names(self) -> list[str]:
        return list(next(iter(self.seeds.values())))


def finetune(
    encoder: Encoder,
    data: Data,
    settings: Settings,
    seeds: Sequence[int],
    work: Path,
    tell: Callable[[str], None],
    keep: Path | None = None,
    from_scratch: bool = False,
) -> Outcome:
    """Fine-tune once for each seed.

    Args:
        work: a folder of ours.
        tell: is called with lines of progress.
        keep: a folder, which gets the model of the first seed. No figure chooses it.
        from_scratch: all weights are drawn anew, so that nothing is pretrained.

    Raises:
        UserError: the data or the model cannot be used.
    """
    from maskloom.tasks.training import Dev, predict, train

    data.check()
    rows = {
        name: encode(encoder.tokenizer, part, data.target, settings.max_tokens) for name, part in data.parts().items()
    }
    cut = {name: part.cut for name, part in rows.items()}
    if any(cut.values()):
        total = sum(len(part.items) for part in rows.values())
        tell(f"{sum(cut.values()):,} of {total:,} examples are cut off at {settings.max_tokens} tokens")
    dev = None if data.dev is None else Dev(data.dev, rows["dev"], data.target)
    names = {name: f"{name}_{{}}" if len(data.tests) > 1 else "{}" for name in data.tests}
    figures: dict[int, dict[str, float]] = {}
    drawn: list[str] = []
    for seed in seeds:
        model, drawn = with_head(encoder, data.target, seed, from_scratch)
        scratch = work / f"trainer-{seed}"
        trainer = train(model, encoder.tokenizer, data.target, rows["train"], dev, settings, seed, scratch, tell)
        shutil.rmtree(scratch, ignore_errors=True)
        figures[seed] = {
            names[name].format(metric): value
            for name, part in data.tests.items()
            for metric, value in data.target.score(part, predict(trainer, data.target, rows[name])).items()
        }
        if keep is not None and seed == seeds[0]:
            _save(model, encoder, keep)
    return Outcome(figures, cut, drawn)


def _save(model: Any, encoder: Encoder, folder: Path) -> None:
    """Write a model and its tokenizer. The tokenizer's files are copied: others can then load what they could before."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    for pattern in TOKENIZER_FILES:
        for file in encoder.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)
