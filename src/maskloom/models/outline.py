"""Names and shapes of a model's weights, from its configuration alone.

Hugging Face's own class is built on torch's meta device, so that nothing is filled in and no memory is needed. Layers are
alike: of many, few are built.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from maskloom.errors import UserError
from maskloom.models.architecture import architecture_of
from maskloom.models.base import Architecture
from maskloom.models.masked_lm import MaskedLM, count_parameters, decoder_of, embedding_of, packed
from maskloom.models.stored import Names

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Outline:
    """What weights a model has.

    Attributes:
        shapes: name -> shape, those that are tied included.
        layer_prefix: how the names of the layers' weights begin, up to the number of the layer.
        embedding: name of the embeddings of the vocabulary.
        decoder: name of the weights of the projection to the vocabulary.
        ties: names of weights that Hugging Face ties, and of what each is tied to.
    """

    architecture: Architecture
    shapes: dict[str, tuple[int, ...]]
    layer_prefix: str
    embedding: str
    decoder: str
    ties: dict[str, str]

    @property
    def names(self) -> Names:
        """How files may call these weights."""
        architecture = self.architecture
        own = {name.removeprefix(architecture.prefix) for name in self.shapes if name.startswith(architecture.prefix)}
        own |= {name.removeprefix(architecture.prefix) for name in architecture.spare_names}
        parts = tuple(sorted({f"{name.split('.')[0]}." for name in own}))
        anchor = self.embedding.removeprefix(architecture.prefix)
        return Names(architecture.prefix, parts, anchor, architecture.old_endings)

    def spare(self, names: Iterable[str]) -> set[str]:
        """Those of the names that belong to what else Hugging Face's encoder has, such as a pooler."""
        return {name for name in names if name.startswith(self.architecture.spare_names)}

    def is_of_the_head(self, name: str) -> bool:
        """Whether a weight belongs to the head for masked tokens, which a checkpoint may lack."""
        return name.startswith(self.architecture.head_names)

    def has_whole_head(self, names: Collection[str]) -> bool:
        """Whether weights of these names are a whole head for masked tokens, a tied one under either of its names."""
        twins = self.ties | {other: one for one, other in self.ties.items()}
        return all(name in names or twins.get(name) in names for name in self.shapes if self.is_of_the_head(name))


def outline_of(config: PretrainedConfig, most_layers: int | None = None) -> Outline:
    """The weights of a configuration's model; with `most_layers`, as if it had at most so many layers.

    Raises:
        UserError: a weight has more elements than a tensor can have.
    """
    model = empty_model(config, most_layers)
    architecture = model.architecture
    modules = {module: name for name, module in model.named_modules()}
    return Outline(
        architecture,
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)},
        f"{modules[architecture.layers(model)]}.",
        f"{modules[embedding_of(model)]}.weight",
        f"{modules[decoder_of(model)]}.weight",
        dict(architecture.hf_class._tied_weights_keys or {}),
    )


def empty_model(config: PretrainedConfig, most_layers: int | None = None) -> MaskedLM:
    """The model on the meta device: shapes without numbers. `most_layers` and errors as for `outline_of`."""
    if most_layers is not None and most_layers < config.num_hidden_layers:
        config = copy.deepcopy(config)
        config.num_hidden_layers = most_layers
    try:
        with torch.device("meta"):
            return packed(architecture_of(config).hf_class(config))
    except RuntimeError as error:
        raise UserError(f"the model's sizes are larger than any tensor's: {error}") from None


def parameters_of(config: PretrainedConfig) -> int:
    """Parameters of a configuration's model, the tied decoder counted once. There may be many layers: two are built."""
    models = [empty_model(config, min(layers, config.num_hidden_layers)) for layers in (1, 2)]
    one, two = map(count_parameters, models)
    return int(one + (config.num_hidden_layers - 1) * (two - one))
