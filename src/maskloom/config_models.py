"""The section `model` of a configuration: one class an architecture, with its defaults."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field, PositiveFloat

from maskloom.config_values import MOST_SEQ_LEN, Few, Section, Share, Theta, Width

_Activation = Literal["gelu", "gelu_new", "relu", "silu"]


class Model(Section):
    """The fields of all architectures. Each has a section of its own that adds further ones, by Hugging Face's names."""

    dropouts: ClassVar[tuple[str, ...]] = ()
    """The fields that are probabilities of dropout. A run sets them, also if it starts from a model."""
    first_weights: ClassVar[tuple[str, ...]] = ("initializer_range",)
    """The fields that only new weights depend on."""
    beside_init: ClassVar[tuple[str, ...]] = ("max_position_embeddings",)
    """The fields of the shape that may be given with `init`. Those that are given replace the checkpoint's."""
    positions_note: ClassVar[str] = ""
    """End of the message that a sequence is longer than `max_position_embeddings`."""

    architecture: str = "bert"
    """Kind of encoder, as `model_type` in a Hugging Face config.json. With `init` it follows from the checkpoint."""
    init: Annotated[str, pydantic.Field(min_length=1)] | None = None
    """Hugging Face checkpoint to start from (folder or name), whose shape is taken. `max_position_embeddings` may be given beside
    it, to raise it: a table of positions is then repeated."""
    freeze: Literal["encoder", "embeddings"] | None = None
    """What is not trained: `encoder` is all but the head, `embeddings` the table of the tokens' embeddings. Left out: all is
    trained. A decoder that shares the embeddings' matrix is frozen with it, but for its bias."""
    vocab_multiple: Few = 1
    """Round the vocabulary of a new model up to a multiple of this, such as 64. The rows beyond the tokenizer's ids take part in
    the softmax and are never targets."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=MOST_SEQ_LEN)] = 512
    """Longest piece of a document, in tokens, its first and last one included."""

    @classmethod
    def shape_fields(cls) -> set[str]:
        """The fields that cannot change in a run, nor in runs that fork from it."""
        return set(cls.model_fields) - {"architecture", "init", "freeze", *cls.first_weights, *cls.dropouts}

    def taken_from_init(self) -> set[str]:
        """The fields that come from the checkpoint of `init`, if there is one."""
        return self.shape_fields() - (self.model_fields_set & set(self.beside_init))

    def given_beside_init(self) -> dict[str, Any]:
        """Field -> the value that replaces the checkpoint's."""
        return {name: getattr(self, name) for name in self.beside_init if name in self.model_fields_set}

    @pydantic.model_validator(mode="after")
    def _shape_of_init(self) -> Self:
        given = sorted(self.model_fields_set & self.taken_from_init())
        if self.init and given:
            raise ValueError(f"init takes the shape from its checkpoint: remove {', '.join(given)}")
        return self


class _PostNorm(Model):
    """The fields that BERT and RoBERTa's family share; the defaults are the base models'."""

    dropouts: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")

    hidden_size: Width = 768
    """Width of the vectors between layers. A multiple of `num_attention_heads`."""
    num_hidden_layers: Few = 12
    """Number of layers."""
    num_attention_heads: Few = 12
    """Attention heads of each layer."""
    intermediate_size: Width = 3072
    """Width of the feed-forward part of each layer."""
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"
    """Activation of the feed-forward part."""
    hidden_dropout_prob: Share = 0.1
    """Dropout behind the embeddings, the attention and the feed-forward part."""
    attention_probs_dropout_prob: Share = 0.0
    """Dropout on attention weights. Above 0 the attention runs over padded rows with a mask, which is slower on GPUs."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the normal distribution that first weights are drawn from."""
    layer_norm_eps: PositiveFloat = 1e-12
    """Added to the variance in each LayerNorm."""

    @pydantic.model_validator(mode="after")
    def _heads(self) -> Self:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self


class Bert(_PostNorm):
    """The names of Hugging Face's `BertConfig`; the defaults are BERT-base's."""


class Roberta(_PostNorm):
    """The names of Hugging Face's `RobertaConfig`; the defaults are RoBERTa-base's."""

    positions_note: ClassVar[str] = (
        " (positions begin behind the padding token's id: with id 1, 514 are for 512 tokens)"
    )

    architecture: str = "roberta"
    """Kind of encoder, as `model_type` in a Hugging Face config.json. With `init` it follows from the checkpoint."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=MOST_SEQ_LEN)] = 514
    """Rows of the table of positions. Those up to the padding token's id are not used: with id 1, 514 rows are for 512 tokens."""
    type_vocab_size: Few = 1
    """Rows of the table of token types. Only the first is used."""
    layer_norm_eps: PositiveFloat = 1e-5
    """Added to the variance in each LayerNorm."""


class XlmRoberta(Roberta):
    """The names of Hugging Face's `XLMRobertaConfig`; the defaults are XLM-R-base's."""

    architecture: str = "xlm-roberta"
    """Kind of encoder, as `model_type` in a Hugging Face config.json. With `init` it follows from the checkpoint."""


class Camembert(Roberta):
    """The names of Hugging Face's `CamembertConfig`; the defaults are CamemBERT-base's."""

    architecture: str = "camembert"
    """Kind of encoder, as `model_type` in a Hugging Face config.json. With `init` it follows from the checkpoint."""


class ModernBert(Model):
    """The names of Hugging Face's `ModernBertConfig`, also of its earlier releases; the defaults are ModernBERT-base's."""

    dropouts: ClassVar[tuple[str, ...]] = ("embedding_dropout", "attention_dropout", "mlp_dropout")
    first_weights: ClassVar[tuple[str, ...]] = ("initializer_range", "initializer_cutoff_factor")
    beside_init: ClassVar[tuple[str, ...]] = ("global_rope_theta", "max_position_embeddings")

    architecture: str = "modernbert"
    """Kind of encoder, as `model_type` in a Hugging Face config.json. With `init` it follows from the checkpoint."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=MOST_SEQ_LEN)] = 8192
    """Longest piece of a document, in tokens, its first and last one included. No weights depend on it: it may be given with
    `init`."""
    hidden_size: Width = 768
    """Width of the vectors between layers. Each head has an even share of it."""
    num_hidden_layers: Few = 22
    """Number of layers."""
    num_attention_heads: Few = 12
    """Attention heads of each layer."""
    intermediate_size: Width = 1152
    """Width of the feed-forward part behind the gate. Its first product has twice this width: one half is the gate."""
    hidden_activation: _Activation = "gelu"
    """Activation of one half of the first product of the feed-forward part. The other half is not activated."""
    classifier_activation: _Activation = "gelu"
    """Activation in the head."""
    local_attention: Annotated[int, Field(ge=2, le=MOST_SEQ_LEN)] = 128
    """Window of the local layers: a slot sees half of it to either side, rounded down. So 129 is the same as 128."""
    global_attn_every_n_layers: Few = 3
    """One of so many layers sees the whole piece, beginning with the first layer."""
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None
    """What each layer sees: the whole piece or a window. Left out: as `global_attn_every_n_layers` says."""
    global_rope_theta: Theta = 160_000.0
    """Base of the rotary frequencies in the layers that see the whole piece. It may be given with `init`, and
    `phases.N.global_rope_theta` changes it from a phase on: a larger one is for longer pieces."""
    local_rope_theta: Theta = 10_000.0
    """Base of the rotary frequencies in the local layers."""
    embedding_dropout: Share = 0.0
    """Dropout behind the embeddings."""
    attention_dropout: Share = 0.0
    """Dropout on attention weights, and behind the attention. Above 0 the attention is slower on GPUs."""
    mlp_dropout: Share = 0.0
    """Dropout inside of the feed-forward part, behind the gate."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the normal distribution that first weights are drawn from."""
    initializer_cutoff_factor: PositiveFloat = 2.0
    """First weights are drawn from a normal distribution that is cut at so many standard deviations."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance in each LayerNorm."""
    norm_bias: bool = False
    """Bias of each LayerNorm."""
    attention_bias: bool = False
    """Bias of the products of the attention."""
    mlp_bias: bool = False
    """Bias of the products of the feed-forward part."""
    classifier_bias: bool = False
    """Bias of the dense layer in the head."""
    decoder_bias: bool = True
    """Bias of the decoder, one number a token of the vocabulary."""
    tie_word_embeddings: bool = True
    """Whether the decoder's matrix is the embeddings'."""

    @pydantic.model_validator(mode="after")
    def _heads(self) -> Self:
        _check_heads(self.hidden_size, self.num_attention_heads)
        if self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_attention_heads {self.num_attention_heads} is odd: rotary positions turn "
                "pairs of a head's elements"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _each_layer(self) -> Self:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, and num_hidden_layers is {self.num_hidden_layers}: name as "
                "many"
            )
        if self.layer_types is not None and "global_attn_every_n_layers" in self.model_fields_set:
            raise ValueError("layer_types and global_attn_every_n_layers say the same: remove one of them")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _dump(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `global_attn_every_n_layers` if `layer_types` is given: only one of them may be."""
        tree: dict[str, Any] = dump(self)
        if self.layer_types is not None:
            tree.pop("global_attn_every_n_layers", None)
        return tree


def _check_heads(hidden_size: int, heads: int) -> None:
    if hidden_size % heads:
        raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")


MODELS: dict[str, type[Model]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": XlmRoberta,
    "camembert": Camembert,
    "modernbert": ModernBert,
}
"""The section of each architecture. `maskloom.models.architecture.add` adds a user's own."""


def model_section(given: object) -> type[Model] | None:
    """The section that the `model` block of a tree of plain values is read by; None for an unknown architecture."""
    name = given.get("architecture") if isinstance(given, dict) else None
    return MODELS.get(name) if isinstance(name, str) else Bert
