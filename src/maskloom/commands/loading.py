"""A model for the commands that need one: of a run, a folder with a Hugging Face checkpoint, or a name on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.models.build import build_defined
from maskloom.models.description import check_description, read_tree
from maskloom.models.foreign import check_rows, lacking, load_foreign, tokenizer_beside
from maskloom.models.freezing import FROZEN
from maskloom.models.masked_lm import MaskedLM
from maskloom.models.warm_start import folder_of, load_checkpoint, open_checkpoint
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import HUB_NAME, load_tokenizer
from maskloom.train.checkpoint import Which, read_state, saved_at, tokenizing_of
from maskloom.train.checkpoint.fit import split_origin
from maskloom.train.engine.files import full_precision_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedRun:
    """`tokenizing` is the version with which the run reads text."""

    config: RunConfig
    tokenizer: Tokenizer
    model: MaskedLM
    weights: dict[str, torch.Tensor]
    step: int
    tokenizing: int


def load_run(run: Path, step: Which, overrides: Sequence[str] = ()) -> LoadedRun:
    """The model of a run in fp32 and evaluation mode, from a checkpoint: `saved_at`."""
    folder = saved_at(run, step)
    config = load_config(run / "config.yaml", overrides)
    tokenizer = load_tokenizer(run / "model")
    state = read_state(folder)
    model = build_defined(run / "model", changes=config.model_at(state.step))
    if config.model.freeze and not (run / "model" / FROZEN).exists():
        raise UserError(
            f"{run / 'model' / FROZEN} is missing: it holds the weights that the run did not train. Restore it"
        )
    weights = full_precision_weights(folder)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} does not fit {run / 'model' / 'config.json'}: {error}") from None
    return LoadedRun(config, tokenizer, model.eval(), weights, state.step, tokenizing_of(state.fingerprint))


def plain_model(loaded: LoadedRun) -> PreTrainedModel:
    """Hugging Face's own model with the run's weights."""
    architecture = loaded.model.architecture
    model = architecture.hf_class(architecture.written(loaded.model.config))
    model.load_state_dict(loaded.weights)
    return model.eval()


@dataclass(frozen=True)
class LoadedPlain:
    """Hugging Face's own model, in fp32 and not for training.

    Attributes:
        source: as it was named, with the step of a run.
        step: of a run; None if it is not one.
    """

    source: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    step: int | None = None


def load_plain(source: str | Path, step: Which = None) -> tuple[PreTrainedModel, Tokenizer]:
    """The model and the tokenizer that `load_named` gives."""
    found = load_named(str(source), step)
    return found.model, found.tokenizer


def load_named(source: str, step: Which = None, takes_any: bool = False) -> LoadedPlain:
    """The masked language model that a user names.

    Args:
        source: a run directory, RUN@STEP or RUN@best. A folder with a Hugging Face checkpoint and its tokenizer. A name on
            the Hub, or NAME@REVISION.
        step: of a run, if `source` does not say it. Left out: its newest whole checkpoint.
        takes_any: also models that maskloom does not train.

    Raises:
        UserError: it cannot be had, is of another kind, lacks its head, or does not fit its tokenizer.
    """
    if is_run(source):
        run, step = run_and_step(source, step)
        loaded = load_run(run, step)
        return LoadedPlain(f"{run} at step {loaded.step:,}", plain_model(loaded), loaded.tokenizer, loaded.step)
    if step is not None:
        raise UserError(f"--step is for a run, and {source} is not a run: it has no config.yaml")
    folder = checkpoint_folder(source)
    if takes_any and not is_computed(folder, source):
        model = load_foreign(folder, source)
    else:
        model, missing, _ = load_checkpoint(open_checkpoint(str(folder), source))
        if missing:
            raise lacking(source, type(model).__name__, sorted(missing))
    tokenizer = tokenizer_beside(folder, source)
    check_rows(model, tokenizer, source)
    return LoadedPlain(source, model.eval(), tokenizer)


def device() -> torch.device:
    """What commands compute on: this machine's GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_run(source: str) -> bool:
    """Whether a name stands for a run, RUN or RUN@STEP."""
    return (run_and_step(source)[0] / "config.yaml").is_file()


def run_and_step(source: str, step: Which = None) -> tuple[Path, Which]:
    """`RUN@1000` -> (RUN, 1000), `RUN@best` -> (RUN, "best"); `RUN` -> (RUN, `step`)."""
    run, own = (Path(source), None) if Path(source).is_dir() else split_origin(source)
    return run, step if own is None else own


def checkpoint_folder(source: str) -> Path:
    """The folder with a config.json that a name stands for, fetched from the Hub if there is none here."""
    path = Path(source)
    if (path / "config.json").is_file():
        return path
    name, at, revision = source.partition("@")
    if path.exists() or not HUB_NAME.fullmatch(name):
        raise UserError(
            f"{source} is neither a run directory nor a Hugging Face checkpoint: no config.yaml or config.json"
        )
    return folder_of(name, source, revision if at else None)


def is_computed(folder: Path, source: str) -> bool:
    """Whether a checkpoint is of an architecture of ours, and asks for what our forward computes."""
    try:
        check_description(read_tree(folder, source), source)
    except UserError:
        return False
    return True
