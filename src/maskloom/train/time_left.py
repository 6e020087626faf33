"""How long a run still takes, from what the steps of this process took.

Neither the start of a process nor the first step after it (or after a roll-back, or of a phase) is counted: they load,
compile and warm up. Step time is taken per token slot and phase: phases differ in rows and slots, and a batch can grow. A phase
that has not begun is taken to be as fast per slot as the one measured last. Evaluations and checkpoints are counted apart, as
seconds a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from maskloom.data.plan import PhasePlan, place_in


class TimeLeft:
    """Measures the steps of this process; `seconds` says what is left.

    Attributes:
        total_steps: of the run.
    """

    def __init__(self, phases: Sequence[PhasePlan], lanes: int) -> None:
        self.phases, self.lanes = phases, lanes
        self.total_steps = sum(phase.steps for phase in phases)
        self._step_s = [0.0] * len(phases)  # of the steps measured, by phase
        self._slots = [0] * len(phases)
        self._steps, self._paused_s = 0, 0.0
        self._newest: int | None = None  # phase that was measured last
        self.begin()

    def begin(self) -> None:
        """What comes next is a first step: the start, or the return after a roll-back."""
        self._step, self._ended_s = -1, 0.0

    def stepped(self, step: int) -> None:
        """Step number `step`, which counts from 1, is done."""
        now_s = time.perf_counter()
        phase, done = place_in(self.phases, step - 1)
        if step == self._step + 1 and done:
            self._step_s[phase] += now_s - self._ended_s
            self._slots[phase] += self._slots_before(phase, done + 1) - self._slots_before(phase, done)
            self._newest = phase
        self._steps += 1
        self._step, self._ended_s = step, now_s

    def paused(self, seconds: float) -> None:
        """An evaluation or a checkpoint after the step took so long."""
        self._paused_s += seconds
        self._ended_s += seconds

    def seconds(self, step: int) -> float | None:
        """From the end of step number `step` to the end of the run; None until a step was measured."""
        if step >= self.total_steps:
            return 0.0
        if self._newest is None:
            return None
        left_s = self._paused_s / self._steps * (self.total_steps - step)
        first, done = place_in(self.phases, step)
        for phase in range(first, len(self.phases)):
            measured = phase if self._slots[phase] else self._newest
            slots = self._slots_before(phase, self.phases[phase].steps) - self._slots_before(phase, done)
            left_s += slots * self._step_s[measured] / self._slots[measured]
            done = 0
        return left_s

    def _slots_before(self, phase: int, done: int) -> int:
        """Token slots of a phase's first `done` steps."""
        return self.lanes * self.phases[phase].seq_len * self.phases[phase].rows_before(done)
