"""One optimizer step: where a batch becomes a loss, and a loss becomes new weights.

    rows of this rank -> micro-batches -> sums of losses -> / predicted tokens of all ranks -> backward -> optimizer
                                                          |
                                     a loss that the guard refuses makes the last backward NaN

A micro-batch's sum of losses is the model's own: `MaskedLM.forward` in models/masked_lm.py. `train_step` divides and adds up.

The host reads one thing from the device: the loss, after it gave the device the last backward. All else that it reads, the
optimizer reads (`tests/integration/waits.json` lists every place).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from maskloom.data.batch import to_device, to_host
from maskloom.distributed import sum_over_ranks
from maskloom.optim.schedule import learning_rate
from maskloom.progress import warn
from maskloom.train.batches import ReadyStep
from maskloom.train.engine.engine import Engine, LossScaleCollapsed
from maskloom.train.rank.notices import NAMES, Heard
from maskloom.train.recovery import collapsed, first_not_finite
from maskloom.train.refusal import NOT_FINITE, after_step, highest_loss, why_refused
from maskloom.train.trainer import Trainer


@dataclass(frozen=True)
class StepResult:
    """What became of a step, the same on every rank.

    Attributes:
        step: optimizer steps done, this one included.
        loss: mean over the predicted tokens of the global batch, in nats.
        accuracy: share of the predicted tokens that the model had right.
        lr: learning rate of the step.
        norm: of the global gradient before clipping; on a GPU still on the device: `float` waits for it.
        counts: int64 [3 + W] on the device, of the global batch; what `tally.counts_of` counts.
        refusal: why the step was not taken, None if it was. An overflow of fp16 is not a refusal.
        heard: what ranks told each other as the step began; on a GPU `read` waits for a copy made then.
    """

    step: int
    loss: float
    accuracy: float
    lr: float
    norm: torch.Tensor | float
    counts: torch.Tensor
    refusal: str | None
    heard: Heard

    @property
    def must_stop(self) -> bool:
        """Whether any rank was asked to stop, before its step began."""
        return self.heard.read()["stop"] > 0


def train_step(batch: ReadyStep, trainer: Trainer, engine: Engine) -> StepResult:
    """Take one optimizer step on this rank's rows of a global batch, and move `trainer` on. Every rank calls it.

    Raises:
        UserError: fp16 gradients overflow although the loss scale is at its minimum.
    """
    config, world, time = trainer.config, trainer.world, trainer.time
    engine.train()
    trainer.set_model(batch.number + 1)
    time.traffic.begin_step()
    micro_batches = [micro_batch.to(trainer.device) for micro_batch in batch.micro_batches]

    # One all-reduce for all that ranks have to know of each other before the step: what their rows hold, and their notices.
    said = torch.cat([batch.counts, trainer.notices.said()])
    said = time.waiting(sum_over_ranks, to_device(said, trainer.device))
    counts, heard = said[: -len(NAMES)], trainer.notices.hear(said[-len(NAMES) :])

    # A micro-batch gives a sum of losses, not a mean: micro-batches and ranks hold different numbers of predicted tokens, and
    # each token is to weigh the same. The engine averages gradients over the ranks. So each sum is multiplied by
    # ranks / tokens: the gradient is then that of the mean over the global batch, for any number of ranks and micro-batches.
    predicted = counts[0].clamp(min=1)
    scale = world.size / predicted
    phase = trainer.plan.phase_of(batch.number)
    highest = highest_loss(trainer.guard, config.guard, phase)
    sums = torch.zeros(2, dtype=torch.float64, device=trainer.device)  # of losses, of predictions that are right
    with engine.accumulating(len(micro_batches)) as backward:
        for number, micro_batch in enumerate(micro_batches):
            trainer.pulse.tick("compute")
            trainer.seed_dropout(batch.number, number)
            loss_sum, hits = engine(micro_batch)
            sums += torch.stack([loss_sum.detach().double(), hits.double()])
            factor = scale
            if number == len(micro_batches) - 1:
                # All losses are known before the last backward. If the guard refuses their mean, this backward becomes NaN,
                # and the optimizer drops the step as it drops an overflow. The device decides: the host waits for nothing.
                mean = time.waiting(sum_over_ranks, sums)[0] / predicted
                factor = torch.where(mean <= highest, scale, torch.nan)
                read = to_host(torch.stack([mean, sums[1] / predicted]))
            backward(loss_sum * factor)

    trainer.pulse.tick("update")
    lr = learning_rate(batch.number + 1, config.optimizer, config.schedules)
    loss, accuracy = read()  # the one wait: whether the step is taken is the host's to know
    refusal = why_refused(loss, highest)
    try:
        norm, is_taken = engine.step(lr, refusal is not None, config.clipping_in(phase))
    except LossScaleCollapsed:
        seed_dropout = functools.partial(trainer.seed_dropout, batch.number)
        where = first_not_finite(engine, micro_batches, seed_dropout, scale, world)
        raise collapsed(batch.number + 1, where, config.optimizer.lr, config.run_dir, trainer.saver.last_good) from None
    if not is_taken and not engine.adapts_loss_scale:
        refusal = refusal or NOT_FINITE
    time.traffic.end_step()

    slots = world.size * sum(len(micro_batch.input_ids) for micro_batch in micro_batches)
    trainer.tally.add(counts, slots, sums[0] if refusal is None else None)
    result = StepResult(batch.number + 1, loss, accuracy, lr, norm, counts, refusal, heard)
    _move_on(trainer, batch, phase, result)
    return result


def _move_on(trainer: Trainer, batch: ReadyStep, phase: int, result: StepResult) -> None:
    """Stand behind a step, whether it was taken or refused: its rows are seen either way."""
    trainer.step = result.step
    trainer.pulse.stepped(result.step)
    trainer.guard = after_step(trainer.guard, trainer.config.guard, phase, result.loss, is_taken=result.refusal is None)
    if result.refusal and trainer.world.is_first:
        warn(f"step {result.step:,} was not taken: {result.refusal} ({trainer.guard.in_a_row} in a row)")
    for lane, cursors in batch.cursors.items():
        trainer.cursors[lane] = cursors
    trainer.skipped.add(result.step, batch.skips)
