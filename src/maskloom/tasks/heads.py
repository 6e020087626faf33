"""An encoder with a new head for a task, from a folder with a Hugging Face checkpoint of any encoder.

    run -> export \
                   folder -> tokenizer
    folder -------/       -> weights of the encoder -> Hugging Face's class for the task, with a new head

A head for masked tokens may have layers that the task's class has, too, such as ModernBERT's: they are kept, as
`from_pretrained` does. A head of a model that was fine-tuned is dropped: it was trained for other labels.

No code of a checkpoint is run. Without `trust_remote_code=False`, the library would ask on the terminal.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskloom.errors import UserError
from maskloom.redaction import one_line, shortened
from maskloom.tasks.target import Target

PRETRAINED = ("ForMaskedLM", "ForPreTraining", "Model")
"""How the names of Hugging Face's classes end that have no head for a task."""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")
TOKENIZER_FILES = (*TOKENIZERS, "merges.txt", "special_tokens_map.json", "added_tokens.json")
MOST_TOKENS = 512
"""Tokens of a row if nothing says how many the model reads. By default no more are taken."""


@dataclass(frozen=True)
class Encoder:
    """A checkpoint to fine-tune.

    Attributes:
        folder: where it is.
        name: what messages call it.
        config: Hugging Face's configuration.
        tokenizer: Hugging Face's, a fast one.
        longest: the most tokens that it reads.
    """

    folder: Path
    name: str
    config: Any
    tokenizer: Any
    longest: int

    @property
    def head(self) -> str:
        """The class of a model that was fine-tuned, whose head is dropped; empty for a pretrained one."""
        kinds = getattr(self.config, "architectures", None) or ["Model"]
        return "" if kinds[0].endswith(PRETRAINED) else str(kinds[0])


def open_encoder(folder: Path, name: str) -> Encoder:
    """Open a checkpoint without reading its weights.

    Raises:
        UserError: it has no configuration or no tokenizer, or they cannot be used.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{name} is neither a run directory nor a Hugging Face checkpoint: no config.yaml or config.json"
        )
    if not any(True for pattern in TOKENIZERS for _ in folder.glob(pattern)):
        raise UserError(
            f"{name} has no tokenizer, such as tokenizer.json: copy the files of the one it was trained with"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds for a damaged file
        raise UserError(f"{name} cannot be loaded: {shortened(one_line(str(error)))}") from None
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        lack = (
            "is not a fast one (tokenizer.json)" if not tokenizer.is_fast else "names no token for padding (pad_token)"
        )
        raise UserError(f"{name}: its tokenizer {lack}: take a checkpoint whose tokenizer does")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} ids, the model {config.vocab_size}: they do not belong together"
        )
    return Encoder(folder, name, config, tokenizer, _longest(config, tokenizer))


def _longest(config: Any, tokenizer: Any) -> int:
    """The most tokens that a model reads. In some, the first rows of the table of positions are for no token."""
    from maskloom.models.architecture import ARCHITECTURES, longest_piece_of

    if config.model_type in ARCHITECTURES:
        most = longest_piece_of(config)
    else:
        most = getattr(config, "max_position_embeddings", MOST_TOKENS)
    return int(min(most, tokenizer.model_max_length))


def with_head(encoder: Encoder, target: Target, seed: int, from_scratch: bool = False) -> tuple[Any, list[str]]:
    """A model for a task in fp32, and the names of the weights that are drawn anew, by `seed`.

    Args:
        from_scratch: all weights are drawn anew: what a model reaches without pretraining.

    Raises:
        UserError: weights are missing or damaged, or Transformers has not got this class for the architecture.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    kind = AutoModelForTokenClassification if target.kind == "tags" else AutoModelForSequenceClassification
    config = _config_for(encoder, target)
    torch.manual_seed(seed)
    try:
        new = kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:  # no class for this architecture
        raise UserError(f"{encoder.name} cannot be fine-tuned: {shortened(one_line(str(error)))}") from None
    if from_scratch:
        return new, sorted(name for name, _ in new.named_parameters())
    try:
        model, info = kind.from_pretrained(
            encoder.folder,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # the library raises many kinds for a damaged file
        raise UserError(f"{encoder.name} cannot be loaded: {shortened(one_line(str(error)))}") from None
    prefix = model.base_model_prefix
    drawn = {*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])}
    lacking = sorted(name for name in drawn if name.startswith(f"{prefix}.") and ".pooler." not in name)
    if lacking:
        raise UserError(f"{encoder.name} is not a whole encoder: it lacks {len(lacking)} weights, such as {lacking[0]}")
    if encoder.head:
        setattr(new, prefix, getattr(model, prefix))
        model = new
        drawn |= {name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")}
    return model, sorted(drawn)


def _config_for(encoder: Encoder, target: Target) -> Any:
    """The configuration of a checkpoint, with the outputs of a task."""
    config = copy.deepcopy(encoder.config)
    names = target.names or ("LABEL_0",)
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = {"classes": "single_label_classification", "numbers": "regression", "tags": None}[target.kind]
    return config
