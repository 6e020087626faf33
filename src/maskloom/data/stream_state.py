"""The state of a stream, as it is saved: one rank's part of it, or that of all ranks.

    {"format": 1, "step": 20, "identity": {"seed": 0, "corpus 0": ..., "lanes": 16, ...},
     "phases": [{"steps": 20, "seq_len": 128, ...}], "cursors": {"0": [[5, [128, 3]]], ...}}

`phases` are the settings with which the steps so far were read. `cursors` holds lane -> its place in each corpus, as
`Cursor.to_json` gives it. Everything is a plain value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from maskloom.config import Phase
from maskloom.data.cursors import Cursor, LaneCursors, first_cursors
from maskloom.data.lane import Lane
from maskloom.data.plan import DataPlan
from maskloom.errors import UserError
from maskloom.redaction import brief
from maskloom.scalars import is_count

FORMAT = 1
State = dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A state, checked."""

    step: int
    identity: dict[str, Any]
    phases: list[Phase]
    cursors: dict[int, LaneCursors]


def parse(state: State) -> Saved:
    """Raises UserError if a state is not what `state_dict` gives."""
    if state.get("format") != FORMAT:
        raise UserError(
            f"this is not the state of a MaskedStream (its format is {state.get('format')!r}, not {FORMAT}): give what "
            "state_dict() or gather_state_dict() returned"
        )
    try:
        identity, step = dict(state["identity"]), state["step"]
        if not is_count(step):
            raise ValueError(f"step is {step!r}")
        phases = [Phase.model_validate(phase) for phase in state["phases"] if phase["steps"]]
        cursors = {int(lane): tuple(map(Cursor.from_json, items)) for lane, items in state["cursors"].items()}
        corpora = sum(key.startswith("corpus ") for key in identity)
        if any(len(places) != corpora for places in cursors.values()):
            raise ValueError(f"its cursors are not of {corpora} corpora")
    except (TypeError, LookupError, ValueError, AttributeError, ValidationError) as error:
        raise UserError(f"the state of the stream is damaged ({brief(error)}): load another one") from None
    return Saved(step, identity, phases, cursors)


def join(states: Sequence[State]) -> State:
    """One state with the lanes of all."""
    if not isinstance(states, Sequence) or isinstance(states, str) or not states:
        raise UserError(f"a {type(states).__name__} is not a state: give what state_dict() returned, or a list of such")
    for state in states:
        if not isinstance(state, Mapping):
            raise UserError(f"a {type(state).__name__} is not a state: give what state_dict() returned")
    first, *others = states
    for place, other in enumerate(others, start=1):
        for key in ("format", "step", "identity", "phases"):
            if other.get(key) != first.get(key):
                values = f" ({first.get(key)} and {other.get(key)})" if key in ("format", "step") else ""
                raise UserError(
                    f"states 0 and {place} of the list are not of the same moment: they differ in {key}{values}. Save the "
                    "states of all ranks after the same step"
                )
    try:
        cursors = {lane: items for state in states for lane, items in state["cursors"].items()}
    except (LookupError, AttributeError) as error:
        raise UserError(f"the state of the stream is damaged ({brief(error)}): load another one") from None
    return {**first, "cursors": dict(sorted(cursors.items(), key=lambda item: (len(item[0]), item[0])))}


def skipped_to(plan: DataPlan, lanes: Sequence[int], step: int) -> dict[int, LaneCursors]:
    """Where lanes stand before a step, by reading their blocks from the beginning, without masking."""
    first = first_cursors(plan.lanes, len(plan.corpora))
    open_lanes = [Lane(plan, lane, first[lane]) for lane in lanes]
    for number in range(step if open_lanes else 0):
        step_plan = plan.step_at(number)
        for lane in open_lanes:
            lane.skip(step_plan)
    return {lane.number: lane.cursors for lane in open_lanes}


def phase_to_json(phase: Phase, steps: int) -> dict[str, Any]:
    """A phase as a state holds it."""
    return {
        "steps": steps,
        "seq_len": phase.seq_len,
        "global_batch_rows": phase.global_batch_rows,
        "weights": list(phase.weights or ()),
    }
