"""The state of a training run on one rank, and one optimizer step of it."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maskloom.config import RunConfig
from maskloom.data.batch import Layout, MicroBatch, to_device, to_host
from maskloom.data.cursors import Cursor, LaneCursors, first_cursors
from maskloom.data.hashing import make_key
from maskloom.data.masking import MaskRule
from maskloom.data.plan import DataPlan
from maskloom.distributed import World, gather_objects, sum_over_ranks
from maskloom.errors import UserError
from maskloom.models.attention import settle_attention
from maskloom.models.bert import build_defined, build_model
from maskloom.models.flops import DTYPES, Shape, peak_of
from maskloom.optim.schedule import learning_rate
from maskloom.progress import say, size, warn
from maskloom.train import checkpoint
from maskloom.train.batches import ReadyStep, ready_steps
from maskloom.train.divergence import collapsed, count_not_finite, diverged, first_not_finite
from maskloom.train.engine.configuration import deepspeed_config
from maskloom.train.engine.device import device_of, numerics_title, resolve_precision
from maskloom.train.engine.engine import Engine, LossScaleCollapsed
from maskloom.train.evaluation import evaluate
from maskloom.train.guard import NOT_FINITE, GuardState, after_step, highest_loss, must_go_back, objection
from maskloom.train.metrics import Work, largest_memory_peaks
from maskloom.train.own_time import OwnTime
from maskloom.train.passed_over import PassedOver, behind, jumps, known, read_intervals, with_one_more
from maskloom.train.rank.heartbeats import Pulse
from maskloom.train.rank.notices import NAMES, Notices
from maskloom.train.rollback import Rollback
from maskloom.train.skipped import Skipped
from maskloom.train.tally import Tally
from maskloom.train.traffic import Traffic


class Trainer:
    """Engine, data position and counters of a run; every rank has one."""

    def __init__(self, config: RunConfig, plan: DataPlan, world: World, traffic: Traffic, pulse: Pulse) -> None:
        self.pulse = pulse
        self.config, self.plan, self.world, self.traffic = config, plan, world, traffic
        self.device = device_of(world)
        self.layouts = phase_layouts(config, plan, world)
        self.run = Path(config.run_dir)
        self.notices = Notices()
        self.saver = checkpoint.Saver(self.run, config.checkpoint, world, self.notices)
        self.time = OwnTime(traffic, world, self.device)
        self._beginnings = 0
        found = checkpoint.find(self.run, world)
        mine = [interval.to_json() for interval in read_intervals(self.run)] if world.is_first else []
        of_run = [PassedOver.from_json(values) for values in gather_objects(mine, world)[0]]
        if found is None and config.from_ is not None:
            found = checkpoint.find_origin(str(config.from_), world)
            self.config = config.model_copy(update={"from_": checkpoint.origin_of(*found)})
        self.passed_over = known(found[1].intervals(), found[1].step, of_run) if found else of_run
        origin = self._begin_from(found)
        described = self.engine.model.config
        self.shape = Shape.of(described)
        head_size = described.hidden_size // described.num_attention_heads
        dtype = DTYPES[resolve_precision(config.engine.precision)]
        self.attention = settle_attention(self.device, head_size, dtype, described.attention_probs_dropout_prob)
        peak = peak_of(self.device, resolve_precision(config.engine.precision), config.logging.peak_tflops)
        own_flops = peak.flops if peak else math.nan  # which makes the sum unknown as well
        total_flops = float(sum_over_ranks(torch.tensor(own_flops, dtype=torch.float64, device=self.device)))
        self.peak_flops = total_flops if math.isfinite(total_flops) else None
        if world.is_first:
            self._announce(origin)
            if peak and self.peak_flops:
                say(f"peak: {self.peak_flops / world.size / 1e12:,.3g} TFLOP/s a rank ({peak.origin})")

    def _begin_from(self, found: tuple[Path, checkpoint.State] | None) -> str:
        """Stand where the checkpoint was written, or at the beginning; returns where the weights are from, in words."""
        config, world = self.config, self.world
        plan = self.plan = replace(self.plan, jumps=jumps(self.passed_over, self.plan.lanes, len(self.plan.corpora)))
        state: checkpoint.State | None = None
        if found:
            folder, state = found
            if is_fork := folder.parents[1] != self.run:
                model, origin = build_defined(folder.parents[1] / "model", config.model), f"begun from {folder}"
            else:
                model, origin = build_defined(folder.parents[1] / "model"), f"resumed from {folder}"
            same_spread = (state.zero_stage, state.world_size) == (config.engine.zero_stage, world.size)
            if not same_spread:
                origin += f", which {state.world_size} rank(s) wrote at ZeRO stage {state.zero_stage}"
            if is_fork and state.step >= plan.total_steps:
                raise UserError(
                    f"from {folder} there is nothing to do: it has all {plan.total_steps:,} steps. Set more in phases"
                )
            checkpoint.check_fits(state, plan, None if is_fork else str(config.engine.precision), folder)
            self.saver.last_good = None if is_fork else folder.name
        else:
            self.saver.last_good = None
            model, origin = build_model(config.model, plan.tokenizer, config.seed)
        settings = deepspeed_settings(config, plan, world)
        self.engine = Engine(model, config.engine, config.optimizer, settings, world)
        if state:
            self.engine.load(folder, same_spread, state.precision == config.engine.precision)
        self.step = self.pulse.step = state.step if state else 0
        self.cursors = state.lane_cursors() if state else first_cursors(plan.lanes, len(plan.corpora))
        self.guard = state.guard_state() if state else GuardState()
        count = state.skipped if state else 0
        self.skipped = Skipped(self.run, plan, self.step, count, config.data.max_bad_share, world)
        self.tally = Tally(state.tokens_seen if state else 0, self.device)
        self._objection: tuple[str, Callable[[], str]] = ("", str)
        self._beginnings += 1
        return origin

    def steps(self) -> Iterator[ReadyStep]:
        """This rank's rows, from where the run stands to its end; where it goes back, on from there."""
        data = self.config.data
        beginning = 0
        while beginning != self._beginnings:
            beginning = self._beginnings
            reading = (self.plan, self.world, self.layouts, self.device, self.cursors, self.step)
            reader = ready_steps(*reading, workers=data.workers, prefetch_steps=data.prefetch_steps)
            with contextlib.closing(reader):
                for batch in reader:
                    yield batch
                    if beginning != self._beginnings:
                        break

    def train_step(self, batch: ReadyStep) -> Any:
        """One optimizer step on this rank's rows; returns a function that reads the step's values (all ranks call it).

        Nothing here waits for the device but the guard, which needs the loss (`tests/integration/waits.json` lists what does).
        """
        self.saver.follow()
        self.engine.train()
        self.traffic.begin_step()
        buckets = [bucket.to(self.device) for bucket in batch.micro_batches]
        said = torch.cat([batch.counts, self.notices.said()])
        sums = self.time.waiting(sum_over_ranks, to_device(said, self.device))
        counts = sums[: -len(NAMES)]
        self.notices.hear(sums[-len(NAMES) :])
        # Ranks average their gradients: with world / N on each, the loss is the mean over the global batch's N tokens.
        scale = self.world.size / counts[0].clamp(min=1)
        highest = highest_loss(self.guard, self.config.guard, phase := self.plan.phase_of(batch.number))
        results = torch.zeros(2, dtype=torch.float64, device=self.device)
        with self.engine.accumulating(len(buckets)) as backward:
            for number, bucket in enumerate(buckets):
                self.pulse.tick("compute")
                self._seed_dropout(batch.number, number)
                loss, hits = self.engine(bucket)
                results += torch.stack([loss.detach().double(), hits.double()])
                factor = scale
                if number == len(buckets) - 1:
                    # The loss of the global batch is known before the last backward, which it can spoil without being waited for.
                    mean = self.time.waiting(sum_over_ranks, results)[0] / counts[0].clamp(min=1)
                    factor = torch.where(mean <= highest, scale, torch.nan)
                    read = to_host(torch.stack([mean, results[1] / counts[0].clamp(min=1)]))
                backward(loss * factor)
        self.pulse.tick("update")
        lr = learning_rate(batch.number + 1, self.config.optimizer, self.config.schedules)
        mean_loss, accuracy = read()
        reason = objection(mean_loss, highest)
        seed_dropout = functools.partial(self._seed_dropout, batch.number)
        where = functools.partial(first_not_finite, self.engine, buckets, seed_dropout, scale, self.world)
        try:
            norm, is_applied = self.engine.step(lr, is_spoilt=reason is not None)
        except LossScaleCollapsed:
            raise collapsed(batch.number + 1, where(), self.config, self.saver.last_good) from None
        if not is_applied and not self.engine.adapts_loss_scale:
            reason = reason or NOT_FINITE
        self.traffic.end_step()
        self.step = batch.number + 1
        self.pulse.stepped(self.step)
        self._judged(phase, mean_loss, reason, where)
        computed_slots = self.world.size * sum(len(bucket.input_ids) for bucket in buckets)
        self.tally.add(counts, computed_slots, results[0] if reason is None else None)
        for lane, cursors in batch.cursors.items():
            self.cursors[lane] = cursors
        self.skipped.add(self.step, batch.skips)
        return lambda: self._values(mean_loss, accuracy, lr, norm)

    def _judged(self, phase: int, loss: float, reason: str | None, where: Callable[[], str]) -> None:
        """Keep account of a step that was taken, or was not for a reason."""
        self.guard = after_step(self.guard, self.config.guard, phase, loss, is_taken=reason is None)
        self._objection = (reason, where) if reason else ("", str)
        if reason and self.world.is_first:
            warn(f"step {self.step:,} was not taken: {reason} ({self.guard.in_a_row} in a row)")

    @property
    def must_go_back(self) -> bool:
        """Whether too many steps in a row were not taken."""
        return must_go_back(self.guard, self.config.guard)

    def go_back(self) -> None:
        """Load the newest checkpoint from before the steps that were not taken, and stand there behind their data. Every rank
        takes part.

        Raises:
            UserError: the run went back to it as often as it may.
        """
        reason, where = self._objection
        self.saver.finish()
        found = checkpoint.find_at_most(self.run, self.step - self.guard.in_a_row, self.world)
        if found is None and self.config.from_ is not None:
            found = checkpoint.find_origin(str(self.config.from_), self.world)
        saved = found[1].guard_state().bad_steps if found else 0
        way = Rollback(self.step, self.guard.in_a_row, reason, found[1].step if found else 0)
        if (times := way.times(self.passed_over)) >= self.config.guard.rollbacks:
            raise diverged(way.refusal(times, where()), self.config)
        self._gather_cursors()
        interval = way.interval(self.plan, self.cursors, self.passed_over, self.bad_steps, saved)
        self.passed_over = with_one_more(self.passed_over, interval)
        way.carry_out(self.run, self.passed_over, self.world)
        self._objection = ("", str)  # it holds the engine
        self.engine.close()
        del self.engine
        del where
        gc.collect()
        torch.cuda.empty_cache()
        self._begin_from(found)

    @property
    def bad_steps(self) -> int:
        """Steps not taken so far, those among what was passed over included."""
        return self.guard.bad_steps + sum(interval.bad_steps for interval in behind(self.passed_over, self.step))

    def tokens_seen(self) -> int:
        return self.tally.tokens_seen()

    def evaluate(self) -> dict[str, float]:
        """Held-out figures; every rank gets the same."""
        plan, settings = self.plan, self.config.evaluation_filled

        def forward(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
            self.pulse.tick("evaluate")
            loss, hits = self.engine(batch)
            return loss, hits

        with self.time.paused():
            self.engine.eval()
            rule = MaskRule.held_out(plan.masking, settings.mask_rate, plan.tokenizer)
            return evaluate(
                forward, plan.corpora, plan.tokenizer, settings, rule, self.device, self.world, plan.skips_bad
            )

    def save(self) -> None:
        """Begin to write a checkpoint; every rank takes part. `saver.finish` waits for it.

        Raises:
            SaveFailed: too many in a row could not be written.
            UserError: a weight of any rank is no number: such weights are never saved.
        """
        with self.time.paused():
            if count := count_not_finite(self.engine, self.device):
                said = f"{count:,} weights are not finite after step {self.step}, which was not saved"
                raise diverged(said, self.config)
            self.skipped.settle(self._my_cursors())
            self._gather_cursors()
            self.saver.start(self.engine, self._state())

    def _state(self) -> checkpoint.State:
        return checkpoint.State(
            self.step,
            self.tokens_seen(),
            [[cursor.to_json() for cursor in lane] for lane in self.cursors],
            self.skipped.count,
            checkpoint.fingerprint(self.plan),
            self.world.size,
            self.config.engine.zero_stage,
            str(self.config.engine.precision),
            self.guard.to_json(),
            [interval.to_json() for interval in behind(self.passed_over, self.step)],
        )

    def _gather_cursors(self) -> None:
        """Learn where the other ranks' lanes stand."""
        mine = [
            [lane, [cursor.to_json() for cursor in cursors]] for lane, cursors in sorted(self._my_cursors().items())
        ]
        for part in gather_objects(mine, self.world):
            for lane, cursors in part:
                self.cursors[lane] = tuple(map(Cursor.from_json, cursors))

    def _my_cursors(self) -> dict[int, LaneCursors]:
        return {lane: self.cursors[lane] for lane in self.world.share(self.plan.lanes)}

    def _values(
        self, loss: float, accuracy: float, lr: float, norm: torch.Tensor | float
    ) -> tuple[dict[str, float], Work]:
        """What a logged line says of the step, and of the steps since the line before. Every rank calls it."""
        spent = self.time.take()
        mean, work = self.tally.take(self.shape)
        values: dict[str, float] = {
            "loss": loss,
            "loss_mean": loss if mean is None else mean,
            "accuracy": accuracy,
            "lr": lr,
            "grad_norm": float(norm),
        }
        values |= {"bad_steps": self.bad_steps, "rollbacks": len(behind(self.passed_over, self.step))}
        self.skipped.settle(self._my_cursors())
        if self.plan.skips_bad:
            values["skipped_blocks"] = self.skipped.count
        scale = self.engine.loss_scale
        if scale is not None:
            values |= {"loss_scale": scale, "skipped_steps": self.engine.skipped_steps}
        values = {**values, **largest_memory_peaks(self.device), **self.time.values(spent)}
        self.time.mark()
        return values, work

    def _seed_dropout(self, step: int, micro_batch: int) -> None:
        torch.manual_seed(make_key(self.config.seed, "dropout", step, micro_batch, self.world.rank) >> 1)

    def _announce(self, origin: str) -> None:
        engine = self.config.engine
        say(origin)
        for corpus, index in zip(self.config.data.corpora, self.plan.corpora, strict=True):
            weight = f", weight {corpus.weight:g}" if len(self.plan.corpora) > 1 else ""
            say(
                f"corpus {index.folder}: {index.header['documents']:,} documents, "
                f"{size(index.header['text_bytes'])} in {len(index.train_blocks):,} blocks{weight}"
            )
        say(f"lanes: {self.plan.lanes}")
        say(
            f"engine: {self.world.size} rank(s) on {self.device.type}, {engine.precision}, ZeRO {engine.zero_stage}, "
            f"kernels {engine.kernels}, {numerics_title(self.device.type, engine.precision)}"
            f"{torch.get_num_threads()} thread(s) a rank"
        )
        say(f"attention: {self.attention}")
        say(f"optimizer: {self.engine.optimizer_title()}, schedule {self.config.optimizer.schedule}")
        for number, (phase, layout) in enumerate(zip(self.config.phases, self.layouts, strict=True)):
            waste = f", {layout.waste:.1%} of the rows are filling" if layout.waste else ""
            say(
                f"phase {number}: {phase.steps:,} steps of {phase.global_batch_rows} rows of {phase.seq_len}, in "
                f"{layout.micro_batches} micro-batch(es) of {layout.micro_batch_rows} rows a rank{waste}"
            )
            if phase.batch_warmup:
                say(f"  its batch grows from {phase.batch_warmup.from_rows} rows in {phase.batch_warmup.steps:,} steps")
        if self.step == self.plan.total_steps:
            say(
                f"all {self.step:,} steps are done: raise phases.N.steps of the last phase, or add a phase, to train on"
            )
        elif self.step:
            say(f"going on after step {self.step:,} of {self.plan.total_steps:,}")


def deepspeed_settings(config: RunConfig, plan: DataPlan, world: World) -> dict[str, Any]:
    """The DeepSpeed configuration of this run at this world size."""
    layouts = phase_layouts(config, plan, world)
    accumulates = any(layout.micro_batches > 1 for layout in layouts)
    passed = config.engine, config.optimizer, config.deepspeed
    return deepspeed_config(*passed, layouts[0].micro_batch_rows, accumulates, world.size)


def phase_layouts(config: RunConfig, plan: DataPlan, world: World) -> list[Layout]:
    """How each phase's global batch, once it has grown, falls into micro-batches."""
    return [
        Layout.of(plan.lanes, planned.lane_rows, phase.micro_batch_rows, world)
        for phase, planned in zip(config.phases, plan.phases, strict=True)
    ]
