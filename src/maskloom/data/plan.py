"""The plan of a run's data: one value from which all of it follows, and which goes to every reader process."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from maskloom.config import Data, Masking, Phase
from maskloom.config_file import QUERY_LEFT_OUT
from maskloom.config_tokens import rows_of_growth
from maskloom.data.cursors import LaneCursors
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.masking import MaskRule, rate_at
from maskloom.data.order import default_lanes
from maskloom.errors import UserError
from maskloom.redaction import shown
from maskloom.tokenizers.base import TOKENIZING, Tokenizer
from maskloom.world import World

VERSIONS = {"order": 2, "packing": 2, "masking": 2, "mixing": 1, "tokenizing": TOKENIZING}
"""Raise a version when its part gives another result for the same input. A run that began with an older version is then refused
with the reason. A tokenizer that can still give an older version's ids does so for such a run (`Tokenizer.as_of`). Golden
digests in the tests fail if a result changes without its version."""


def open_corpora(data: Data) -> tuple[Index, ...]:
    """Open and verify the index of each corpus.

    Raises:
        UserError: as `load_index`, but missing shards are accepted if bad data is skipped. Also if two corpora hold the same
            text, or if the query of a URL was left out when the configuration was saved.
    """
    for corpus in data.corpora:
        if corpus.path.endswith(QUERY_LEFT_OUT):
            raise UserError(
                f"data.train {shown(corpus.path)}: the query of this URL was not saved with the run, since it can be a secret: "
                "give the whole URL again (data.train=URL)"
            )
    finds_shards = data.on_bad_data == "raise"
    corpora = tuple(load_index(corpus.path, data.storage, finds_shards) for corpus in data.corpora)
    for number, index in enumerate(corpora):
        same = [other for other in corpora[:number] if other.digest == index.digest]
        if same:
            raise UserError(
                f"data.train: {shown(same[0].folder)} and {shown(index.folder)} are the same corpus (digest "
                f"{index.digest[:16]}), so its rows would come twice: name it once, with the sum of the weights"
            )
    return corpora


class Growth(NamedTuple):
    """How a phase's batch grows, linearly with the step.

    Attributes:
        first_rows: rows a lane gives in the phase's first step.
        steps: steps until a lane gives `PhasePlan.lane_rows`.
    """

    first_rows: int
    steps: int


@dataclass(frozen=True)
class PhasePlan:
    """A phase: consecutive steps that are read in the same way.

    Attributes:
        steps: optimizer steps.
        seq_len: S, slots a row.
        lane_rows: rows that a lane gives a step, once the batch has grown.
        weights: of the corpora.
        mask_rate: share of the tokens to predict. None: as `config.Masking` says for the step.
        growth: how the batch grows. None: it is whole from the first step.
    """

    steps: int
    seq_len: int
    lane_rows: int
    weights: tuple[float, ...] = (1.0,)
    mask_rate: float | None = None
    growth: Growth | None = None

    def rows_at(self, done: int) -> int:
        """Rows that a lane gives in the step that follows the first `done` steps of the phase."""
        if self.growth is None or done >= self.growth.steps:
            return self.lane_rows
        first, steps = self.growth
        return first + done * (self.lane_rows - first) // steps

    def rows_before(self, done: int) -> int:
        """Rows that a lane gives in the first `done` steps of the phase."""
        if self.growth is None:
            return done * self.lane_rows
        first, steps = self.growth
        grown = min(done, steps)
        return rows_of_growth(first, self.lane_rows, steps, grown) + (done - grown) * self.lane_rows


class StepPlan(NamedTuple):
    """How one step is read.

    Attributes:
        phase: its phase.
        done: steps of that phase before it.
        rule: its masks.
        is_constant: the rule holds for the whole phase, so it pays to mask a block at once.
    """

    phase: PhasePlan
    done: int
    rule: MaskRule
    is_constant: bool

    @property
    def rows(self) -> int:
        """Rows that a lane gives in this step."""
        return self.phase.rows_at(self.done)


@dataclass(frozen=True)
class DataPlan:
    """Everything that the data of a run follows from. Picklable: the reader processes get it.

    Attributes:
        skips_bad: skip data that is not what was indexed, instead of raising.
        jumps: step (0-based) -> the cursors to jump to before it. The data in between is skipped (`maskloom.train.refusal`).
    """

    corpora: tuple[Index, ...]
    tokenizer: Tokenizer
    seed: int
    lanes: int
    phases: tuple[PhasePlan, ...]
    masking: Masking
    rule: MaskRule
    skips_bad: bool = False
    jumps: Mapping[int, Sequence[LaneCursors]] = field(default_factory=dict)

    @staticmethod
    def of(
        data: Data,
        phases: Sequence[Phase],
        masking: Masking,
        seed: int,
        corpora: tuple[Index, ...],
        tokenizer: Tokenizer,
        tokenizing: int | None = None,
    ) -> DataPlan:
        """The plan of a run.

        Args:
            tokenizing: version with which the run has read text so far. None: it begins here. Then it takes the version of
                its token shards, if that is older and the tokenizer can still give its ids, or else the newest.

        Raises:
            UserError: token shards of another tokenizer or version of tokenizing, a version that the tokenizer cannot give, or
                a masking rule that does not fit the tokenizer.
        """
        if tokenizing is None:
            # Older token shards stay usable, as long as the tokenizer still gives their ids.
            is_old = tokenizer.oldest_version == 1 and any(index.tokenizing == 1 for index in corpora)
            tokenizing = 1 if is_old else tokenizer.tokenizing
        tokenizer = tokenizer.as_of(tokenizing)
        for index in corpora:
            index.check_tokenizer(tokenizer)
        # Every batch that occurs must split evenly over the lanes.
        batches = [phase.global_batch_rows for phase in phases]
        batches += [phase.batch_warmup.from_rows for phase in phases if phase.batch_warmup]
        lanes = data.lanes or default_lanes(batches, max(len(index.train_blocks) for index in corpora))
        weights = tuple(corpus.weight for corpus in data.corpora)
        plans = tuple(
            PhasePlan(
                phase.steps,
                phase.seq_len,
                phase.global_batch_rows // lanes,
                phase.weights or weights,
                phase.mask_rate,
                Growth(phase.batch_warmup.from_rows // lanes, phase.batch_warmup.steps) if phase.batch_warmup else None,
            )
            for phase in phases
        )
        rule = MaskRule.of(masking, tokenizer)
        skips_bad = data.on_bad_data == "skip"
        return DataPlan(corpora, tokenizer, seed, lanes, plans, masking, rule, skips_bad)

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_of(self, step: int) -> int:
        """Number of the phase of a step (0-based)."""
        return self.place(step)[0]

    def place(self, step: int) -> tuple[int, int]:
        """(phase, steps of it done before) of a step (0-based)."""
        return place_in(self.phases, step)

    def lane_rows(self, step: int) -> int:
        """Rows that each lane gives in a step (0-based)."""
        phase, done = self.place(step)
        return self.phases[phase].rows_at(done)

    def rule_at(self, step: int) -> MaskRule:
        """The masks of a step."""
        return self.step_at(step).rule

    def step_at(self, step: int) -> StepPlan:
        """How a step is read."""
        number, done = self.place(step)
        phase = self.phases[number]
        is_constant = phase.mask_rate is not None or self.masking.final_rate is None
        rate = rate_at(self.masking, phase.mask_rate, step, self.total_steps)
        return StepPlan(phase, done, _at_rate(self.rule, rate), is_constant)

    def capacity(self, phase: int) -> int:
        """The most tokens to predict in a row, in any step of a phase. The shape of the head follows from it."""
        first = sum(before.steps for before in self.phases[:phase])
        ends = (
            first,
            first + self.phases[phase].steps - 1,
        )  # the rate is linear in the step, so one end has the largest
        return max(self.rule_at(step).most(self.phases[phase].seq_len) for step in ends)

    def check_world(self, world: World) -> None:
        """Raises UserError if there are more ranks than lanes."""
        if world.size > self.lanes:
            raise UserError(
                f"{world.size} ranks are more than the {self.lanes} lanes of this run, and each rank reads at least one lane. "
                f"Use at most {self.lanes} ranks, or set data.lanes (a divisor of every global_batch_rows) for a new run"
            )


def place_in(phases: Sequence[PhasePlan], step: int) -> tuple[int, int]:
    """(phase, steps of it done before) of a step (0-based)."""
    for number, phase in enumerate(phases):
        if step < phase.steps:
            return number, step
        step -= phase.steps
    raise IndexError(f"step {step} lies beyond the last phase")


@functools.lru_cache(maxsize=8)
def _at_rate(rule: MaskRule, rate: float) -> MaskRule:
    """The rule with another rate. The same rate gives the same object, so that rules can be compared by identity."""
    return rule.at_rate(rate)
