"""A Hugging Face checkpoint to start from: what can be checked before a rank starts, and the weights.

    name -> folder -> config.json (`description`) -> table of its weights (`stored`) -> vocabulary, positions | weights

Everything left of the bar is cheap, and happens before processes start and in `maskloom doctor`. The weights are read by us,
under BERT's names, and given to Hugging Face's `from_pretrained`, which initialises what is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging

from maskloom.errors import UserError
from maskloom.models.description import read_description
from maskloom.models.stored import (
    COUNTERS,
    FLOATS,
    POOLER,
    SAFE,
    Stored,
    encoder_weights,
    head_weights,
    printable,
    stored_weights,
    summary,
    unpickled,
    why_no_weights,
)
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer

MOST_SPARE_ROWS = 1 << 10
"""Rows of the embeddings beyond the tokenizer's ids that pass for padding (128 for each of 8 tensor-parallel ranks is the most
that is usual), if the checkpoint has no tokenizer that would tell."""
MOST_NAMED = 50
LAYER = re.compile(r"bert\.encoder\.layer\.([0-9]{1,9})\.")
EMBEDDING, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"


class Checkpoint(NamedTuple):
    """A checkpoint whose configuration and table of weights were found to be those of a BERT that our forward computes."""

    name: str
    """What messages call it."""
    folder: Path
    config: BertConfig
    weights: dict[str, Stored]
    """What of it is used, by BERT's names."""
    ignored: set[str]
    """Names in its files of the weights that are not used: other heads."""


def open_checkpoint(source: str, name: str) -> Checkpoint:
    """Check a checkpoint without reading its weights.

    Args:
        source: folder, or name on the Hub.
        name: what messages call it.

    Raises:
        UserError: it is no BERT model, or another function than our forward's; it is damaged, or not all there.
    """
    folder = _folder_of(source, name)
    try:
        if not (folder / "config.json").is_file():
            raise UserError(f"{name} cannot be loaded: it has no config.json; {why_no_weights(folder)}")
        config = read_description(folder, name)
        return match_weights(config, stored_weights(folder, name), folder, name)
    except OSError as error:
        raise UserError(f"{name} cannot be loaded: {error}") from None


def match_weights(config: BertConfig, stored: dict[str, Stored], folder: Path, name: str) -> Checkpoint:
    """Compare the table of a checkpoint's weights with its configuration.

    Raises:
        UserError: weights of the encoder are lacking, have another shape or type, or are none that our forward uses.
    """
    used: dict[str, tuple[int, ...]] = {}
    lacking: list[str] = []
    for weight, due in encoder_weights(config):
        used[weight] = due
        if weight not in stored:
            lacking.append(weight)
            if len(lacking) == MOST_NAMED:  # a configuration may ask for any number of layers
                break
    if len(lacking) == len(used):
        others = summary(weight.name for weight in stored.values()) or "none"
        raise UserError(f"{name} is no whole encoder: it holds none of BERT's weights. Its weights are {others}")
    if lacking:
        raise UserError(f"{name} is no whole encoder: it lacks {summary(lacking)}")
    used |= {weight: due for weight, due in head_weights(config) if weight in stored}
    misfits = sorted(
        f"{weight} {list(stored[weight].shape)} instead of {list(due)}"
        for weight, due in used.items()
        if stored[weight].shape != due
    )
    if misfits:
        more = f" and {len(misfits) - MOST_NAMED} more" if len(misfits) > MOST_NAMED else ""
        raise UserError(f"{name}: weights do not fit its config.json: {', '.join(misfits[:MOST_NAMED])}{more}")
    ignored = stored.keys() - used.keys()
    alien = [weight for weight in ignored if weight.startswith(("bert.", "cls.predictions."))]
    if alien := [weight for weight in alien if not weight.startswith((POOLER, *COUNTERS))]:
        numbers = {weight: int(found[1]) for weight in alien if (found := LAYER.match(weight))}
        if beyond := [weight for weight, number in numbers.items() if number >= config.num_hidden_layers]:
            raise UserError(
                f"{name} has weights of more layers than the {config.num_hidden_layers} that its config.json names "
                f"(num_hidden_layers), such as {printable(min(beyond))}: set it to the number of layers that were trained"
            )
        raise UserError(
            f"{name} has weights that BERT's encoder and head do not, such as {printable(min(alien))}: it is another architecture"
        )
    if odd := sorted({stored[weight].dtype for weight in used} - FLOATS.keys()):
        raise UserError(f"{name} holds weights as {', '.join(odd)}: take a checkpoint that is not quantised")
    heads = {stored[weight].name for weight in ignored if not weight.startswith(COUNTERS)}
    return Checkpoint(name, folder, config, {weight: stored[weight] for weight in used}, heads)


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


def check_init(source: str, tokenizer: Tokenizer, seq_lens: Mapping[str, int]) -> BertConfig:
    """Check what `model.init` names, without reading its weights.

    Args:
        seq_lens: setting -> its sequence length.

    Returns:
        its configuration.

    Raises:
        UserError: the run cannot start from it.
    """
    checkpoint = open_checkpoint(source, f"model.init {source}")
    vocabulary_note(checkpoint, tokenizer)
    check_positions(checkpoint.config, checkpoint.name, seq_lens)
    return checkpoint.config


def check_positions(config: BertConfig, name: str, seq_lens: Mapping[str, int]) -> None:
    """Raises UserError if a sequence is longer than the model has positions."""
    most = config.max_position_embeddings
    if wrong := [f"{setting} {length}" for setting, length in seq_lens.items() if length > most]:
        raise UserError(f"{', '.join(wrong)}: more than the {most} positions of {name}. Lower seq_len")


def vocabulary_note(checkpoint: Checkpoint, tokenizer: Tokenizer) -> str:
    """What is to be said of a vocabulary that is not quite the tokenizer's; empty if it is.

    Raises:
        UserError: the embeddings are not those of the tokenizer's ids.
    """
    rows, ids, name = checkpoint.config.vocab_size, tokenizer.vocab_size, checkpoint.name
    differ = f"{name} has a vocabulary of {rows}, the tokenizer {tokenizer.source} one of {ids}"
    own = _own_tokenizer(checkpoint.folder)
    if rows < ids:
        remedy = "" if own is None or own.vocab_size > rows else f" (set tokenizer={checkpoint.folder})"
        raise UserError(
            f"{differ}: its last {ids - rows} ids would have no embedding. Use the checkpoint's own tokenizer{remedy}, or give "
            f"the checkpoint more rows by resize_token_embeddings({ids}) in transformers"
        )
    if own is None and rows - ids >= MOST_SPARE_ROWS:
        raise UserError(f"{differ}: use the checkpoint's own tokenizer")
    notes = []
    if own is not None:
        if own.vocab_size != ids:
            raise UserError(
                f"{differ}. The checkpoint's own has {own.vocab_size} ids: set tokenizer={checkpoint.folder}"
            )
        other = sum(own.token(number) != tokenizer.token(number) for number in range(ids))
        if 2 * other > ids:
            raise UserError(
                f"{name}: its own tokenizer means other tokens by {other:,} of the {ids:,} ids of {tokenizer.source}: set "
                f"tokenizer={checkpoint.folder}"
            )
        if other:
            notes.append(f"its own tokenizer means other tokens by {other:,} of {ids:,} ids")
    if rows > ids:
        notes.append(
            f"{rows - ids} of its {rows:,} rows are beyond the tokenizer's {ids:,} ids: they stay in the softmax, and are never "
            "targets"
        )
    return "".join(f"; {note}" for note in notes)


def load_checkpoint(
    kind: type[BertForMaskedLM], checkpoint: Checkpoint, **settings: Any
) -> tuple[Any, set[str], set[str]]:
    """A checkpoint as a model of `kind` in fp32.

    Args:
        settings: replace those of its configuration.

    Returns:
        the model, the names of the weights that it lacks (newly initialised), and of those that it has no use for.

    Raises:
        UserError: a weight is not finite, or its file is damaged.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # lines of ours say what its report says
    config = checkpoint.config
    config.update(settings)
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=_read_weights(checkpoint),
        dtype=torch.float32,
        output_loading_info=True,
    )
    return model, set(report["missing_keys"]), checkpoint.ignored


def warm_start(
    kind: type[BertForMaskedLM], source: str, tokenizer: Tokenizer, dropouts: dict[str, float]
) -> tuple[Any, str]:
    """The model that `model.init` names, and a line that says what of it was used."""
    checkpoint = open_checkpoint(source, f"model.init {source}")
    note = vocabulary_note(checkpoint, tokenizer)
    model, missing, unexpected = load_checkpoint(kind, checkpoint, pad_token_id=tokenizer.pad_id, **dropouts)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return model, (
        f"model: {parameters:,} parameters from {source}{note}; "
        f"ignored: {summary(unexpected) or 'nothing'}; newly initialised: {summary(missing) or 'nothing'}"
    )


def _folder_of(source: str, name: str) -> Path:
    """The folder of a checkpoint, fetched first if it is named as on the Hub."""
    path = Path(source)
    if os.path.isdir(source):  # noqa: PTH112 - pathlib raises for what can be no name
        return path
    if os.path.exists(source):  # noqa: PTH110
        raise UserError(f"{name} cannot be loaded: it is a file. Name the folder that holds it and its config.json")
    if path.is_absolute() or source.count("/") > 1 or source.startswith((".", "~")) or not source:
        raise UserError(f"{name} cannot be loaded: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        fetched = Path(snapshot_download(source, allow_patterns=["*.json", "vocab.txt", "model*.safetensors"]))
        if not (fetched / SAFE).exists() and not (fetched / f"{SAFE}.index.json").exists():
            snapshot_download(source, allow_patterns=["pytorch_model*.bin"])
    except Exception as error:  # the library raises many kinds
        said = " ".join(str(error).split())
        raise UserError(
            f"{name} cannot be loaded: there is no such folder, and it cannot be fetched from the Hub: {said}"
        ) from None
    return fetched


def _own_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer that stands beside a checkpoint's weights; None if there is none that can be read."""
    try:
        return load_tokenizer(folder)
    except (UserError, OSError):
        return None


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
    if checkpoint.config.tie_word_embeddings:
        for tied, source in ((DECODER, EMBEDDING), (DECODER_BIAS, BIAS)):
            if tied in read and source in read and not torch.equal(read[tied], read[source]):
                raise UserError(
                    f"{name}: {tied} differs from {source}, and config.json ties the two: if they are two weights, set "
                    "tie_word_embeddings to false in it"
                )
        read.pop(DECODER, None)
    for one, other in ((BIAS, DECODER_BIAS), (DECODER_BIAS, BIAS)):  # older files have one of the names
        if one in read and other not in read:
            read[other] = read[one].clone()
    return read
