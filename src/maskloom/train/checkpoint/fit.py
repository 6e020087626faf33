"""What may differ between a checkpoint and the run that resumes or forks from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from maskloom.config import RunConfig
from maskloom.config_file import differences, load_config
from maskloom.data.identity import TOKENIZING, fingerprint, tokenizing_of, unlike
from maskloom.data.plan import DataPlan
from maskloom.errors import UserError
from maskloom.train.checkpoint.state import State, Which, read_state, saved_folders

STEP = re.compile(r"[0-9]{1,16}")
FORK_KEEPS = re.compile(r"optimizer\.name|data\.lanes|model\.freeze")
"""What a run that begins with another's checkpoint has to leave as it is, beside its tokenizer, corpora and model."""


def check_fits(state: State, plan: DataPlan, precision: str | None, folder: Path) -> None:
    """Raises UserError listing what of the run is not what the checkpoint was written with.

    Args:
        precision: of the run; None for one that may have another.
    """
    written = {**state.fingerprint, TOKENIZING: tokenizing_of(state.fingerprint)}
    wrong = unlike(written, fingerprint(plan), "in the checkpoint")
    if any("version of" in line for line in wrong):
        wrong.append(
            "  (this maskloom reads other rows from the same data: resume with the version that wrote the checkpoint)"
        )
    corpora, lanes = len(plan.corpora), plan.lanes
    if not wrong and [len(lane) for lane in state.cursors] != [corpora] * lanes:
        wrong.append(f"  cursors: it does not say where each of {lanes} lanes stands in each of {corpora} corpora")
    if precision is not None and state.precision != precision:
        wrong.append(f"  engine.precision: {state.precision} in the checkpoint, {precision} now")
    if state.step > plan.total_steps:
        wrong.append(f"  steps: {state.step} done in the checkpoint, {plan.total_steps} in all now")
    if wrong:
        raise UserError(
            f"{folder} does not fit this run:\n"
            + "\n".join(wrong)
            + "\nSet these back, or start a new run in another run_dir"
        )


def unlike_data(run: Path, data: Mapping[str, object], where: str) -> list[str]:
    """`unlike` of the tokenizer and the corpora that a run's checkpoints were written with, and of `identity`'s."""
    stored = _stored_fingerprint(run)
    return (
        unlike({key: stored[key] for key in stored if key.partition(" ")[0] in ("corpus", "tokenizer")}, data, where)
        if stored
        else []
    )


def _stored_fingerprint(run: Path) -> dict[str, object]:
    """What the data of a run's checkpoints follows from; empty if it has none that can be read."""
    for folder in saved_folders(run):
        try:
            return read_state(folder).fingerprint
        except (OSError, UserError):
            continue  # damaged: `find` says so
    return {}


def stored_tokenizing(run: Path, origin: str | None = None) -> int | None:
    """The version of tokenizing that a run, or else the one that it begins from, reads text with; None without one."""
    stored = _stored_fingerprint(run) or (_stored_fingerprint(split_origin(origin)[0]) if origin else {})
    return tokenizing_of(stored) if stored else None


def split_origin(origin: str) -> tuple[Path, Which]:
    """`RUN@1000` -> (RUN, 1000); `RUN@best` -> (RUN, "best"); `RUN` -> (RUN, None): its newest checkpoint."""
    run, at, step = origin.rpartition("@")
    if at and step == "best":
        return Path(run), "best"
    return (Path(run), int(step)) if at and STEP.fullmatch(step) else (Path(origin), None)


def fit_origin(config: RunConfig, data: Mapping[str, object]) -> RunConfig:
    """The configuration of a run that begins with another's checkpoint, with that run's lanes if it gives none.

    Args:
        data: what `identity` gives for the run's tokenizer and corpora.

    Raises:
        UserError: listing everything that differs and may not.
    """
    assert config.from_ is not None
    run, step = split_origin(config.from_)
    if not (run / "config.yaml").exists():
        raise UserError(f"from={config.from_}: {run} is not a run (no config.yaml); give RUN, RUN@best or RUN@step")
    if run.resolve() == Path(config.run_dir).resolve():
        raise UserError(
            f"from={config.from_} is run_dir itself: leave `from` out, and the run resumes from its own checkpoints"
        )
    saved = load_config(run / "config.yaml")
    if config.data.lanes is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"lanes": saved.data.lanes})})
    found = differences(saved.model_dump(mode="json"), config.model_dump(mode="json"))
    kept = {
        f"model.{name}" for model in (saved.model, config.model) for name in {"architecture", *model.shape_fields()}
    }
    wrong = [
        f"  {key}: {old!r} in {run}, {new!r} now"
        for key, (old, new) in found.items()
        if FORK_KEEPS.fullmatch(key) or key in kept
    ]
    wrong += unlike_data(run, data, f"in {run}")
    if isinstance(step, int) and step > config.total_steps:
        wrong.append(f"  steps: {step} done in {config.from_}, {config.total_steps} in all now (they are counted on)")
    if wrong:
        raise UserError(
            f"cannot fork from {config.from_}: these settings differ, and may not:\n"
            + "\n".join(wrong)
            + "\nSet these back; what else differs (learning rate, schedule, further phases, masking, seed, ...) may. "
            "To take the weights alone, write them with `maskloom export` and set model.init to that folder"
        )
    return config


def origin_of(folder: Path, state: State) -> str:
    """How `from` names a checkpoint."""
    return f"{folder.parents[1]}@{state.step}"


def is_same_origin(saved: str | None, given: str | None) -> bool:
    """Whether `given` names the checkpoint that a run began with, or nothing else."""
    if given is None or given == saved:
        return True
    run, step = split_origin(given)
    return saved is not None and not isinstance(step, int) and run == split_origin(saved)[0]
