"""The section `model` of a configuration: one class an architecture, with its defaults."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import pydantic
from pydantic import Field, PositiveFloat

from maskloom.config_values import MOST_SEQ_LEN, Few, Section, Share, Width


class Model(Section):
    """What all architectures have; the others' fields are in a section of each. They have Hugging Face's names."""

    dropouts: ClassVar[tuple[str, ...]] = ()
    """The fields that are probabilities of dropout: a run sets them, whatever it starts from."""

    architecture: str = "bert"
    """Kind of encoder, as `model_type` in a Hugging Face config.json. With `init` it follows from the checkpoint."""
    init: Annotated[str, pydantic.Field(min_length=1)] | None = None
    """Hugging Face checkpoint to start from (folder or name); its shape then holds, and no other may be given here."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=MOST_SEQ_LEN)] = 512
    """Longest piece of a document, in tokens with [CLS] and [SEP]."""

    @classmethod
    def shape_fields(cls) -> set[str]:
        """The fields that a checkpoint fixes."""
        return set(cls.model_fields) - {"architecture", "init", "initializer_range", *cls.dropouts}

    @pydantic.model_validator(mode="after")
    def _shape_of_init(self) -> Self:
        given = sorted(self.model_fields_set & self.shape_fields())
        if self.init and given:
            raise ValueError(f"init takes the shape from its checkpoint: remove {', '.join(given)}")
        return self


class Bert(Model):
    """The names of Hugging Face's `BertConfig`; the defaults are BERT-base's."""

    dropouts: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")

    hidden_size: Width = 768
    num_hidden_layers: Few = 12
    num_attention_heads: Few = 12
    intermediate_size: Width = 3072
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.0
    """Dropout on attention weights. Above 0 the attention runs over padded rows with a mask, which is slower on GPUs."""
    initializer_range: PositiveFloat = 0.02
    layer_norm_eps: PositiveFloat = 1e-12

    @pydantic.model_validator(mode="after")
    def _heads(self) -> Bert:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


MODELS: dict[str, type[Model]] = {"bert": Bert}
"""The section of each architecture. `maskloom.models.architecture.add` adds a user's own."""


def model_section(given: object) -> type[Model] | None:
    """The section that the `model` block of a tree of plain values is read by; None for an unknown architecture."""
    name = given.get("architecture") if isinstance(given, dict) else None
    return MODELS.get(name) if isinstance(name, str) else Bert
