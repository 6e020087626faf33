"""A Hugging Face checkpoint to start from: what can be checked before a rank starts, and the weights.

    name -> folder -> config.json (`description`) -> table of its weights (`stored`) -> vocabulary, positions | weights

Everything left of the bar is cheap, and happens before processes start and in `maskloom doctor`. The weights are read by us,
under Hugging Face's names, and given to `from_pretrained` of its own class, which initialises what is missing.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import logging

from maskloom.config import MODELS, Model
from maskloom.errors import UserError
from maskloom.models.description import architecture_in, check_description, read_tree
from maskloom.models.masked_lm import MaskedLM, count_parameters, packed
from maskloom.models.outline import Outline, outline_of
from maskloom.models.positions import check_growth, check_positions, grow_tables, growth_note
from maskloom.models.stored import (
    FLOATS,
    SAFE,
    Stored,
    printable,
    renamed,
    stored_table,
    summary,
    unpickled,
    why_no_weights,
)
from maskloom.models.vocabulary import NewTokens, fit_vocabulary, grow_vocabulary
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST_NAMED = 50
TOKENIZERS = ("vocab.txt", "merges.txt", "*.model")
"""Files of tokenizers on the Hub, beside tokenizer.json and vocab.json."""


class Checkpoint(NamedTuple):
    """A checkpoint whose configuration and table of weights were found to be those of a model that our forward computes."""

    name: str
    """What messages call it."""
    folder: Path
    config: Any
    """Hugging Face's configuration."""
    outline: Outline
    weights: dict[str, Stored]
    """What of it is used, by Hugging Face's names."""
    ignored: set[str]
    """What of it is not used, by such names: other heads."""


def open_checkpoint(source: str, name: str) -> Checkpoint:
    """Check a checkpoint without reading its weights.

    Args:
        source: folder, or name on the Hub.
        name: what messages call it.

    Raises:
        UserError: it is of no architecture that is known, or another function than our forward's; it is damaged, or not all
            there.
    """
    folder = folder_of(source, name)
    try:
        config = check_description(_tree_of(folder, name), name)
        return match_weights(config, stored_table(folder, name), folder, name)
    except OSError as error:
        raise UserError(f"{name} cannot be loaded: {error}") from None


def _tree_of(folder: Path, name: str) -> dict[str, object]:
    """What a checkpoint's config.json holds. Raises UserError, with what the folder holds instead, if there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} cannot be loaded: it has no config.json; {why_no_weights(folder)}")
    return read_tree(folder, name)


def match_weights(config: PretrainedConfig, table: dict[str, Stored], folder: Path, name: str) -> Checkpoint:
    """Compare the table of a checkpoint's weights with its configuration.

    Raises:
        UserError: weights of the encoder are lacking, have another shape or type, or are none that our forward uses.
    """
    # A configuration may ask for any number of layers. One more than the names have numbers is enough to miss one.
    numbers = {part for weight in table for part in weight.split(".") if part.isdecimal()}
    outline = outline_of(config, len(numbers) + 1)
    stored = renamed(table, outline.names, name)
    _check_whole(stored, outline, name)
    used = {weight: shape for weight, shape in outline.shapes.items() if weight in stored}
    _check_shapes(stored, used, name)
    ignored = stored.keys() - used.keys()
    if aliens := _aliens(ignored, outline):
        raise UserError(f"{name} has weights {_why_alien(aliens, config, outline)}")
    if odd := sorted({stored[weight].dtype for weight in used} - FLOATS.keys()):
        raise UserError(f"{name} holds weights as {', '.join(odd)}: take a checkpoint that is not quantised")
    counters = outline.architecture.counter_names
    heads = {weight for weight in ignored if not weight.startswith(counters)}
    if heads - outline.spare(heads) and not outline.has_whole_head(stored):
        # A head for another task can have layers of these names. They were trained for something else.
        other_head = {weight for weight in used if outline.is_of_the_head(weight)}
        used = {weight: shape for weight, shape in used.items() if weight not in other_head}
        heads |= other_head
    weights = {weight: stored[weight] for weight in used}
    return Checkpoint(name, folder, config, outline, weights, heads)


def _check_whole(stored: Mapping[str, Stored], outline: Outline, name: str) -> None:
    """Raises UserError if weights of the encoder are lacking."""
    due = [weight for weight in outline.shapes if not outline.is_of_the_head(weight)]
    lacking = [weight for weight in due if weight not in stored]
    if len(lacking) == len(due):
        kind, others = outline.architecture.name, summary(weight.name for weight in stored.values()) or "none"
        raise UserError(
            f"{name} is not a whole encoder: it holds none of the weights of a {kind!r} model. Its weights are {others}"
        )
    if lacking:
        raise UserError(f"{name} is not a whole encoder: it lacks {summary(lacking)}")


def _check_shapes(stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raises UserError if weights have other shapes than these, which are by name."""
    misfits = sorted(
        f"{weight} {list(stored[weight].shape)} instead of {list(shape)}"
        for weight, shape in shapes.items()
        if stored[weight].shape != shape
    )
    if misfits:
        more = f" and {len(misfits) - MOST_NAMED} more" if len(misfits) > MOST_NAMED else ""
        raise UserError(f"{name}: weights do not fit its config.json: {', '.join(misfits[:MOST_NAMED])}{more}")


def _aliens(ignored: Set[str], outline: Outline) -> list[str]:
    """Names of weights in a checkpoint's encoder or head that Hugging Face's model does not have."""
    architecture = outline.architecture
    known = (*architecture.spare_names, *architecture.counter_names)
    return [
        weight
        for weight in ignored
        if (weight.startswith(architecture.prefix) or outline.is_of_the_head(weight)) and not weight.startswith(known)
    ]


def _why_alien(aliens: Sequence[str], config: PretrainedConfig, outline: Outline) -> str:
    """What is wrong with a checkpoint that has such weights."""
    in_layers = {weight: weight.removeprefix(outline.layer_prefix).split(".")[0] for weight in aliens}
    numbers = {weight: int(number) for weight, number in in_layers.items() if number.isdecimal() and len(number) < 10}
    if beyond := [weight for weight, number in numbers.items() if number >= config.num_hidden_layers]:
        return (
            f"of more layers than the {config.num_hidden_layers} that its config.json names (num_hidden_layers), such as "
            f"{printable(min(beyond))}: set it to the number of layers that were trained"
        )
    kind = outline.architecture.name
    return f"that a {kind!r} model does not have, such as {printable(min(aliens))}: it is another architecture"


def tokenizer_of(tokenizer: str, init: str | None) -> Tokenizer:
    """The tokenizer of a run. If it is `model.init`'s because none is set, what is wrong with that checkpoint is said first.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    try:
        return load_tokenizer(tokenizer)
    except UserError as error:
        if init is None or tokenizer != init:
            raise
        open_checkpoint(init, f"model.init {init}")
        raise UserError(f"model.init {init}, whose tokenizer is taken since `tokenizer` is not set: {error}") from None


def settle_architecture(settings: Model) -> Model:
    """The settings in the section of the architecture that `model.init`'s checkpoint has; without `init`, as they are.

    Raises:
        UserError: the checkpoint cannot be read or is of no known architecture; or the settings name another one, or have keys
            that it does not.
    """
    if settings.init is None:
        return settings
    name = f"model.init {settings.init}"
    kind = architecture_in(_tree_of(folder_of(settings.init, name), name), name).name
    if "architecture" in settings.model_fields_set and settings.architecture != kind:
        raise UserError(
            f"{name} is a {kind!r} model, and model.architecture is {settings.architecture!r}: leave model.architecture out, or "
            f"set it to {kind}"
        )
    given = settings.model_dump(exclude_unset=True) | {"architecture": kind}
    if unknown := sorted(given.keys() - MODELS[kind].model_fields.keys()):
        raise UserError(f"{name} is a {kind!r} model, which has no {', '.join(unknown)}: remove it from model")
    return MODELS[kind].model_validate(given)


def check_init(source: str, tokenizer: Tokenizer, seq_lens: Mapping[str, int], **settings: Any) -> PretrainedConfig:
    """Check what `model.init` names, without reading its weights.

    Args:
        seq_lens: setting -> its sequence length.
        settings: replace those of its configuration.

    Returns:
        its Hugging Face configuration.

    Raises:
        UserError: the run cannot start from it.
    """
    checkpoint = open_checkpoint(source, f"model.init {source}")
    new = fit_vocabulary(checkpoint, tokenizer)[0]
    config = _changed(checkpoint, settings | ({"vocab_size": new.rows} if new else {}))
    how = "raise" if "max_position_embeddings" in settings else "set"
    check_positions(config, checkpoint.name, seq_lens, f"{how} model.max_position_embeddings")
    return config


def _changed(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> PretrainedConfig:
    """A checkpoint's configuration with other values of fields. Raises UserError if it would have fewer positions."""
    config = copy.deepcopy(checkpoint.config)
    checkpoint.outline.architecture.set_fields(config, settings)
    check_growth(checkpoint.config, config, checkpoint.name)
    return config


def load_checkpoint(
    checkpoint: Checkpoint, new: NewTokens | None = None, **settings: Any
) -> tuple[Any, set[str], set[str]]:
    """A checkpoint as Hugging Face's own model in fp32.

    Args:
        new: tokens that it gets rows for.
        settings: replace those of its configuration; with more positions, its tables of positions are repeated.

    Returns:
        the model, the names of the weights that it lacks (newly initialised), and of those that it has no use for.

    Raises:
        UserError: a weight is not finite, or its file is damaged.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # lines of ours say what its report says
    config, weights = _changed(checkpoint, settings), _read_weights(checkpoint)
    grow_tables(weights, checkpoint.config, config)
    if new:
        grow_vocabulary(weights, checkpoint.config, new)
        config.vocab_size = new.rows
    model, report = checkpoint.outline.architecture.hf_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        output_loading_info=True,
    )
    return model, set(report["missing_keys"]), checkpoint.ignored


def warm_start(settings: Model, tokenizer: Tokenizer) -> tuple[MaskedLM, str]:
    """The model that `model.init` names, and a line that says what of it was used."""
    source = str(settings.init)
    checkpoint = open_checkpoint(source, f"model.init {source}")
    new, note = fit_vocabulary(checkpoint, tokenizer)
    architecture = checkpoint.outline.architecture
    own = {name: getattr(settings, name) for name in architecture.dropouts} | settings.given_beside_init()
    model, missing, unexpected = load_checkpoint(checkpoint, new, **architecture.token_ids(tokenizer), **own)
    note += growth_note(checkpoint.config, model.config)
    return packed(model), (
        f"model: {count_parameters(model):,} parameters from {source}{note}; "
        f"ignored: {summary(unexpected) or 'nothing'}; newly initialised: {summary(missing) or 'nothing'}"
    )


def folder_of(source: str, name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, fetched first if it is named as on the Hub.

    Args:
        name: what messages call it.
        revision: branch, tag or commit on the Hub; None: its main branch.

    Raises:
        UserError: it is not a folder here, and cannot be fetched.
    """
    path = Path(source)
    if os.path.isdir(source):  # noqa: PTH112 - pathlib raises for what can be no name
        return path
    if os.path.exists(source):  # noqa: PTH110
        raise UserError(f"{name} cannot be loaded: it is a file. Name the folder that holds it and its config.json")
    if path.is_absolute() or source.count("/") > 1 or source.startswith((".", "~")) or not source:
        raise UserError(f"{name} cannot be loaded: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        patterns = [*TOKENIZERS, "*.json", "model*.safetensors"]
        fetched = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
        if not (fetched / SAFE).exists() and not (fetched / f"{SAFE}.index.json").exists():
            snapshot_download(source, revision=revision, allow_patterns=["pytorch_model*.bin"])
    except Exception as error:  # the library raises many kinds
        said = " ".join(str(error).split())
        raise UserError(
            f"{name} cannot be loaded: there is no such folder, and it cannot be fetched from the Hub: {said}"
        ) from None
    return fetched


def _read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The weights that are used, in fp32, and those that are tied under both of their names."""
    name = checkpoint.name
    read: dict[str, torch.Tensor] = {}
    for path in {weight.file for weight in checkpoint.weights.values()}:
        try:
            tensors = load_file(path) if path.suffix == ".safetensors" else unpickled(path, name, "cpu")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{name} cannot be loaded: {path.name} is damaged: {error}") from None
        for ours, weight in checkpoint.weights.items():
            if weight.file != path:
                continue
            read[ours] = tensors[weight.name].float()
            if not torch.isfinite(read[ours]).all():
                raise UserError(f"{name}: {weight.name} holds values that are not finite (NaN or infinite)")
    outline = checkpoint.outline
    if checkpoint.config.tie_word_embeddings:
        for tied, source in outline.ties.items():
            if tied in read and source in read and not torch.equal(read[tied], read[source]):
                raise UserError(
                    f"{name}: {tied} differs from {source}, and config.json ties the two: if they are two weights, set "
                    "tie_word_embeddings to false in it"
                )
        read.pop(outline.decoder, None)
    for tied, source in outline.ties.items():
        for one, other in ((source, tied), (tied, source)):  # older files have one of the names
            if source != outline.embedding and one in read and other not in read:
                read[other] = read[one].clone()
    return read
