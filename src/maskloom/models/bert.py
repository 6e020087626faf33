"""The fast forward over Hugging Face's BERT parameters.

`MaskedLM` is `BertForMaskedLM` with another `forward`: names, shapes, `state_dict`, `from_pretrained` and
`save_pretrained` are Hugging Face's. What is done differently, with the same result:

- rows hold several pieces of documents; attention stays within a piece and positions restart with it;
- a micro-batch is one flat bucket of T slots of a shape that never changes;
- the head runs on the K predicted slots only, a sixth of the bucket: most of a small model's arithmetic is there;
- query, key and value come from one matrix product (`layer.py`);
- dropout and cross-entropy are chosen by name (`kernels/`).

Shapes: T slots, K predicted tokens, D hidden size, H heads, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer

from maskloom.config import Model
from maskloom.data.batch import MicroBatch
from maskloom.errors import UserError
from maskloom.models.attention import needs_mask, piece_mask
from maskloom.models.description import read_description
from maskloom.models.kernels import KERNELS, Kernels
from maskloom.models.layers import LayerSettings, LayerWeights, Pieces, encoder_layer
from maskloom.models.warm_start import warm_start
from maskloom.tokenizers.base import Tokenizer


class PackedBertLayer(BertLayer):
    """A `BertLayer` over a flat bucket; its own `__call__` is where ZeRO-3 gathers its parameters."""

    run: Callable[..., torch.Tensor] = staticmethod(encoder_layer)
    """`layer.encoder_layer`, or under ZeRO-3 its compiled form: a compiled forward cannot wait for parameters."""

    def forward(self, hidden: torch.Tensor, pieces: Pieces, settings: LayerSettings) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        return self.run(hidden, LayerWeights.of(self), pieces, settings)


class PaddedDecoder(nn.Linear):
    """The projection to the vocabulary, padded where the device's matrix products need aligned shapes.

    A vocabulary of 30522 rows of 2 bytes is aligned to 4 bytes, and tensor cores want 16: cuBLAS would take a kernel
    several times slower. The padding tokens have logits of -inf: they take no part in the softmax and are never likeliest.
    """

    alignment: int | None = None
    """Multiple that the vocabulary is padded to; None: 64 on a GPU, no padding on a CPU."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[K, D] -> [K, V'], V' >= V."""
        multiple = self.alignment or (1 if hidden.device.type == "cpu" else 64)
        missing = -self.out_features % multiple
        if not missing:
            return F.linear(hidden, self.weight, self.bias)
        return F.linear(hidden, F.pad(self.weight, (0, 0, 0, missing)), F.pad(self.bias, (0, missing), value=-math.inf))


class MaskedLM(BertForMaskedLM):
    """`BertForMaskedLM` whose forward takes a `MicroBatch` and returns sums, not means.

    Attributes:
        kernels: implementations of the parts that are fused.
        checkpoints_activations: keep of a layer its input alone, and compute it once more in the backward.
    """

    kernels: Kernels = KERNELS["eager"]
    checkpoints_activations: bool = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        layers = [PackedBertLayer(config, layer_idx=number) for number in range(config.num_hidden_layers)]
        self.bert.encoder.layer = nn.ModuleList(layers)
        self.cls.predictions.decoder.__class__ = PaddedDecoder
        self.post_init()

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and hits of a micro-batch.

        Returns:
            fp32 sum of the cross-entropies (nats) of the predicted tokens, and int64 number of those that the most
            likely token hits.
        """
        head = self.cls.predictions
        # index_select and not indexing: its gradient is one addition, and no sort of the indices
        logits = head.decoder(head.transform(self.encode(batch).index_select(0, batch.masked_index)))
        return self.kernels.cross_entropy(logits, batch.targets, batch.weights)

    def masked_logits(self, batch: MicroBatch) -> torch.Tensor:
        """Logits [K, V] of the predicted slots."""
        logits: torch.Tensor = self.cls.predictions(self.encode(batch)[batch.masked_index])
        return logits[:, : self.config.vocab_size]

    def encode(self, batch: MicroBatch) -> torch.Tensor:
        """Hidden states [T, D] of the last layer."""
        settings = LayerSettings.of(self.config, self.kernels, self.training)
        hidden = self._embed(batch, settings)
        head_size = self.config.hidden_size // self.config.num_attention_heads
        masked = needs_mask(hidden.device, head_size, hidden.dtype, settings.attention_dropout)
        mask = piece_mask(batch.pieces, batch.seq_len) if masked else None
        pieces = Pieces(batch.cu_seqlens, mask, batch.seq_len)
        for layer in self.bert.encoder.layer:
            if self.checkpoints_activations and self.training:
                hidden = checkpoint(layer, hidden, pieces, settings, use_reentrant=False)
            else:
                hidden = layer(hidden, pieces, settings)
        return hidden

    def _embed(self, batch: MicroBatch, settings: LayerSettings) -> torch.Tensor:
        embeddings = self.bert.embeddings
        hidden = embeddings.word_embeddings(batch.input_ids) + embeddings.position_embeddings(batch.positions)
        hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings.weight[0])
        return settings.kernels.dropout(hidden, settings.hidden_dropout) if settings.hidden_dropout else hidden


def build_model(settings: Model, tokenizer: Tokenizer, seed: int) -> tuple[MaskedLM, str]:
    """A model from scratch, or warm-started from `settings.init`.

    Returns:
        the model (fp32, on the CPU), and a line that says where its weights come from.

    Raises:
        UserError: the checkpoint cannot be read, is another model than BERT, or its vocabulary is not the tokenizer's.
    """
    torch.manual_seed(seed)
    dropouts = {
        "hidden_dropout_prob": settings.hidden_dropout_prob,
        "attention_probs_dropout_prob": settings.attention_probs_dropout_prob,
    }
    if settings.init is not None:
        return warm_start(MaskedLM, settings.init, tokenizer, dropouts)
    shape = settings.model_dump(exclude={"init"})
    model = MaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, **shape))
    return model, f"model: {count_parameters(model):,} parameters, initialised from seed {seed}"


def check_size(settings: Model, vocab_size: int) -> None:
    """Raises UserError if the weights of a model from scratch are more than this machine's memory: each rank builds them whole,
    in fp32, and would find out after minutes."""
    width, layers = settings.hidden_size, settings.num_hidden_layers
    parameters = layers * 2 * width * (2 * width + settings.intermediate_size)
    parameters += (vocab_size + settings.max_position_embeddings) * width
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * parameters > memory_bytes:
        raise UserError(
            f"the model has at least {parameters:,} parameters, {4 * parameters / 2**30:,.0f} GiB in fp32, and this machine has "
            f"{memory_bytes / 2**30:,.0f} GiB of memory: lower model.num_hidden_layers, hidden_size or intermediate_size"
        )


def save_definition(model: MaskedLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what a checkpoint's weights need beside them: the model's config.json and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")


def build_defined(folder: Path, settings: Model | None = None) -> MaskedLM:
    """The model that `save_definition` described, with the dropout of `settings`; its weights are about to be loaded."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    dropout = {name: getattr(settings, name) for name in names} if settings else {}
    read_definition(folder)
    try:
        return MaskedLM(BertConfig.from_pretrained(folder, **dropout))
    except Exception as error:  # the library raises many kinds for a damaged file
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from None


def read_definition(folder: Path) -> BertConfig:
    """What our forward computes of the model that `save_definition` described."""
    try:
        return read_description(folder, str(folder))
    except UserError as error:
        raise UserError(
            f"{error}. The run was trained with the computed values: if it is to go on, set them in {folder / 'config.json'}"
        ) from None


def count_parameters(model: nn.Module) -> int:
    """Parameters, the tied decoder counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
