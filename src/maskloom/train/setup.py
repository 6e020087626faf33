"""What makes a run ready to train, top to bottom: config -> data plan -> model -> engine -> state.

`prepare` checks and derives all that needs no rank of its own. `set_up` then makes the `Trainer` of a rank: it looks for a
checkpoint, builds model and engine, and restores the state, or begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from maskloom.config import Evaluation, Optimizer, Phase, RewarmUp, RunConfig
from maskloom.config_file import load_config, rechecked
from maskloom.data.batch import Layout
from maskloom.data.cursors import first_cursors
from maskloom.data.identity import identity
from maskloom.data.index.corpus import Index
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.skew import notes_on_run
from maskloom.distributed import World, gather_objects, sum_over_ranks
from maskloom.errors import UserError
from maskloom.models.attention import settle_attention
from maskloom.models.build import build_defined, build_model
from maskloom.models.flops import DTYPES, Shape, peak_of
from maskloom.models.freezing import freeze, frozen_note, frozen_weights, load_frozen
from maskloom.models.masked_lm import MaskedLM, attention_dropout_of, head_size_of
from maskloom.models.warm_start import tokenizer_of
from maskloom.processes import temporary_folder
from maskloom.progress import say, size, tokens, warn
from maskloom.train import checkpoint, reporters
from maskloom.train.checkpoint.fit import stored_tokenizing
from maskloom.train.encoder_probe import read_labelled
from maskloom.train.engine.configuration import deepspeed_config
from maskloom.train.engine.device import device_of, numerics_title, resolve_kernels, resolve_precision
from maskloom.train.engine.engine import Engine
from maskloom.train.held_out import HeldOut
from maskloom.train.rank.heartbeats import Pulse
from maskloom.train.rank.notices import Notices
from maskloom.train.refusal import GuardState, PassedOver, jumps, known, read_intervals
from maskloom.train.resume import check_model, reconcile
from maskloom.train.sentences import read_sentences
from maskloom.train.skipped import Skipped
from maskloom.train.tally import Tally
from maskloom.train.timing import OwnTime, Traffic
from maskloom.train.trainer import Trainer

Found = tuple[Path, checkpoint.State]
"""A checkpoint: its folder, and what its data.json says."""


# config -> data plan


def prepare(config: RunConfig, world: World) -> tuple[RunConfig, DataPlan]:
    """Check everything that can be checked without starting: a run that begins should not fail on its input.

    Returns:
        the configuration with what was derived (lanes, precision, kernels) filled in, and the plan of its data.
    """
    temporary_folder()
    tokenizer, corpora = tokenizer_of(config.tokenizer, config.model.init), open_corpora(config.data)
    config = reconcile(config, identity(corpora, tokenizer))
    run = Path(config.run_dir)
    described = check_model(run, config.from_, config.model, tokenizer, config.seq_lens)
    plan = DataPlan.of(
        config.data,
        config.phases,
        config.masking,
        config.seed,
        corpora,
        tokenizer,
        stored_tokenizing(run, config.from_),
    )
    plan.check_world(world)
    for note in notes_on_run(plan) if world.is_first else ():
        warn(note)
    if config.evaluation.every_steps:
        evaluation = checked_evaluation(config.evaluation, plan.corpora, world, config.needs_evaluation)
        config = config.model_copy(update={"evaluation": evaluation})
        read_sentences(config.evaluation_filled, tokenizer)
    reporters.check(config.logging.reporters, world)
    device_of(world)
    data = config.data.model_copy(update={"lanes": plan.lanes})
    engine = {
        "precision": resolve_precision(config.engine.precision),
        "kernels": resolve_kernels(config.engine.kernels, described.hidden_size),
    }
    config = config.model_copy(update={"data": data, "engine": config.engine.model_copy(update=engine)})
    config = rechecked(config, config.run_dir)
    deepspeed_settings(config, plan, world)
    return config, plan


def checked_evaluation(
    evaluation: Evaluation, corpora: Sequence[Index], world: World, needed_by: Sequence[str] = ()
) -> Evaluation:
    """The evaluation, switched off if no corpus has a held-out document. Warns of each corpus that has none.

    Args:
        needed_by: settings that mean nothing without evaluations.

    Raises:
        UserError: it would be switched off, and a setting needs it.
    """
    empty = [index.folder for index in corpora if not len(index.held_out_blocks)]
    if world.is_first and len(corpora) > 1:
        for folder in empty:
            warn(f"no held-out documents in {folder}: the evaluation says nothing about it")
    if len(empty) < len(corpora):
        return evaluation
    if needed_by:
        raise UserError(
            f"no held-out documents in {', '.join(empty)}, and {needed_by[0]} needs evaluations: write the corpus with a larger "
            f"--val-fraction, or leave out {' and '.join(needed_by)}"
        )
    if world.is_first:
        warn(f"no held-out documents in {', '.join(empty)}: no evaluation (see --val-fraction)")
    return evaluation.model_copy(update={"every_steps": 0})


def deepspeed_settings(config: RunConfig, plan: DataPlan, world: World) -> dict[str, object]:
    """The DeepSpeed configuration of this run at this world size."""
    layouts = phase_layouts(config.phases, plan, world)
    accumulates = any(layout.micro_batches > 1 for layout in layouts)
    sections = config.engine, config.optimizer, config.deepspeed
    return deepspeed_config(*sections, layouts[0].micro_batch_rows, accumulates, world.size)


def phase_layouts(phases: Sequence[Phase], plan: DataPlan, world: World) -> list[Layout]:
    """How each phase's global batch, once it has grown, falls into micro-batches."""
    return [
        Layout.of(plan.lanes, planned.lane_rows, phase.micro_batch_rows, world)
        for phase, planned in zip(phases, plan.phases, strict=True)
    ]


# data plan -> model -> engine -> state


def set_up(
    config: RunConfig, plan: DataPlan, world: World, traffic: Traffic, pulse: Pulse
) -> tuple[Trainer, float | None]:
    """Make this rank's part of a run, from its newest checkpoint if it has one. Every rank calls it.

    Args:
        config, plan: what `prepare` gives.
        traffic: what `start_distributed` gives.

    Returns:
        the trainer, and the peak FLOP/s of all ranks' devices together, None if it is not known.
    """
    run, device, notices = Path(config.run_dir), device_of(world), Notices()
    saver = checkpoint.Saver(run, config.checkpoint, world, notices)
    time = OwnTime(traffic, world, device)
    labelled = read_labelled(config.evaluation.probe, world)
    sentences = read_sentences(config.evaluation_filled, plan.tokenizer)
    found = checkpoint.find(run, world)
    intervals = _intervals_of(run, world)
    if found is None and config.from_ is not None:
        found = checkpoint.find_origin(str(config.from_), world)
        config = config.model_copy(update={"from_": checkpoint.origin_of(*found)})
    if found:
        intervals = known(found[1].intervals(), found[1].step, intervals)
    layouts = phase_layouts(config.phases, plan, world)
    trainer = Trainer(config, world, device, layouts, pulse, notices, saver, time, intervals, plan, labelled, sentences)
    origin = restore(trainer, found)

    described, precision = trainer.engine.model.config, resolve_precision(config.engine.precision)
    dropout = attention_dropout_of(described)
    lengths = [(phase.seq_len, window) for phase in config.phases for window in trainer.shape.distinct_windows]
    attention = settle_attention(device, head_size_of(described), DTYPES[precision], dropout, lengths)
    peak = peak_of(device, precision, config.logging.peak_tflops)
    own_flops = peak.flops if peak else math.nan  # which makes the sum unknown as well
    flops = float(sum_over_ranks(torch.tensor(own_flops, dtype=torch.float64, device=device)))
    peak_flops = flops if math.isfinite(flops) else None
    if world.is_first:
        announce(trainer, origin, attention)
        if peak and peak_flops:
            say(f"peak: {peak_flops / world.size / 1e12:,.3g} TFLOP/s a rank ({peak.origin})")
    return trainer, peak_flops


def restore(trainer: Trainer, found: Found | None) -> str:
    """Put the trainer where a checkpoint was written, or at the beginning of the run. Every rank calls it.

    Returns:
        where the weights are from, in words.

    Raises:
        UserError: the checkpoint does not fit the run, or has all its steps already.
    """
    config, world = trainer.config, trainer.world
    plan = trainer.plan
    plan = trainer.plan = replace(plan, jumps=jumps(trainer.passed_over, plan.lanes, len(plan.corpora)))
    model, origin = _model_of(trainer, found)
    settings = deepspeed_settings(config, plan, world)
    frozen = frozen_note(model, config.model.freeze)
    engine = trainer.engine = Engine(model, config.engine, config.optimizer, settings, world)
    trainer.shape = Shape.of(model.config)
    state = found[1] if found else None
    if found and state:
        same_spread = (state.zero_stage, state.world_size) == (config.engine.zero_stage, world.size)
        if not same_spread:
            origin += f", which {state.world_size} rank(s) wrote at ZeRO stage {state.zero_stage}"
        engine.load(found[0], same_spread, state.precision == config.engine.precision)
    trainer.step = trainer.pulse.step = state.step if state else 0
    trainer.set_model(trainer.step)
    trainer.cursors = state.lane_cursors() if state else first_cursors(plan.lanes, len(plan.corpora))
    trainer.guard = state.guard_state() if state else GuardState()
    trainer.saver.look()
    trainer.held_out = held_out_of(trainer, state)
    skipped, max_bad_share = state.skipped if state else 0, config.data.max_bad_share
    trainer.skipped = Skipped(trainer.run, plan, trainer.step, skipped, max_bad_share, world)
    trainer.tally = Tally(state.tokens_seen if state else 0, trainer.device, len(trainer.shape.windows))
    return origin + frozen


def _model_of(trainer: Trainer, found: Found | None) -> tuple[MaskedLM, str]:
    """The model that the checkpoint fits, with weights only if the run begins; and where its weights are from, in words."""
    config, plan = trainer.config, trainer.plan
    trainer.saver.last_good = None
    if found is None:
        model, origin = build_model(config.model, plan.tokenizer, config.seed)
        freeze(model, config.model.freeze)
        trainer.frozen = frozen_weights(model) if trainer.world.is_first else {}
        return model, origin
    folder, state = found
    is_fork = folder.parents[1] != trainer.run
    if is_fork and state.step >= plan.total_steps:
        raise UserError(
            f"from {folder} there is nothing to do: it has all {plan.total_steps:,} steps. Set more in phases"
        )
    checkpoint.check_fits(state, plan, None if is_fork else str(config.engine.precision), folder)
    described = folder.parents[1] / "model"
    if is_fork:
        changes = load_config(folder.parents[1] / "config.yaml").model_at(state.step)
        model, origin = build_defined(described, config.model, changes), f"begun from {folder}"
    else:
        trainer.saver.last_good = folder.name
        model, origin = build_defined(described), f"resumed from {folder}"
    freeze(model, config.model.freeze)
    load_frozen(model, described)
    trainer.frozen = frozen_weights(model) if trainer.world.is_first and is_fork else {}
    return model, origin


def held_out_of(trainer: Trainer, state: checkpoint.State | None) -> HeldOut:
    """The evaluations that a run's own checkpoint knows of. Those of a fork's origin may be of another evaluation."""
    total_steps = trainer.plan.total_steps
    new = HeldOut.of(trainer.config.evaluation_filled, total_steps)
    saved = state.evaluations() if state and trainer.saver.last_good else None
    if saved is None:
        return new
    if saved.compares(new):
        return saved.resumed(trainer.step, total_steps)
    if trainer.world.is_first:
        warn(
            f"evaluations had {saved.seq_len} slots a row and mask rate {saved.mask_rate:g} before, and have {new.seq_len} and "
            f"{new.mask_rate:g} now: which loss is the lowest is found out anew"
        )
    return new


def _intervals_of(run: Path, world: World) -> list[PassedOver]:
    """The data that the run skipped, as the first rank reads its file."""
    mine = [interval.to_json() for interval in read_intervals(run)] if world.is_first else []
    return [PassedOver.from_json(values) for values in gather_objects(mine, world)[0]]


def _lengths(schedule: Optimizer | RewarmUp) -> str:
    """The steps of the parts of a schedule that are given, or follow from tokens."""
    parts = (("warm-up", schedule.warmup_steps), ("decay", schedule.decay_steps))
    return "".join(f", {name} {steps:,} steps" for name, steps in parts if steps)


def announce(trainer: Trainer, origin: str, attention: str) -> None:
    """Say what is about to be trained, and with what.

    Args:
        origin: where the weights are from.
        attention: which implementation was taken, and why.
    """
    config, plan = trainer.config, trainer.plan
    say(origin)
    for corpus, index in zip(config.data.corpora, plan.corpora, strict=True):
        weight = f", weight {corpus.weight:g}" if len(plan.corpora) > 1 else ""
        say(
            f"corpus {index.folder}: {index.header['documents']:,} documents, "
            f"{size(index.header['text_bytes'])} in {len(index.train_blocks):,} blocks{weight}"
        )
    say(f"lanes: {plan.lanes}")
    engine, device = config.engine, trainer.device.type
    say(
        f"engine: {trainer.world.size} rank(s) on {device}, {engine.precision}, ZeRO {engine.zero_stage}, "
        f"kernels {engine.kernels}, {numerics_title(device, engine.precision)}"
        f"{torch.get_num_threads()} thread(s) a rank"
    )
    say(f"attention: {attention}")
    say(
        f"optimizer: {trainer.engine.optimizer_title()}, schedule {config.optimizer.schedule}{_lengths(config.optimizer)}"
    )
    if trainer.labelled:
        say(f"probe: {trainer.labelled.title}")
    for number, (phase, layout) in enumerate(zip(config.phases, trainer.layouts, strict=True)):
        waste = f", {layout.waste:.1%} of the rows are filling" if layout.waste else ""
        say(
            f"phase {number}: {phase.steps:,} steps of {phase.global_batch_rows} rows of {phase.seq_len}, in "
            f"{layout.micro_batches} micro-batch(es) of {layout.micro_batch_rows} rows a rank{waste}; "
            f"{tokens(plan.phases[number].rows_before(phase.steps) * plan.lanes * phase.seq_len)} token slots in all"
        )
        if phase.batch_warmup:
            say(f"  its batch grows from {phase.batch_warmup.from_rows} rows in {phase.batch_warmup.steps:,} steps")
        if phase.rewarm_up:
            again = phase.rewarm_up
            shape = f", {again.schedule}" if again.schedule else ""
            say(f"  a learning rate of its own: {again.lr:g}{shape}{_lengths(again)}")
        for name, value in phase.changes_of_model.items():
            say(f"  {name} is {value:,g} from here on")
    if trainer.step == plan.total_steps:
        say(f"all {trainer.step:,} steps are done: raise phases.N.steps of the last phase, or add a phase, to train on")
    elif trainer.step:
        say(f"resuming after step {trainer.step:,} of {plan.total_steps:,}")
