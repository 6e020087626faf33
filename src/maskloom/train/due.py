"""What is due after a step: a logged line, an evaluation, a checkpoint. The loop calls these by name."""

from __future__ import annotations

import torch

from maskloom.data.batch import MicroBatch
from maskloom.data.masking import MaskRule
from maskloom.distributed import gather_objects
from maskloom.train import checkpoint
from maskloom.train.encoder_probe import probe_encoder
from maskloom.train.evaluation import evaluate
from maskloom.train.metrics import Metrics, largest_memory_peaks
from maskloom.train.recovery import count_not_finite, diverged
from maskloom.train.refusal import behind
from maskloom.train.sentences import Filled, fill
from maskloom.train.step import StepResult
from maskloom.train.trainer import Trainer


def is_due(step: int, every_steps: int, last: int) -> bool:
    """Whether something is due after `step`, that is due every so many steps (0: never) and after the last one."""
    return step == last or (every_steps > 0 and step % every_steps == 0)


def evaluation_is_due(trainer: Trainer) -> bool:
    every_steps = trainer.config.evaluation.every_steps
    return every_steps > 0 and is_due(trainer.step, every_steps, trainer.plan.total_steps)


def log_step(trainer: Trainer, result: StepResult, metrics: Metrics) -> None:
    """Log a line of the step, and of the steps since the line before. Every rank calls it. It reads the device."""
    spent = trainer.time.take()
    loss_mean, work = trainer.tally.take(trainer.shape)
    trainer.skipped.settle(trainer.my_cursors())
    values: dict[str, float] = {
        "loss": result.loss,
        "loss_mean": result.loss if loss_mean is None else loss_mean,
        "accuracy": result.accuracy,
        "lr": result.lr,
        "grad_norm": float(result.norm),
        "bad_steps": trainer.bad_steps,
        "rollbacks": len(behind(trainer.passed_over, trainer.step)),
    }
    if trainer.plan.skips_bad:
        values["skipped_blocks"] = trainer.skipped.count
    if trainer.engine.loss_scale is not None:
        values |= {"loss_scale": trainer.engine.loss_scale, "skipped_steps": trainer.engine.skipped_steps}
    values |= largest_memory_peaks(trainer.device) | trainer.time.values(spent)
    trainer.time.mark()
    metrics.log_step(result.step, trainer.tokens_seen(), values, work)


def evaluate_run(trainer: Trainer) -> dict[str, float]:
    """Held-out figures, the same on every rank; every rank calls it."""
    plan, settings = trainer.plan, trainer.config.evaluation_filled

    def forward(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        trainer.pulse.tick("evaluate")
        return trainer.engine(batch)

    with trainer.time.paused():
        trainer.engine.eval()
        rule = MaskRule.held_out(plan.masking, settings.mask_rate, plan.tokenizer)
        figures = evaluate(
            forward, plan.corpora, plan.tokenizer, settings, rule, trainer.device, trainer.world, plan.skips_bad
        )
        if trainer.labelled and probe_is_due(trainer):
            figures |= probe_encoder(
                trainer.engine.model, plan.tokenizer, trainer.labelled, settings, trainer.world, trainer.pulse
            )
    return figures


def fill_sentences(trainer: Trainer) -> list[Filled]:
    """What the model makes of `evaluation.sentences`, the same on every rank; every rank calls it."""
    if trainer.sentences is None:
        return []

    def logits_of(batch: MicroBatch) -> torch.Tensor:
        trainer.pulse.tick("evaluate")
        return trainer.engine.model.masked_logits(batch)

    with trainer.time.paused():
        trainer.engine.eval()
        settings = trainer.config.evaluation_filled
        return fill(logits_of, trainer.sentences, trainer.plan.tokenizer, settings, trainer.device)


def probe_is_due(trainer: Trainer) -> bool:
    """With an evaluation: each, or those at multiples of `probe.every_steps`, the first and the last."""
    probe = trainer.config.evaluation.probe
    every_steps = probe.every_steps if probe else None
    begins = trainer.saver.last_good is None and not trainer.held_out.evaluated
    return begins or every_steps is None or is_due(trainer.step, every_steps, trainer.plan.total_steps)


def log_evaluation(trainer: Trainer, metrics: Metrics, is_logged: bool = False) -> None:
    """Evaluate, and remember the loss. Every rank calls it. `is_logged`: an attempt before has logged the same figures."""
    figures = evaluate_run(trainer)
    filled = fill_sentences(trainer)
    if not is_logged:
        metrics.log_evaluation(trainer.step, figures)
        metrics.show_filled(trainer.step, filled)
    if "evaluation_loss" in figures:
        trainer.held_out = trainer.held_out.with_loss(trainer.step, figures["evaluation_loss"])


def catch_up(trainer: Trainer, metrics: Metrics) -> None:
    """Evaluate where the run stands, if it should have been and was not. So it is before the first step. Later a stop may have
    left it out. Every rank calls it."""
    begins = trainer.saver.last_good is None
    if not (begins and trainer.config.evaluation.every_steps) and not evaluation_is_due(trainer):
        return
    is_logged = gather_objects(metrics.has_evaluation(trainer.step), trainer.world)[0]
    if not is_logged or not trainer.held_out.has(trainer.step):
        log_evaluation(trainer, metrics, is_logged)


def is_new_best(trainer: Trainer) -> bool:
    """Whether the evaluation of this step makes a checkpoint due: its loss is lower than that of every checkpoint."""
    return trainer.config.checkpoint.keep_best and trainer.held_out.is_lower(trainer.step, trainer.saver.steps)


AFTER_EARLY = (
    "To train on, raise evaluation.patience or the steps of the last phase, and start the same command. If not: maskloom eval "
    "{run} --best; maskloom export {run} MODEL --best"
)


def why_early(trainer: Trainer) -> str:
    """Why the run ends before its last step, in words; empty if it does not."""
    if not trainer.ends_early:
        return ""
    settings = trainer.config.evaluation
    lowest, _ = trainer.held_out.waited(settings.min_delta)
    than = f"that of step {lowest.step:,} ({lowest.loss:.4f})" if lowest else "infinity"
    delta = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
    return (
        f"stopped early: in {settings.patience:,} evaluations the held-out loss was not lower than {than}{delta}. The "
        "schedule of the learning rate was not finished"
    )


def save(trainer: Trainer) -> None:
    """Begin to write a checkpoint; every rank calls it. `trainer.saver.finish` waits for it.

    Raises:
        SaveFailed: too many in a row could not be written.
        UserError: a weight of any rank is not finite: such weights are never saved.
    """
    config, plan = trainer.config, trainer.plan
    with trainer.time.paused():
        if count := count_not_finite(trainer.engine, trainer.device):
            said = f"{count:,} weights are not finite after step {trainer.step}, which was not saved"
            raise diverged(said, config.optimizer.lr, config.engine.precision)
        trainer.skipped.settle(trainer.my_cursors())
        trainer.gather_cursors()
        state = checkpoint.State(
            trainer.step,
            trainer.tokens_seen(),
            [[cursor.to_json() for cursor in lane] for lane in trainer.cursors],
            trainer.skipped.count,
            checkpoint.fingerprint(plan),
            trainer.world.size,
            config.engine.zero_stage,
            str(config.engine.precision),
            trainer.guard.to_json(),
            [interval.to_json() for interval in behind(trainer.passed_over, trainer.step)],
            trainer.held_out.to_json(),
        )
        trainer.saver.start(trainer.engine, state)
