"""Turn lengths in tokens into lengths in steps, while a configuration is read.

`phases.0.tokens: 50B` counts token slots: rows of the global batch times slots a row, padding included. It becomes the fewest
steps that have so many. So do `batch_warmup.tokens`, `warmup_tokens` (from the first step of the schedule on) and
`decay_tokens` (from its last step back).

All of it is settled before the first step, and from the configuration alone. So the rows of a run stay a pure function of corpus,
seed and step. A run's `config.yaml` has steps only, and the rest of the program knows of steps only.

A growing batch is a multiple of `data.lanes` in every step. So what it counts follows from `data.lanes` too.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from maskloom.config_sections import Phase
from maskloom.config_values import MOST_STEPS

Phases = tuple[Phase, ...]


class Scheduled(Protocol):
    """The section `optimizer`, as far as it is needed here."""

    @property
    def warmup_tokens(self) -> int | None: ...

    @property
    def decay_tokens(self) -> int | None: ...

    @property
    def schedule(self) -> str: ...

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self: ...


S = TypeVar("S", bound=Scheduled)


def in_steps(phases: Phases, optimizer: S, lanes: int | None) -> tuple[Phases, S, list[str]]:
    """Replace every length in tokens by one in steps.

    Args:
        optimizer: the section `optimizer`.
        lanes: `data.lanes`.

    Returns:
        the phases and the section with steps only, and what is wrong with the tokens. If something is, the rest is not settled.
    """
    if not _has_tokens(phases, optimizer):
        return phases, optimizer, []
    if wrong := lane_faults(phases, lanes, is_needed=True):
        return phases, optimizer, wrong
    lanes = lanes or 1  # then no batch grows
    settled = []
    for number, phase in enumerate(phases):
        phase, faults = _phase_in_steps(phase, f"phases.{number}", lanes)
        settled.append(phase)
        wrong += faults
    if wrong:
        return phases, optimizer, wrong
    return _schedules_in_steps(tuple(settled), optimizer, lanes)


def lane_faults(phases: Sequence[Phase], lanes: int | None, is_needed: bool = False) -> list[str]:
    """Which batches cannot be spread evenly over the lanes.

    Args:
        is_needed: it is a fault too if a batch grows and `data.lanes` is left out.
    """
    wrong = []
    for number, phase in enumerate(phases):
        batches = {f"phases.{number}.global_batch_rows": phase.global_batch_rows}
        if growth := phase.batch_warmup:
            batches = {f"phases.{number}.batch_warmup.from_rows": growth.from_rows, **batches}
            if is_needed and not lanes:
                wrong.append(
                    f"phases.{number}.batch_warmup: the batch grows in multiples of data.lanes, so a count of tokens needs "
                    "data.lanes too: set it to a divisor of every from_rows and global_batch_rows"
                )
        wrong += [
            f"{key} {rows} is not a multiple of data.lanes {lanes}: each lane gives the same number of rows a step; change one "
            "of them"
            for key, rows in batches.items()
            if lanes and rows % lanes
        ]
    return wrong


def slots_before(phases: Sequence[Phase], lanes: int, done: int) -> int:
    """Token slots of the first `done` steps of these phases."""
    slots = 0
    for phase in phases:
        slots += _slots_of_phase(phase, lanes, min(done, phase.steps))
        done -= min(done, phase.steps)
    return slots


def rows_of_growth(first: int, last: int, steps: int, done: int) -> int:
    """Rows of the first `done` steps of a batch that grows from `first` to `last` rows in `steps` steps.

    Step number i, from 0, has first + floor(i * (last - first) / steps) rows.

    Args:
        done: at most `steps`.
    """
    return first * done + _sum_of_floors(done, steps, last - first)


def _sum_of_floors(count: int, divisor: int, factor: int) -> int:
    """The sum of floor(i * factor / divisor) over i from 0 to count - 1, in as few turns as Euclid's algorithm.

    It counts the points of a lattice below a line: whole columns first, then the rest with the axes exchanged.
    """
    total, offset = 0, 0
    while True:
        total += factor // divisor * (count * (count - 1) // 2) + offset // divisor * count
        factor, offset = factor % divisor, offset % divisor
        height = factor * count + offset
        if height < divisor:
            return total
        count, offset, divisor, factor = height // divisor, height % divisor, factor, divisor


def _has_tokens(phases: Phases, optimizer: Scheduled) -> bool:
    """Whether any length is in tokens."""
    given = [optimizer.warmup_tokens, optimizer.decay_tokens]
    for phase in phases:
        growth, again = phase.batch_warmup, phase.rewarm_up
        given += [phase.tokens, growth.tokens if growth else None, again.warmup_tokens if again else None]
        given.append(again.decay_tokens if again else None)
    return any(tokens is not None for tokens in given)


def _slots_of_phase(phase: Phase, lanes: int, done: int) -> int:
    """Token slots of the first `done` steps of a phase, which may be more than it has."""
    rows, growth = phase.global_batch_rows, phase.batch_warmup
    grown = min(done, growth.steps) if growth else 0
    rows_grown = rows_of_growth(growth.from_rows // lanes, rows // lanes, growth.steps, grown) if growth else 0
    return phase.seq_len * (lanes * rows_grown + rows * (done - grown))


def _phase_in_steps(phase: Phase, key: str, lanes: int) -> tuple[Phase, list[str]]:
    wrong = []
    growth = phase.batch_warmup
    if growth and growth.tokens is not None:
        first, last = growth.from_rows // lanes, phase.global_batch_rows // lanes
        step_slots, wanted = phase.seq_len * lanes, growth.tokens
        steps = _least(lambda steps: step_slots * rows_of_growth(first, last, steps, steps) >= wanted)
        if steps > MOST_STEPS:
            wrong.append(_too_many(f"{key}.batch_warmup.tokens", wanted))
        growth = growth.model_copy(update={"steps": steps, "tokens": None})
        phase = phase.model_copy(update={"batch_warmup": growth})
    if phase.tokens is not None:
        counted, wanted = phase, phase.tokens
        steps = _least(lambda steps: _slots_of_phase(counted, lanes, steps) >= wanted)
        if steps > MOST_STEPS:
            wrong.append(_too_many(f"{key}.tokens", wanted))
        phase = phase.model_copy(update={"steps": steps, "tokens": None})
    if growth and growth.steps >= phase.steps:
        wrong.append(
            f"{key}.batch_warmup takes {growth.steps:,} steps, and the whole phase {phase.steps:,}: make it shorter, so that "
            "global_batch_rows is reached"
        )
    return phase, wrong


def _schedules_in_steps(phases: Phases, optimizer: S, lanes: int) -> tuple[Phases, S, list[str]]:
    """Settle the warm-up and the decay of each schedule: the first has those of `optimizer`, further ones their `rewarm_up`."""
    starts = [0, *(number for number, phase in enumerate(phases) if number and phase.rewarm_up)]
    settled, wrong, decay = list(phases), list[str](), optimizer.decay_tokens
    for start, end in itertools.pairwise([*starts, len(phases)]):
        part = phases[start:end]
        own = part[0].rewarm_up if start else None
        if own is None:
            found, faults = _lengths(optimizer.warmup_tokens, decay, "optimizer", part, lanes)
            optimizer = optimizer.model_copy(update=found)
        else:
            key = f"phases.{start}.rewarm_up"
            if own.schedule is None and decay is not None:  # as many tokens, which can be another number of steps here
                own = own.model_copy(update={"schedule": optimizer.schedule, "decay_tokens": decay})
            found, faults = _lengths(own.warmup_tokens, own.decay_tokens, key, part, lanes)
            settled[start] = part[0].model_copy(update={"rewarm_up": own.model_copy(update=found)})
        wrong += faults
    return tuple(settled), optimizer, wrong


def _lengths(
    warmup: int | None, decay: int | None, key: str, phases: Sequence[Phase], lanes: int
) -> tuple[dict[str, int | None], list[str]]:
    """The settings of one schedule that are given in tokens, in steps; and which of them are longer than it.

    Args:
        phases: those that the schedule spans.
    """
    steps = sum(phase.steps for phase in phases)
    slots = slots_before(phases, lanes, steps)
    wrong = [
        f"{key}.{name} {tokens:,} is more than the {slots:,} token slots of its schedule: lower it"
        for name, tokens in (("warmup_tokens", warmup), ("decay_tokens", decay))
        if tokens is not None and tokens > slots
    ]
    found: dict[str, int | None] = {}
    if wrong:
        return found, wrong
    if warmup is not None:
        found = {
            "warmup_steps": _least(lambda done: slots_before(phases, lanes, done) >= warmup),
            "warmup_tokens": None,
        }
    if decay is not None:
        length = _least(lambda left: slots - slots_before(phases, lanes, max(steps - left, 0)) >= decay)
        found |= {"decay_steps": length, "decay_tokens": None}
    return found, wrong


def _least(is_enough: Callable[[int], bool]) -> int:
    """The least number of steps that is enough; more than MOST_STEPS if none up to there is."""
    return bisect.bisect_left(range(1, MOST_STEPS + 1), True, key=is_enough) + 1


def _too_many(key: str, tokens: int) -> str:
    return f"{key} {tokens:,} are more than {MOST_STEPS:,} steps: lower it"
