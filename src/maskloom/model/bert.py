"""The fast forward over Hugging Face's BERT parameters.

`MaskedLM` is `BertForMaskedLM` with another `forward`: names, shapes, `state_dict`, `from_pretrained` and
`save_pretrained` are Hugging Face's. What is done differently, with the same result:

- rows hold several pieces of documents; attention stays within a piece and positions restart with it;
- a micro-batch is one flat bucket of T slots of a shape that never changes;
- the head runs on the K predicted slots only, a sixth of the bucket: most of a small model's arithmetic is there;
- query, key and value come from one matrix product.

Layers keep their own `__call__`, because ZeRO-3 gathers a layer's parameters around it.

Shapes: T slots, K predicted tokens, D hidden size, H heads, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer
from transformers.utils import logging

from maskloom.config import Model
from maskloom.data.batch import MicroBatch
from maskloom.errors import UserError
from maskloom.model.attention import attend, needs_mask, piece_mask
from maskloom.tokenizer import Tokenizer


class PackedBertLayer(BertLayer):
    """A `BertLayer` over a flat bucket: post-LayerNorm, as in Devlin et al. (2019)."""

    def forward(
        self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, mask: torch.Tensor | None, seq_len: int
    ) -> torch.Tensor:
        """[T, D] -> [T, D]; see `attention.attend` for the other arguments."""
        projection, output = self.attention.self, self.attention.output
        parts = (projection.query, projection.key, projection.value)
        qkv = F.linear(hidden, torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        heads = (-1, projection.num_attention_heads, projection.attention_head_size)
        query, key, value = (part.reshape(heads) for part in qkv.chunk(3, dim=-1))
        dropout = projection.dropout.p if self.training else 0.0
        context = attend(query, key, value, cu_seqlens, mask, seq_len, dropout).flatten(1)
        hidden = output.LayerNorm(hidden + output.dropout(output.dense(context)))
        wide = self.intermediate.intermediate_act_fn(self.intermediate.dense(hidden))
        normed: torch.Tensor = self.output.LayerNorm(hidden + self.output.dropout(self.output.dense(wide)))
        return normed


class MaskedLM(BertForMaskedLM):
    """`BertForMaskedLM` whose forward takes a `MicroBatch` and returns sums, not means."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        layers = [PackedBertLayer(config, layer_idx=number) for number in range(config.num_hidden_layers)]
        self.bert.encoder.layer = nn.ModuleList(layers)
        self.post_init()

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and hits of a micro-batch.

        Returns:
            fp32 sum of the cross-entropies (nats) of the predicted tokens, and int64 number of those that the most
            likely token hits.
        """
        logits = self.masked_logits(batch).float()
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        hits = (logits.detach().argmax(-1) == batch.targets) & (batch.weights > 0)
        return (losses * batch.weights).sum(), hits.sum()

    def masked_logits(self, batch: MicroBatch) -> torch.Tensor:
        """Logits [K, V] of the predicted slots."""
        hidden = self.encode(batch)[batch.masked_index]
        logits: torch.Tensor = self.cls.predictions(hidden)
        return logits

    def encode(self, batch: MicroBatch) -> torch.Tensor:
        """Hidden states [T, D] of the last layer."""
        embeddings = self.bert.embeddings
        hidden = embeddings.word_embeddings(batch.input_ids) + embeddings.position_embeddings(batch.positions)
        hidden = hidden + embeddings.token_type_embeddings.weight[0]
        hidden = embeddings.dropout(embeddings.LayerNorm(hidden))
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        masked = needs_mask(hidden.device, hidden.dtype, dropout)
        mask = piece_mask(batch.pieces, batch.seq_len) if masked else None
        for layer in self.bert.encoder.layer:
            hidden = layer(hidden, batch.cu_seqlens, mask, batch.seq_len)
        result: torch.Tensor = hidden
        return result


def build_model(settings: Model, tokenizer: Tokenizer, seed: int) -> tuple[MaskedLM, str]:
    """A model from scratch, or warm-started from `settings.init`.

    Returns:
        the model (fp32, on the CPU), and a line that says where its weights come from.

    Raises:
        UserError: the checkpoint cannot be read, or its vocabulary is not the tokenizer's.
    """
    torch.manual_seed(seed)
    dropouts = {
        "hidden_dropout_prob": settings.hidden_dropout_prob,
        "attention_probs_dropout_prob": settings.attention_probs_dropout_prob,
    }
    if settings.init is not None:
        return _warm_start(settings.init, tokenizer, dropouts)
    shape = settings.model_dump(exclude={"init"})
    model = MaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, **shape))
    return model, f"model: {count_parameters(model):,} parameters, initialised from seed {seed}"


def save_definition(model: MaskedLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what a checkpoint's weights need beside them: the model's config.json and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")


def build_defined(folder: Path) -> MaskedLM:
    """The model that `save_definition` described; its weights are about to be loaded."""
    try:
        return MaskedLM(BertConfig.from_pretrained(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from None


def count_parameters(model: nn.Module) -> int:
    """Parameters, the tied decoder counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_checkpoint(
    kind: type[BertForMaskedLM], source: str, name: str, **settings: Any
) -> tuple[Any, set[str], set[str]]:
    """A Hugging Face checkpoint as a model of `kind` in fp32.

    Args:
        source: folder, or name on the Hub.
        name: what messages call it.
        settings: replace those of its configuration.

    Returns:
        the model, the names of the weights that it lacks (newly initialised), and of those that it has no use for.

    Raises:
        UserError: it is no BERT model, is damaged, or its weights do not fit its configuration.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # lines of ours say what its report says
    try:
        config = BertConfig.from_pretrained(source)
        config.update(settings)
        if config.model_type == "bert":
            model, report = kind.from_pretrained(
                source,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below
                dtype=torch.float32,
                use_safetensors=_has_safetensors(source),
            )
    except Exception as error:  # the libraries raise many kinds for a damaged file
        raise UserError(f"{name} cannot be loaded: {error}") from None
    if config.model_type != "bert":
        raise UserError(f"{name} is a '{config.model_type}' model: only 'bert' is supported")
    misfits = [f"{weight} {list(given)} instead of {list(due)}" for weight, given, due in report["mismatched_keys"]]
    if misfits:
        raise UserError(f"{name}: weights do not fit its config.json: {', '.join(sorted(misfits))}")
    return model, set(report["missing_keys"]), set(report["unexpected_keys"])


def _warm_start(source: str, tokenizer: Tokenizer, dropouts: dict[str, float]) -> tuple[MaskedLM, str]:
    name = f"model.init {source}"
    model, missing, unexpected = load_checkpoint(MaskedLM, source, name, **dropouts)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{name} has a vocabulary of {model.config.vocab_size}, the tokenizer {tokenizer.source} one of "
            f"{tokenizer.vocab_size}: use the checkpoint's own tokenizer"
        )
    if lacking := {weight for weight in missing if not weight.startswith("cls.")}:
        raise UserError(f"{name} is no whole encoder: it lacks {_summary(lacking)}")
    return model, (
        f"model: {count_parameters(model):,} parameters from {source}; "
        f"ignored: {_summary(unexpected) or 'nothing'}; newly initialised: {_summary(missing) or 'nothing'}"
    )


def _has_safetensors(source: str) -> bool | None:
    """True for a folder with safetensors, so that no pickle beside them is read; None lets Hugging Face choose."""
    return True if any(Path(source).glob("*.safetensors")) else None


def _summary(keys: Any) -> str:
    """Weight names, shortened to the modules they belong to: `cls.seq_relationship.*`."""
    modules = sorted({".".join(str(key).split(".")[:2]) + ".*" if "." in str(key) else str(key) for key in keys})
    return ", ".join(modules)
