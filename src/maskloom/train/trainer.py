"""The state of a training run on one rank, and one optimizer step of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskloom.config import RunConfig
from maskloom.data.batch import Layout, MicroBatch, micro_batches, to_device
from maskloom.data.order import Cursor, LaneCursors, first_cursors, make_key
from maskloom.data.plan import DataPlan
from maskloom.data.rows import count_slots, count_text_tokens
from maskloom.data.stream import Step, read_steps
from maskloom.distributed import World, gather_objects, max_over_ranks, sum_over_ranks
from maskloom.errors import UserError
from maskloom.model.attention import choose_flash_kernel
from maskloom.model.bert import build_defined, build_model
from maskloom.model.flops import Shape, peak_of, training_flops
from maskloom.model.overflow import find_overflow
from maskloom.progress import say
from maskloom.train import checkpoint
from maskloom.train.engine.building import build_engine, optimizer_title, own_part
from maskloom.train.engine.configuration import deepspeed_config, device_of, resolve_precision
from maskloom.train.engine.stepping import LossScaleCollapsed, apply_gradients, loss_scale, reduction
from maskloom.train.evaluation import evaluate
from maskloom.train.metrics import Work, memory_peaks
from maskloom.train.notices import NAMES, Notices
from maskloom.train.schedule import learning_rate
from maskloom.train.skipped import Skipped
from maskloom.train.traffic import Traffic


class Trainer:
    """Engine, data position and counters of a run; every rank has one."""

    def __init__(self, config: RunConfig, plan: DataPlan, world: World, traffic: Traffic) -> None:
        self.config, self.plan, self.world, self.traffic = config, plan, world, traffic
        self.device = device_of(world)
        self.attention = choose_flash_kernel(self.device)
        self.layouts = phase_layouts(config, plan, world)
        self.capacities = [plan.capacity(phase) for phase in range(len(plan.phases))]
        run = Path(config.run_dir)
        found = checkpoint.find(run, world)
        universal = False
        if found:
            folder, state = found
            checkpoint.check_fits(state, plan, config.engine.zero_stage, str(config.engine.precision), folder)
            universal = checkpoint.needs_universal(state, world)
            model, origin = build_defined(run / "model"), f"resumed from {folder}"
        else:
            model, origin = build_model(config.model, plan.tokenizer, config.seed)
        self._check_positions(model.config.max_position_embeddings)
        self.engine = build_engine(config, model, deepspeed_settings(config, plan, world, universal))
        if found:
            checkpoint.load(self.engine, folder, state, world)
            self.step, self.cursors = state.step, state.lane_cursors()
        else:
            self.step, self.cursors = 0, first_cursors(plan.lanes, len(plan.corpora))
        count = state.skipped if found else 0
        self.skipped = Skipped(run, plan, self.step, count, config.data.max_bad_share, world)
        self._tokens = torch.tensor(state.tokens_seen if found else 0, dtype=torch.int64, device=self.device)
        # Since the last logged line: this rank's losses, what `_count` counts on all ranks, and the slots they computed.
        self._losses = torch.zeros((), dtype=torch.float64, device=self.device)
        self._counts = torch.zeros(4, dtype=torch.int64, device=self.device)
        self.notices = Notices()
        self._computed_slots = 0
        self.shape = Shape.of(model.config)
        peak = peak_of(self.device, resolve_precision(config.engine.precision), config.logging.peak_tflops)
        self.peak_flops = float(sum_over_ranks(torch.tensor(peak.flops, dtype=torch.float64, device=self.device)))
        if world.is_first:
            self._announce(origin)
            say(f"peak: {self.peak_flops / world.size / 1e12:,.3g} TFLOP/s a rank ({peak.origin})")

    def steps(self) -> Iterator[Step]:
        """This rank's rows, from where the run stands to its end."""
        data = self.config.data
        return read_steps(
            self.plan, self.world, self.cursors, self.step, workers=data.workers, prefetch_steps=data.prefetch_steps
        )

    def train_step(self, batch: Step) -> Any:
        """One optimizer step on this rank's rows; returns a function that reads the step's values (all ranks call it)."""
        self.engine.train()
        self.traffic.begin_step()
        buckets = [bucket.to(self.device) for bucket in self._micro_batches(batch)]
        said = torch.cat([self._count(batch), self.notices.said()])
        sums = sum_over_ranks(to_device(said, self.device))
        counts = sums[: -len(NAMES)]
        self.notices.hear(sums[-len(NAMES) :])
        # Ranks average their gradients: with world / N on each, the loss is the mean over the global batch's N tokens.
        scale = self.world.size / counts[0].clamp(min=1)
        results = torch.zeros(2, dtype=torch.float64, device=self.device)
        with reduction(self.engine, self.config.engine.reduce, len(buckets)) as backward:
            for number, bucket in enumerate(buckets):
                self._seed_dropout(batch.number, number)
                loss, hits = self.engine(bucket)
                backward(loss * scale)
                results += torch.stack([loss.detach().double(), hits.double()])
        lr = learning_rate(batch.number + 1, self.config.optimizer, self.config.schedules)
        try:
            norm = apply_gradients(self.engine, lr)
        except LossScaleCollapsed:
            raise self._collapsed(batch.number, buckets, float(scale)) from None
        self.traffic.end_step()
        self.step = batch.number + 1
        self._tokens += counts[1]
        self._losses += results[0]
        self._counts += counts
        self._computed_slots += self.world.size * sum(len(bucket.input_ids) for bucket in buckets)
        for lane, cursors in batch.cursors.items():
            self.cursors[lane] = cursors
        self.skipped.add(self.step, batch.skips)
        return lambda: self._values(
            results, counts[0], lr, norm, lambda: self._not_finite(batch.number, buckets, float(scale))
        )

    def tokens_seen(self) -> int:
        return int(self._tokens)

    def evaluate(self) -> dict[str, float]:
        """Held-out figures; every rank gets the same."""
        self.engine.eval()
        plan, settings = self.plan, self.config.evaluation_filled
        return evaluate(self.engine, plan.corpora, plan.tokenizer, settings, self.device, self.world, plan.skips_bad)

    def save(self, run: Path) -> None:
        """Write a checkpoint; every rank takes part."""
        self._check_weights()
        self.skipped.settle(self._my_cursors())
        mine = [
            [lane, [cursor.to_json() for cursor in cursors]] for lane, cursors in sorted(self._my_cursors().items())
        ]
        for part in gather_objects(mine, self.world):
            for lane, cursors in part:
                self.cursors[lane] = tuple(map(Cursor.from_json, cursors))
        state = checkpoint.State(
            self.step,
            self.tokens_seen(),
            [[cursor.to_json() for cursor in lane] for lane in self.cursors],
            self.skipped.count,
            checkpoint.fingerprint(self.plan),
            self.world.size,
            self.config.engine.zero_stage,
            str(self.config.engine.precision),
        )
        folder = checkpoint.save(self.engine, run, state, self.config.checkpoint.keep_last, self.world)
        if self.world.is_first:
            say(f"step {self.step:,} | checkpoint {folder}")

    def _my_cursors(self) -> dict[int, LaneCursors]:
        return {lane: self.cursors[lane] for lane in self.world.share(self.plan.lanes)}

    def _micro_batches(self, batch: Step) -> Iterator[MicroBatch]:
        phase = self.plan.phase_of(batch.number)
        layout = self.layouts[phase].of_smaller(self.plan.lanes, self.plan.lane_rows(batch.number), self.world)
        return micro_batches(batch.rows, layout, self.capacities[phase], self.plan.tokenizer)

    def _count(self, batch: Step) -> torch.Tensor:
        """int64 [4], of this rank's rows: predicted tokens, text tokens, real slots, squares of the pieces' slots."""
        text_tokens = count_text_tokens(batch.rows, self.plan.tokenizer)
        slots, squares = count_slots(batch.rows, self.plan.tokenizer)
        return torch.tensor([np.count_nonzero(batch.rows.chosen), text_tokens, slots, squares], dtype=torch.int64)

    def _values(
        self,
        sums: torch.Tensor,
        masked: torch.Tensor,
        lr: float,
        norm: torch.Tensor | float,
        not_finite: Callable[[], str],
    ) -> tuple[dict[str, float], Work]:
        loss_sum, hits, mean_sum = sum_over_ranks(torch.cat([sums, self._losses[None]])).tolist()
        loss = loss_sum / max(int(masked), 1)
        if not math.isfinite(loss):
            # From stage 1 on DeepSpeed skips such a step, so that the weights are those that it was taken with.
            where = f" ({not_finite() or 'no layer'} is not finite)" if self.config.engine.zero_stage else ""
            raise self._diverged(f"the loss is {loss}{where}")
        predicted, _, slots, squares = self._counts.tolist()
        mean = mean_sum / max(predicted, 1)
        work = Work(slots, self._computed_slots, training_flops(self.shape, slots, squares, predicted))
        self._losses.zero_()
        self._counts.zero_()
        self._computed_slots = 0
        accuracy = hits / max(int(masked), 1)
        values = {"loss": loss, "loss_mean": mean, "accuracy": accuracy, "lr": lr, "grad_norm": float(norm)}
        self.skipped.settle(self._my_cursors())
        if self.plan.skips_bad:
            values["skipped_blocks"] = self.skipped.count
        scale = loss_scale(self.engine)
        if scale is not None:
            values |= {"loss_scale": scale, "skipped_steps": self.engine.skipped_steps}
        return {**values, **self._memory(), **self._communication()}, work

    def _memory(self) -> dict[str, float]:
        """The largest peaks over ranks."""
        peaks = memory_peaks(self.device)
        largest = max_over_ranks(torch.tensor(list(peaks.values()), dtype=torch.int64, device=self.device))
        return dict(zip(peaks, largest.tolist(), strict=True))

    def _communication(self) -> dict[str, float]:
        """A step's seconds of communication, the mean over ranks, and bytes, which are the same on every rank."""
        totals = self.traffic.take()
        steps = max(totals.steps, 1)
        seconds = sum_over_ranks(torch.tensor(totals.seconds, dtype=torch.float64, device=self.device))
        kinds = {f"communication_bytes_{kind}": sent / steps for kind, sent in sorted(totals.sent_bytes.items())}
        return {
            "communication_s": float(seconds) / self.world.size / steps,
            "communication_bytes": sum(kinds.values()),
            **kinds,
        }

    def _check_weights(self) -> None:
        """Raises UserError on every rank where a weight of any rank is no number: such weights are never saved."""
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        for parameter in self.engine.module.parameters():
            wrong += (~torch.isfinite(own_part(parameter))).sum()
        if count := int(sum_over_ranks(wrong)):
            raise self._diverged(f"{count:,} weights are not finite")

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f"the run diverged: {what} after step {self.step}, which was not saved. Start anew in another run_dir with a lower "
            f"optimizer.lr (now {self.config.optimizer.lr}) or a longer optimizer.warmup_steps"
        )

    def _seed_dropout(self, step: int, micro_batch: int) -> None:
        torch.manual_seed(make_key(self.config.seed, "dropout", step, micro_batch, self.world.rank) >> 1)

    def _collapsed(self, step: int, buckets: list[MicroBatch], scale: float) -> UserError:
        """The error that names the layer; `step` counts from 0."""
        where = self._not_finite(step, buckets, scale)
        return UserError(
            f"fp16 collapsed at step {step + 1}: gradients overflow although the loss scale is at its minimum. Not finite: "
            f"{where or 'the sum of the gradients'}. Export the last checkpoint (maskloom export) and start from it, with "
            f"model.init, in another run_dir with engine.precision=bf16 or a lower optimizer.lr (now {self.config.optimizer.lr})"
        )

    def _not_finite(self, step: int, buckets: list[MicroBatch], scale: float) -> str:
        """Which layer of which ranks is the first whose output or gradient is not finite, on every rank alike; or nothing."""
        found: str | None = None
        for number, bucket in enumerate(buckets):
            self._seed_dropout(step, number)
            found = found or find_overflow(self.engine.module, bucket, scale * (loss_scale(self.engine) or 1.0))
        places = gather_objects(found, self.world)
        return "; ".join(f"rank {rank}: {place}" for rank, place in enumerate(places) if place)

    def _check_positions(self, most: int) -> None:
        longest = max([phase.seq_len for phase in self.config.phases] + [self.config.evaluation_seq_len])
        if longest > most:
            raise UserError(f"a sequence length of {longest} is more than the model's {most} positions: lower seq_len")

    def _announce(self, origin: str) -> None:
        engine = self.config.engine
        say(origin)
        for corpus, index in zip(self.config.data.corpora, self.plan.corpora, strict=True):
            weight = f", weight {corpus.weight:g}" if len(self.plan.corpora) > 1 else ""
            say(
                f"corpus {index.folder}: {index.header['documents']:,} documents, "
                f"{index.header['text_bytes'] / 2**20:,.1f} MiB in {len(index.train_blocks):,} blocks{weight}"
            )
        say(f"lanes: {self.plan.lanes}")
        say(
            f"engine: {self.world.size} rank(s) on {self.device.type}, {engine.precision}, ZeRO {engine.zero_stage}, "
            f"{engine.kernels}, attention by {self.attention}, {torch.get_num_threads()} thread(s) a rank"
        )
        say(f"optimizer: {optimizer_title(self.engine)}, schedule {self.config.optimizer.schedule}")
        for number, (phase, layout) in enumerate(zip(self.config.phases, self.layouts, strict=True)):
            waste = f", {layout.waste:.1%} of the rows are filling" if layout.waste else ""
            say(
                f"phase {number}: {phase.steps:,} steps of {phase.global_batch_rows} rows of {phase.seq_len}, in "
                f"{layout.micro_batches} micro-batch(es) of {layout.micro_batch_rows} rows a rank{waste}"
            )
            if phase.batch_warmup:
                say(f"  its batch grows from {phase.batch_warmup.from_rows} rows in {phase.batch_warmup.steps:,} steps")
        if self.step:
            say(f"going on after step {self.step:,} of {self.plan.total_steps:,}")


def deepspeed_settings(config: RunConfig, plan: DataPlan, world: World, universal: bool = False) -> dict[str, Any]:
    """The DeepSpeed configuration of this run at this world size."""
    layouts = phase_layouts(config, plan, world)
    accumulates = any(layout.micro_batches > 1 for layout in layouts)
    return deepspeed_config(config, layouts[0].micro_batch_rows, accumulates, universal, world.size)


def phase_layouts(config: RunConfig, plan: DataPlan, world: World) -> list[Layout]:
    """How each phase's global batch, once it has grown, falls into micro-batches."""
    return [
        Layout.of(plan.lanes, planned.lane_rows, phase.micro_batch_rows, world)
        for phase, planned in zip(config.phases, plan.phases, strict=True)
    ]
