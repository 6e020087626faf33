"""Resume a run, or begin one from another: which settings may differ from those that it began with.

    `reconcile`    RUN/config.yaml and the settings given -> the configuration to run with, or an error that lists all differences
    `check_model`  RUN/model, or the model of the run that it begins from -> can it be trained with these settings?

Whether a checkpoint fits the data and the model, `checkpoint/fit.py` decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from maskloom.config import Model, RunConfig
from maskloom.config_file import differences, load_config, rechecked
from maskloom.errors import UserError
from maskloom.models.build import check_size, configuration_of, read_definition
from maskloom.models.positions import check_positions
from maskloom.models.warm_start import check_init, settle_architecture
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.checkpoint.fit import fit_origin, is_same_origin, split_origin, unlike_data
from maskloom.train.checkpoint.state import saved_folders
from maskloom.train.run_dir import refuse_foreign

MAY_CHANGE = re.compile(
    r"run_dir|tokenizer|data\.(train(\.\d+\.path)?|workers|prefetch_steps|on_bad_data|max_bad_share|storage\..*)|phases\.\d+\.micro_batch_rows|logging\..*|checkpoint\..*|guard\..*|timeouts\..*"
    r"|evaluation\..*|engine\.(kernels|deterministic|activation_checkpointing|zero_stage|reduce|reduce_precision|overlap)|model\.init|deepspeed\..*"
)
"""What a resumed run may set otherwise: nothing of it changes which rows are seen. Moved files (tokenizer, data.train)
are recognised by their digests; `engine.zero_stage` is checked when the checkpoint is loaded."""


def reconcile(config: RunConfig, data: Mapping[str, object] | None = None) -> RunConfig:
    """The configuration to run with, given what the run directory holds already, or the run that it begins from.

    A run that exists keeps what was derived when it began (lanes, the checkpoint that it began from); what may change is
    taken from `config`.

    Args:
        data: what `identity` gives for the tokenizer and the corpora; left out, they are not compared.

    Raises:
        UserError: the folder is something else, or the configurations differ in what may not change (all listed).
    """
    folder = Path(config.run_dir)
    saved_file = folder / "config.yaml"
    if not saved_file.exists():
        refuse_foreign(folder)
        if config.model.init is not None:
            config = config.model_copy(update={"model": settle_architecture(config.model)})
        return fit_origin(config, data) if config.from_ and data else config
    saved = load_config(saved_file)
    if config.data.lanes is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"lanes": saved.data.lanes})})
    if config.model.init and "architecture" not in config.model.model_fields_set:
        given = config.model.model_dump(exclude_unset=True)
        model = type(saved.model).model_validate({**given, "architecture": saved.model.architecture})
        config = config.model_copy(update={"model": model})
    if config.engine.precision == "auto":
        engine = config.engine.model_copy(update={"precision": saved.engine.precision})
        config = config.model_copy(update={"engine": engine})
    if is_same_origin(saved.from_, config.from_):
        config = config.model_copy(update={"from_": saved.from_})
    config = rechecked(config, f"the settings given, with the lanes of the run in {folder}")
    found = differences(saved.model_dump(mode="json", by_alias=True), config.model_dump(mode="json", by_alias=True))
    refused = [
        f"  {key}: {old!r} in the run, {new!r} now"
        for key, (old, new) in found.items()
        if not MAY_CHANGE.fullmatch(key) and not _is_more_steps(key, old, new, len(saved.phases))
    ]
    refused += unlike_data(folder, data, "in the run") if data else []
    if refused:
        raise UserError(
            f"the run in {folder} was started with another configuration:\n" + "\n".join(refused) + "\n"
            "Set these back to resume it, or set run_dir to a new folder for a new run (which from="
            f"{folder}@STEP begins with these weights)"
        )
    return config


def check_model(
    run: Path, from_: str | None, model: Model, tokenizer: Tokenizer, seq_lens: Mapping[str, int], must_fit: bool = True
) -> PretrainedConfig:
    """Check the model that a rank would begin with, without its weights: the run's own, its origin's, `model.init`'s, or a
    new one.

    Args:
        run: the run's folder, which need not exist.
        from_: what the run begins from.
        seq_lens: setting -> its sequence length.
        must_fit: refuse a new model that is larger than this machine's memory.

    Returns:
        its Hugging Face configuration.

    Raises:
        UserError: it cannot be trained so.
    """
    origin = run if saved_folders(run) else split_origin(from_)[0] if from_ else None
    if origin is None:
        if model.init is not None:
            return check_init(model.init, tokenizer, seq_lens, **model.given_beside_init())
        described = configuration_of(model, tokenizer)
        # Checked again: some architectures have fewer positions for tokens than max_position_embeddings says.
        check_positions(described, "the model", seq_lens, "raise model.max_position_embeddings")
        if must_fit:
            check_size(described)
        return described
    described = read_definition(origin / "model")
    check_positions(described, str(origin / "model"), seq_lens)
    return described


def _is_more_steps(key: str, old: Any, new: Any, phases: int) -> bool:
    """A longer last phase, or further phases after it."""
    if key == f"phases.{phases - 1}.steps":
        return bool(new is not None and new >= old)
    return bool(re.fullmatch(r"phases\.\d+", key) and old is None and int(key.split(".")[1]) >= phases)
