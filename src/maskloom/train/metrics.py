"""Counters on the device to TensorBoard, metrics.jsonl and the terminal.

A logged line describes the step that it names (loss, accuracy, gradient norm, learning rate); its rates and `loss_mean`,
which the terminal shows, cover the steps since the line before. Tokens are text tokens: no padding, no first and last of a piece;
`padded_tokens_per_s` alone counts every slot that was computed, to say what the padding costs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from maskloom.distributed import World, max_over_ranks
from maskloom.errors import UserError
from maskloom.files import open_plain, read_lines, write_atomically
from maskloom.live import show_live
from maskloom.progress import duration, say, warn
from maskloom.redaction import printable
from maskloom.runs import read_metrics
from maskloom.tags import ATTEMPT, tagged
from maskloom.train.about import About
from maskloom.train.board import Board
from maskloom.train.panels import FILLED, RESTARTS, filled_panel, restarts_panel
from maskloom.train.reporters import Reporters
from maskloom.train.sentences import Filled
from maskloom.train.timing import TimeLeft

PROBE_ACCURACY = "evaluation_probe_accuracy"


class Work(NamedTuple):
    """What all ranks together did in the steps since the line before."""

    slots: int
    """Real ones: the first and the last of a piece among them, no padding."""
    computed_slots: int
    """All, padding and filling rows included."""
    flops: int
    """Model FLOPs, see `maskloom.models.flops`."""


class Metrics:
    """Writes on the first rank, does nothing on the others.

    Opened at step `step`, it drops what an earlier attempt logged beyond: every step is logged once. `peak_flops` is
    FLOP/s of all ranks' devices together; None if it is not known, and then there is no MFU. `about` is what TensorBoard and
    reporters are told of the run; without it they learn the numbers alone.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        time_left: TimeLeft,
        tokens_seen: int,
        world: World,
        peak_flops: float | None,
        about: About | None = None,
    ) -> None:
        self.time_left, self.ranks, self.peak_flops = time_left, world.size, peak_flops
        self.run, self.path, self.is_writer = run, run / "metrics.jsonl", world.is_first
        self.about = about
        self._writes, self._has_warned = False, False
        self._unwritten: list[str] = []
        if self.is_writer:
            self.board = Board(run, printable(str(about.run.folder)), about.settings) if about else Board(run)
            self.reporters = Reporters(about.reporters, about.run) if about else None
            self.begin_at(step, tokens_seen, about.texts if about else {})
        else:
            self.begin_at(step, tokens_seen)

    def begin_at(self, step: int, tokens_seen: int, texts: Mapping[str, str] = MappingProxyType({})) -> None:
        """Continue after `step`: lines of later steps are dropped. `texts` by their tags are shown in TensorBoard."""
        self.time_left.begin()
        show_live(total_steps=self.time_left.total_steps, left_s=self.time_left.seconds)
        self.mark(step, tokens_seen)
        if self.is_writer:
            self._settle()
            keep_until(self.path, step)
            self._writes = True
            restarts = restarts_panel(self.run, self.about.origin if self.about else None)
            self.board.begin_at(step, {**texts, **({RESTARTS: restarts} if restarts else {})})

    def mark(self, step: int, tokens_seen: int) -> None:
        """Begin an interval of rates."""
        self.marked_step, self.marked_tokens, self.marked_s = step, tokens_seen, time.perf_counter()
        self.waited_s = self.idle_s = self.rows = 0.0

    def waited(self, seconds: float, rows: int) -> None:
        """Time that a step waited for data, and the rows of its global batch."""
        self.waited_s += seconds
        self.rows += rows

    def paused(self, seconds: float) -> None:
        """Time spent on evaluation and checkpoints, which does not belong to a step."""
        self.idle_s += seconds
        self.time_left.paused(seconds)

    def log_step(self, step: int, tokens_seen: int, values: dict[str, float], work: Work) -> None:
        """Log `values` of a step, with the rates since the last logged one."""
        elapsed_s = max(time.perf_counter() - self.marked_s - self.idle_s, 1e-9)
        steps = max(step - self.marked_step, 1)
        rates = {
            "tokens_per_s": (tokens_seen - self.marked_tokens) / elapsed_s,
            "padded_tokens_per_s": work.computed_slots / elapsed_s,
            "packing_density": work.slots / max(work.computed_slots, 1),
            "sequences_per_s": self.rows / elapsed_s,
            "tflops_per_s": work.flops / elapsed_s / self.ranks / 1e12,
            **self._utilisation(work.flops / elapsed_s),
            "step_time_s": elapsed_s / steps,
            "data_wait_s": self.waited_s / steps,
        }
        self._write(step, {**values, **rates, "tokens_seen": tokens_seen})
        show_live(tokens_per_s=rates["tokens_per_s"])
        if self._writes:
            left_s = self.time_left.seconds(step)
            say(
                f"step {step:,}/{self.time_left.total_steps:,} | "
                f"loss {values['loss_mean']:.4f} | accuracy {values['accuracy']:.1%} | "
                f"lr {values['lr']:.2e} | grad norm {values['grad_norm']:.2f} | {rates['tokens_per_s']:,.0f} tokens/s | "
                f"data wait {self.waited_s / elapsed_s:.0%} | {'?' if left_s is None else duration(left_s)} left"
            )
        self.mark(step, tokens_seen)

    def _utilisation(self, flops_per_s: float) -> dict[str, float]:
        """`mfu`, if the peak is known; one above 1 shows that the peak is wrong, and is not shown."""
        if self.peak_flops is None:
            return {}
        share = flops_per_s / self.peak_flops
        if share <= 1:
            return {"mfu": share}
        if self._writes:
            warn(
                f"a rank computes {flops_per_s / self.ranks / 1e12:.3g} TFLOP/s, more than the peak of "
                f"{self.peak_flops / self.ranks / 1e12:.3g}, which is therefore wrong: no MFU is shown. Set "
                "logging.peak_tflops to what a rank's device can do"
            )
        self.peak_flops = None
        return {}

    def log_evaluation(self, step: int, values: dict[str, float]) -> None:
        """Log held-out figures. There are none if every held-out document is too short to have a token predicted."""
        if not values:
            if self._writes:
                warn(f"step {step:,}: the held-out documents have no token to predict")
            return
        self._write(step, values)
        show_live(held_out_loss=values["evaluation_loss"])
        if self._writes:
            say(
                f"step {step:,} | held-out loss {values['evaluation_loss']:.4f} | "
                f"perplexity {values['evaluation_perplexity']:.1f} | accuracy {values['evaluation_accuracy']:.1%}"
                + (f" | probe {values[PROBE_ACCURACY]:.1%}" if PROBE_ACCURACY in values else "")
            )

    def has_evaluation(self, step: int) -> bool:
        """Whether held-out figures of a step were logged; known to the first rank."""
        return self.is_writer and any(
            "evaluation_loss" in line for line in read_metrics(self.run) if line["step"] == step
        )

    def show_filled(self, step: int, filled: Sequence[Filled]) -> None:
        """Show sentences that the model filled. metrics.jsonl holds numbers alone."""
        if self._writes and filled:
            self.board.text(FILLED, filled_panel(filled), step)

    def close(self) -> None:
        """The attempt is at its end."""
        if self.is_writer:
            self._settle()
            self.board.close()

    def finish_reports(self) -> None:
        """Let reporters send what they hold. It may take a minute."""
        if self.is_writer and self.reporters:
            self.reporters.finish()

    def _settle(self) -> None:
        """Write what is still to be written to metrics.jsonl."""
        if self._writes:
            self._append()
        if self._unwritten:
            warn(f"{len(self._unwritten)} line(s) could not be written to {self.path}, and are lost")

    def _write(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        shown = tagged(values)
        if "loss_mean" in values:
            shown[ATTEMPT] = self.about.attempt if self.about else 1
        self.board.log(shown, step)
        if self.reporters:
            self.reporters.log(shown, step)
        # The norm of a step that fp16 skipped is infinite, which JSON has no number for.
        line: dict[str, Any] = {
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        self._unwritten.append(json.dumps(line) + "\n")
        self._append()

    def _append(self) -> None:
        """Write the waiting lines to metrics.jsonl. If that fails, all of them keep waiting."""
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8", opener=open_plain) as file:
                file.write("".join(self._unwritten))
        except (OSError, UserError) as error:
            with contextlib.suppress(OSError):  # what of them was written
                os.truncate(self.path, size)
            if not self._has_warned:
                warn(
                    f"cannot write to {self.path} ({error}): its lines are kept, and written when that is possible again"
                )
            self._has_warned = True
        else:
            self._unwritten, self._has_warned = [], False


def memory_peaks(device: torch.device) -> dict[str, int]:
    """The most memory that this rank held, in bytes.

    On CUDA of the device since the last call: `memory_peak_bytes` in tensors, `memory_reserved_peak_bytes` with what
    torch's allocator keeps beside them. Elsewhere `memory_peak_bytes` is the largest resident set of the process since it
    started, which is all that the system remembers.
    """
    if device.type != "cuda":
        unit = 1 if sys.platform == "darwin" else 1024
        return {"memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    peaks = {
        "memory_peak_bytes": torch.cuda.max_memory_allocated(device),
        "memory_reserved_peak_bytes": torch.cuda.max_memory_reserved(device),
    }
    torch.cuda.reset_peak_memory_stats(device)
    return peaks


def largest_memory_peaks(device: torch.device) -> dict[str, int]:
    """`memory_peaks`, of each the largest over ranks; every rank calls it."""
    peaks = memory_peaks(device)
    largest = max_over_ranks(torch.tensor(list(peaks.values()), dtype=torch.int64, device=device))
    return dict(zip(peaks, largest.tolist(), strict=True))


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step]
        write_atomically(path, "".join(kept))
