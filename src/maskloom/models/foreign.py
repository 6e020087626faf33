"""Any masked language model or encoder of Hugging Face's: also of architectures that maskloom does not train.

Its own class computes it. Such a model can be scored and probed, and can fill masks; `models.warm_start` opens those to train.
No code of a checkpoint is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES, longest_piece_of
from maskloom.models.description import read_tree, shown
from maskloom.models.stored import summary, why_no_weights
from maskloom.tokenizers.base import Tokenizer, faults_of
from maskloom.tokenizers.loading import load_tokenizer, tokenizer_of_definition

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST_PIECE = 1 << 20  # of a model that does not tell


def load_foreign(folder: Path, name: str) -> PreTrainedModel:
    """A model for masked tokens as Hugging Face's own class loads it, in fp32 and not for training.

    Args:
        name: what messages call the folder.

    Raises:
        UserError: it is of a kind that does not predict masked tokens, it has no weights, or its head is missing.
    """
    from transformers import AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as CLASSES

    kind = read_tree(folder, name).get("model_type")
    if kind not in CLASSES:
        raise UserError(
            f"{name} is a {shown(kind)} model, and Hugging Face has no class that predicts its masked tokens. Name a masked "
            "language model"
        )
    model, missing = _loaded(AutoModelForMaskedLM, folder, name)
    if missing:
        raise lacking(name, type(model).__name__, missing)
    return model


def load_encoder_of(folder: Path, name: str) -> PreTrainedModel:
    """An encoder by Hugging Face's own class, without a head, in fp32 and evaluation mode.

    Raises:
        UserError: it has a decoder, it cannot be loaded, or weights of the encoder are missing.
    """
    from transformers import AutoModel

    model, missing = _loaded(AutoModel, folder, name)
    if missing := [weight for weight in missing if "pooler" not in weight]:
        raise UserError(
            f"{name} is not a whole {type(model).__name__}: it lacks {len(missing)} weights, such as {missing[0]}"
        )
    return model


def _loaded(model_class: Any, folder: Path, name: str) -> tuple[PreTrainedModel, list[str]]:
    """The model by one of Hugging Face's Auto classes, and the names of the weights that it lacks."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds
        raise UserError(f"{name} cannot be loaded: {' '.join(str(error).split())}") from None
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise UserError(
            f"{name} has a decoder (a {shown(config.model_type)} model): only an encoder sees both sides of a token"
        )
    try:
        model, report = model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:
        why = why_no_weights(folder) if not _has_weights(folder) else " ".join(str(error).split())
        raise UserError(f"{name} cannot be loaded: {why}") from None
    return model.eval(), sorted(report["missing_keys"])


def lacking(name: str, model_class: str, missing: list[str]) -> UserError:
    """The error that says which weights a checkpoint lacks."""
    return UserError(
        f"{name} is not a trained {model_class}: it lacks {len(missing)} weights, such as {missing[0]} (in {summary(missing)}). "
        "A checkpoint of the encoder alone, as most for search or for classes are, has no head for masked tokens. Train one with "
        "model.init first"
    )


def longest_piece_in(model: PreTrainedModel) -> int:
    """The most slots that a model reads, the first and the last token included."""
    if model.config.model_type in ARCHITECTURES:
        return longest_piece_of(model.config)
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe")
    ]
    if tables:  # some begin behind the padding token's id, which the table then knows
        return min(each.num_embeddings - (0 if each.padding_idx is None else each.padding_idx + 1) for each in tables)
    return int(getattr(model.config, "max_position_embeddings", None) or LONGEST_PIECE)


def tokenizer_beside(folder: Path, name: str) -> Tokenizer:
    """The tokenizer in a model's folder. If only transformers can read its files, that makes one.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    try:
        return load_tokenizer(folder)
    except UserError:
        if (folder / "tokenizer.json").exists() or not any(folder.glob("*.model")):
            raise
        from transformers import AutoTokenizer

        try:
            slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            definition = slow.backend_tokenizer.to_str()
        except Exception:  # sentencepiece is not installed, or the file is damaged: the first error says what to do
            definition = None
        if definition is None:
            raise
        said = {role.removesuffix("_token"): str(token) for role, token in slow.special_tokens_map.items()}
        with faults_of(f"{name}: its tokenizer cannot be read"):
            return tokenizer_of_definition(definition, str(folder), said)


def check_rows(model: PreTrainedModel, tokenizer: Tokenizer, name: str) -> None:
    """Raises UserError if the tokenizer has ids for which the model has no row."""
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} ids, the model {rows}: they do not belong together"
        )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
