"""The fast forward over the parameters of a Hugging Face model with a head for masked tokens.

Names, shapes, `state_dict` and `save_pretrained` stay Hugging Face's. What is done differently, with the same result:

- rows hold several pieces of documents; attention stays within a piece and positions restart with it;
- a micro-batch is one flat bucket of T slots of a shape that never changes;
- the head runs on the K predicted slots only, a sixth of the bucket: most of a small model's arithmetic is there;
- a layer is one function of its weights (`layers`);
- dropout and cross-entropy are chosen by name (`kernels`).

Shapes: T slots, K predicted tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from maskloom.data.batch import MicroBatch
from maskloom.models.architecture import architecture_of
from maskloom.models.attention import needs_mask, pieces_of
from maskloom.models.base import Architecture, LayerSettings
from maskloom.models.kernels import KERNELS, Kernels
from maskloom.models.layers import Pieces
from maskloom.models.rotary import rotary_table

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class PaddedDecoder(nn.Linear):
    """The projection to the vocabulary, padded if the device's matrix products need aligned shapes.

    A vocabulary of 30522 rows of 2 bytes is aligned to 4 bytes, and tensor cores want 16: cuBLAS would take a kernel
    several times slower. The padding tokens have logits of -inf: they take no part in the softmax and are never likeliest.
    """

    alignment: int | None = None
    """Multiple that the vocabulary is padded to; None: 64 on a GPU, no padding on a CPU."""
    linear: Callable[..., torch.Tensor] = staticmethod(F.linear)
    """Of the kernels; the padded form is a GPU's, and torch's."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[K, D] -> [K, V'], V' >= V."""
        multiple = self.alignment or (1 if hidden.device.type == "cpu" else 64)
        missing = -self.out_features % multiple
        if not missing:
            return self.linear(hidden, self.weight, self.bias)
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        return F.linear(hidden, F.pad(self.weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-math.inf))


class PackedLayer(nn.Module):
    """A layer over a flat bucket. ZeRO-3 gathers its parameters in its own `__call__`."""

    weights_of: Callable[[Any], Any]
    run: Callable[..., torch.Tensor]
    """`Architecture.run`, or under ZeRO-3 its compiled form: a compiled forward cannot wait for parameters."""

    def forward(self, hidden: torch.Tensor, pieces: Pieces, settings: LayerSettings) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        return self.run(hidden, self.weights_of(self), pieces, settings)


class MaskedLM(nn.Module):
    """A Hugging Face model whose forward takes a `MicroBatch` and returns sums, not means. `packed` makes one.

    Attributes:
        architecture: what it is.
        config: Hugging Face's configuration.
        kernels: implementations of the parts that are fused.
        checkpoints_activations: keep of a layer its input alone, and compute it once more in the backward.
    """

    architecture: Architecture
    config: Any
    kernels: Kernels = KERNELS["eager"]
    checkpoints_activations: bool = False

    def __call__(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward`, with hooks, and compiled if that was asked for. Masks and angles are made before it, uncompiled."""
        result: tuple[torch.Tensor, torch.Tensor] = super().__call__(batch, self.pieces_by_layer(batch))
        return result

    def hidden_states(self, batch: MicroBatch) -> torch.Tensor:
        """`encode` as a call of the whole model, with its hooks: under ZeRO-3 they gather parameters. Uncompiled, and to be
        called under `torch.no_grad`."""
        hidden: torch.Tensor = self._call_impl(batch, gives="hidden states")[0]  # type: ignore[no-untyped-call]
        return hidden

    def masked_logits(self, batch: MicroBatch) -> torch.Tensor:
        """Logits [K, V] of the predicted slots: a call of the whole model as in `hidden_states`."""
        logits: torch.Tensor = self._call_impl(batch, gives="logits")[0]  # type: ignore[no-untyped-call]
        return logits

    def forward(
        self,
        batch: MicroBatch,
        pieces: Sequence[Pieces] | None = None,
        gives: Literal["loss", "hidden states", "logits"] = "loss",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and hits of a micro-batch.

        Args:
            pieces: from `pieces_by_layer`. Left out: they are made here.
            gives: what comes first in the result. `hidden_states` and `masked_logits` ask for the others.

        Returns:
            fp32 sum of the cross-entropies (nats) of the predicted tokens, and int64 number of those that the most
            likely token hits.
        """
        hidden = self.encode(batch, pieces)
        if gives == "hidden states":
            return hidden, batch.targets.new_zeros(())
        # index_select and not indexing: its gradient is one addition, and no sort of the indices
        logits = self._logits(hidden.index_select(0, batch.masked_index))
        if gives == "logits":
            return logits[:, : self.config.vocab_size], batch.targets.new_zeros(())
        return self.kernels.cross_entropy(logits, batch.targets, batch.weights)

    def encode(self, batch: MicroBatch, pieces: Sequence[Pieces] | None = None) -> torch.Tensor:
        """Hidden states [T, D] of the last layer. `pieces` as in `forward`."""
        architecture = self.architecture
        each = architecture.layer_settings(self.config, self.kernels, self.training)
        hidden = architecture.embed(self, batch)
        pieces = self.pieces_by_layer(batch) if pieces is None else pieces
        for layer, of_layer, settings in zip(architecture.layers(self), pieces, each, strict=True):
            if self.checkpoints_activations and self.training:
                hidden = checkpoint(layer, hidden, of_layer, settings, use_reentrant=False)
            else:
                hidden = layer(hidden, of_layer, settings)
        return architecture.finish(self, hidden)

    def pieces_by_layer(self, batch: MicroBatch) -> list[Pieces]:
        """`Pieces` for each layer: its mask and its rotary angles. Layers with the same window and rotary base share one."""
        each = self.architecture.layer_settings(self.config, self.kernels, self.training)
        thetas = self.architecture.rope_thetas(self.config)
        size, dtype = head_size_of(self.config), embedding_of(self).weight.dtype
        masked = needs_mask(batch.input_ids.device, size, dtype, each[0].attention_dropout)
        kinds = [(settings.window, theta) for settings, theta in zip(each, thetas, strict=True)]
        masks = {window: pieces_of(batch, window, masked, dtype) for window, _ in kinds}
        angles = {theta: None if theta is None else rotary_table(batch.positions, size, theta) for theta in set(thetas)}
        made = {(window, theta): masks[window]._replace(rotary=angles[theta]) for window, theta in set(kinds)}
        return [made[kind] for kind in kinds]

    def drop(self, hidden: torch.Tensor, probability: float) -> torch.Tensor:
        """Dropout while the model trains; any shape."""
        return self.kernels.dropout(hidden, probability) if self.training and probability else hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[K, D] -> [K, V'], V' >= V."""
        logits: torch.Tensor = decoder_of(self)(self.architecture.transform(self, hidden))
        return logits


def new_model(config: PretrainedConfig) -> MaskedLM:
    """The model of a Hugging Face configuration, with weights drawn from torch's generator.

    Raises:
        UserError: its architecture is not known.
    """
    return packed(architecture_of(config).new(config))


def packed(model: PreTrainedModel) -> MaskedLM:
    """A Hugging Face model with our forward: the same object, with the same parameters."""
    architecture = architecture_of(model.config)
    model_class, layer_class = _classes(architecture)
    for layer in architecture.layers(model):
        layer.__class__ = layer_class
    decoder_of(model).__class__ = PaddedDecoder
    model.__class__ = model_class
    return cast(MaskedLM, model)


@functools.cache
def _classes(architecture: Architecture) -> tuple[type, type]:
    """Hugging Face's classes of the model and of its layers, with our forwards before theirs."""
    theirs, layer = architecture.hf_class, architecture.layer_class
    functions = {"run": staticmethod(architecture.run), "weights_of": staticmethod(architecture.weights_of)}
    return (
        type(f"Packed{theirs.__name__}", (MaskedLM, theirs), {"architecture": architecture}),
        type(f"Packed{layer.__name__}", (PackedLayer, layer), functions),
    )


def decoder_of(model: PreTrainedModel) -> nn.Linear:
    """The projection to the vocabulary of a Hugging Face model, or of one with our forward."""
    return cast(nn.Linear, model.get_output_embeddings())


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """The embeddings of the vocabulary's tokens."""
    return cast(nn.Embedding, model.get_input_embeddings())


def layers_of(model: MaskedLM) -> list[PackedLayer]:
    """The model's layers, in order."""
    return [cast(PackedLayer, layer) for layer in model.architecture.layers(model)]


def head_size_of(config: PretrainedConfig) -> int:
    """Width of an attention head. Some configurations have a key for it."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def attention_dropout_of(config: PretrainedConfig) -> float:
    """Dropout on attention weights in training."""
    return architecture_of(config).layer_settings(config, KERNELS["eager"], True)[0].attention_dropout


def hidden_matrices(model: MaskedLM) -> list[nn.Parameter]:
    """The 2-D weights of the model's layers, in the order of the layers: what Muon orthogonalises.

    Under ZeRO-3 call it before DeepSpeed cuts the parameters into vectors.
    """
    return [weight for layer in layers_of(model) for weight in layer.parameters() if weight.ndim == 2]


def count_parameters(model: nn.Module) -> int:
    """Parameters, the tied decoder counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
