"""The state of a training run on one rank: what a step reads and changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from maskloom.config import RunConfig
from maskloom.data.batch import Layout
from maskloom.data.cursors import Cursor, LaneCursors
from maskloom.data.hashing import make_key
from maskloom.data.plan import DataPlan
from maskloom.distributed import World, gather_objects
from maskloom.models.flops import Shape
from maskloom.train.batches import ReadyStep, ready_steps
from maskloom.train.checkpoint import Saver
from maskloom.train.encoder_probe import Labelled
from maskloom.train.engine.engine import Engine
from maskloom.train.held_out import HeldOut
from maskloom.train.rank.heartbeats import Pulse
from maskloom.train.rank.notices import Notices
from maskloom.train.refusal import GuardState, PassedOver, behind
from maskloom.train.sentences import Sentences
from maskloom.train.skipped import Skipped
from maskloom.train.tally import Tally
from maskloom.train.timing import OwnTime


@dataclass
class Trainer:
    """Every rank has one. `setup.set_up` makes it, `step.train_step` moves it on, `recovery.roll_back` moves it back.

    Attributes:
        config: of the run, with everything that was derived filled in.
        layouts: how the global batch of each phase falls into micro-batches.
        pulse: where this rank says what it is at.
        notices: what ranks tell each other with every step.
        saver: the checkpoint that is being written, and the newest good one.
        time: this rank's clock between logged lines; it meters DeepSpeed's traffic too.
        passed_over: intervals of the data that the run skipped after a roll-back.
        labelled: texts that evaluations probe the encoder with.
        sentences: texts with masks that evaluations fill.
        frozen: on the first rank, the weights that a run which begins will not train, until they are written down.

    `setup.restore` sets the others, from a checkpoint or for the beginning of the run:
        plan: which rows a step has.
        engine: model and optimizer.
        shape: of the model, to count FLOPs.
        step: optimizer steps done.
        cursors: where each lane stands; those of other ranks' lanes are known after `gather_cursors`.
        guard: the newest losses, from which it follows whether the next step is taken.
        held_out: the evaluations so far, from which it follows whether the run ends early.
        skipped: blocks of bad data that were skipped.
        tally: tokens seen, and sums since the last logged line.
    """

    config: RunConfig
    world: World
    device: torch.device
    layouts: list[Layout]
    pulse: Pulse
    notices: Notices
    saver: Saver
    time: OwnTime
    passed_over: list[PassedOver]
    plan: DataPlan
    labelled: Labelled | None = None
    sentences: Sentences | None = None
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)
    engine: Engine = field(init=False)
    shape: Shape = field(init=False)
    step: int = field(init=False)
    cursors: list[LaneCursors] = field(init=False)
    guard: GuardState = field(init=False)
    held_out: HeldOut = field(init=False)
    skipped: Skipped = field(init=False)
    tally: Tally = field(init=False)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.config.run_dir)

    def steps(self) -> Iterator[ReadyStep]:
        """This rank's rows, step by step, from where the run stands to its end; after a roll-back, from where it stands then."""
        data = self.config.data
        plan: DataPlan | None = None
        while plan is not self.plan:  # a roll-back makes another plan: its rows are read anew
            plan = self.plan
            reading = (plan, self.world, self.layouts, self.device, self.cursors, self.step)
            windows = self.shape.distinct_windows
            reader = ready_steps(*reading, workers=data.workers, prefetch_steps=data.prefetch_steps, windows=windows)
            with contextlib.closing(reader):
                for batch in reader:
                    yield batch
                    if plan is not self.plan:
                        break

    def set_model(self, step: int) -> None:
        """Give the fields that phases change their values in a step.

        Args:
            step: number of the step, from 1; 0 is before the first.
        """
        model = self.engine.model
        model.architecture.set_fields(model.config, self.config.model_at(step))

    def seed_dropout(self, step: int, micro_batch: int) -> None:
        """Dropout is a function of (seed, step, micro-batch, rank): a checkpoint holds no state of a generator."""
        torch.manual_seed(make_key(self.config.seed, "dropout", step, micro_batch, self.world.rank) >> 1)

    @property
    def bad_steps(self) -> int:
        """Steps refused so far, with those that a roll-back did away with."""
        return self.guard.bad_steps + sum(interval.bad_steps for interval in behind(self.passed_over, self.step))

    @property
    def ends_early(self) -> bool:
        """Whether the run is to end here, before its last step, as its held-out loss falls no more."""
        return self.step < self.plan.total_steps and self.held_out.is_exhausted(self.config.evaluation)

    def tokens_seen(self) -> int:
        """Text tokens of all steps and ranks so far; reads the device."""
        return self.tally.tokens_seen()

    def my_cursors(self) -> dict[int, LaneCursors]:
        """Where the lanes of this rank stand."""
        return {lane: self.cursors[lane] for lane in self.world.share(self.plan.lanes)}

    def gather_cursors(self) -> None:
        """Learn where the lanes of the other ranks stand; every rank calls it."""
        mine = [[lane, [cursor.to_json() for cursor in cursors]] for lane, cursors in sorted(self.my_cursors().items())]
        for part in gather_objects(mine, self.world):
            for lane, cursors in part:
                self.cursors[lane] = tuple(map(Cursor.from_json, cursors))
