"""`Architecture`: what one file of this folder defines, and all that the rest of maskloom knows of a model.

    input_ids -> embed -> for each layer: run(hidden, weights_of(layer), pieces, settings) -> finish
              -> predicted slots -> transform -> decoder (Hugging Face's output embeddings)

Weights, names and shapes are those of a Hugging Face class, `hf_class`. It is built or loaded as it is; then `masked_lm`
puts our forward in the place of its own. (A subclass of ours would be "custom code" to Hugging Face, which initialises less
of such a class.)

Some values are read from Hugging Face's configuration, since each of them has these: `vocab_size`, `hidden_size`,
`num_hidden_layers`, `num_attention_heads` and `tie_word_embeddings`. So is `head_dim`, the size of a head, if there is one.

Shapes: T slots, K predicted tokens, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from maskloom.config import Model
from maskloom.data.batch import MicroBatch
from maskloom.models.kernels import Kernels
from maskloom.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class LayerSettings(Protocol):
    """The fields of a layer's settings that are read outside of `Architecture.run`. It may have more."""

    @property
    def attention_dropout(self) -> float:
        """Dropout on attention weights; 0 in evaluation."""

    @property
    def window(self) -> int | None:
        """Slots that a slot sees to either side; None if it sees its whole piece."""


def _no_faults(tree: Mapping[str, Any]) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Description:
    """The keys and values that a config.json of the architecture may have.

    Any other value is refused by name. So is a key that is not listed here, unless it has its default. Keys that all models
    share are listed in `models.description`, dropouts in the section of the configuration.

    Attributes:
        sizes: required keys, whole numbers.
        more_sizes: optional keys, whole numbers.
        ranges: key -> the two numbers between which its number lies, both excluded.
        choices: keys that choose a function, and the values that our forward computes.
        computed: keys that our forward does not read, and the values that agree with what it computes.
        harmless: keys that are not kept: they do not change the forward, or `faults` checks them.
        ids: keys that hold ids of tokens. An id beyond the vocabulary becomes None, since the tokenizer's ids are used.
        own: keys that are kept, and that `faults` checks.
        faults: (config.json) -> a sentence for each value that the lists cannot describe and our forward does not compute.
    """

    sizes: tuple[str, ...]
    more_sizes: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    computed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    ids: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    faults: Callable[[Mapping[str, Any]], Iterable[str]] = _no_faults

    @property
    def kept(self) -> tuple[str, ...]:
        """The keys that a model is built from."""
        return (*self.sizes, *self.more_sizes, *self.ranges, *self.choices, *self.own, "tie_word_embeddings")


def _no_keys(config: Any) -> dict[str, Any]:
    return {}


def _set_fields(config: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)


def _no_rotary(config: Any) -> list[None]:
    return [None] * int(config.num_hidden_layers)


def _unchanged(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """One architecture. `model` below is a `MaskedLM`: the Hugging Face model with our forward.

    Attributes:
        hf_class: Hugging Face's class with the head for masked tokens.
        layer_class: class of its layers.
        settings: section of maskloom's configuration. Its fields have the names of `hf_class`'s configuration.
        description: what a checkpoint's config.json may have.
        token_ids: (tokenizer) -> the fields of Hugging Face's configuration that hold ids of tokens.
        longest_piece: (configuration) -> most slots of a piece.
        embed: (model, batch) -> [T, D]: the first layer's input.
        layers: the model's layers, in order.
        weights_of: a layer's parameters, as `run` takes them.
        run: (hidden, weights, pieces, settings) -> hidden, both [T, D]: one layer, a pure function that torch.compile takes
            whole. `pieces` are `layers.Pieces`.
        layer_settings: (configuration, kernels, whether it trains) -> the settings of each layer. Layers with equal settings
            should share one object.
        rope_thetas: (configuration) -> base of the rotary frequencies of each layer, None if positions are in the embeddings.
            It is not among the settings: these are constants of compiled code, and a phase may change the base.
        finish: (model, [T, D]) -> [T, D]: what comes after the last layer. Left out: nothing.
        transform: (model, [K, D]) -> [K, D]: the head before the decoder; without one, its input.
        stations: the module whose output is the embeddings, and the one whose output goes into the decoder.
        head_names: prefixes of the names of the head's weights. A checkpoint may lack these.
        spare_names: prefixes of other weights of Hugging Face's encoder, such as a pooler. They are not read.
        counter_names: prefixes of entries that are not weights, such as position ids. They are skipped without a word.
        old_endings: end of a name in older checkpoints -> today's.
        set_fields: (configuration, field of `settings` -> value) -> None: changes a Hugging Face configuration. Left out: sets
            its attributes of these names.
        old_keys: (configuration) -> further keys of config.json, which earlier releases of Transformers need.
        build: (configuration) -> a model with weights drawn from torch's generator. Left out: `hf_class(config)`.
    """

    hf_class: Any
    layer_class: type[nn.Module]
    settings: type[Model]
    description: Description
    token_ids: Callable[[Tokenizer], dict[str, int]]
    longest_piece: Callable[[Any], int]
    embed: Callable[[Any, MicroBatch], torch.Tensor]
    layers: Callable[[Any], nn.ModuleList]
    weights_of: Callable[[Any], Any]
    run: Callable[..., torch.Tensor]
    layer_settings: Callable[[Any, Kernels, bool], Sequence[LayerSettings]]
    rope_thetas: Callable[[Any], Sequence[float | None]] = _no_rotary
    finish: Callable[[Any, torch.Tensor], torch.Tensor] = _unchanged
    transform: Callable[[Any, torch.Tensor], torch.Tensor]
    stations: Callable[[Any], tuple[nn.Module, nn.Module]]
    head_names: tuple[str, ...]
    spare_names: tuple[str, ...] = ()
    counter_names: tuple[str, ...] = ()
    old_endings: Mapping[str, str] = field(default_factory=dict)
    set_fields: Callable[[Any, Mapping[str, Any]], None] = _set_fields
    old_keys: Callable[[Any], dict[str, Any]] = _no_keys
    build: Callable[[Any], Any] | None = None

    @property
    def name(self) -> str:
        """The `model_type` of config.json; what `model.architecture` is set to."""
        return str(self.config_class.model_type)

    @property
    def config_class(self) -> type[PretrainedConfig]:
        """Hugging Face's class of the configuration."""
        found: type[PretrainedConfig] = self.hf_class.config_class
        return found

    @property
    def prefix(self) -> str:
        """How the names of the encoder's weights begin."""
        return f"{self.hf_class.base_model_prefix}."

    @property
    def dropouts(self) -> tuple[str, ...]:
        """The fields of the configuration that are probabilities of dropout. A run sets them, also if it starts from a model."""
        return self.settings.dropouts

    def config(self, settings: Model, tokenizer: Tokenizer) -> PretrainedConfig:
        """Hugging Face's configuration of a model from scratch."""
        shape = settings.model_dump(mode="json", exclude={"architecture", "init", "freeze", "vocab_multiple"})
        rows = tokenizer.vocab_size + -tokenizer.vocab_size % settings.vocab_multiple
        return self.config_class(vocab_size=rows, **self.token_ids(tokenizer), **shape)

    def written(self, config: PretrainedConfig) -> PretrainedConfig:
        """A copy of a configuration, to be saved so that earlier releases of Transformers can read it too."""
        copied = copy.deepcopy(config)
        for key, value in self.old_keys(config).items():
            setattr(copied, key, value)
        return copied

    def own_name(self, key: str) -> str:
        """The architecture's name for a key that each configuration of Hugging Face has: `dim` for `hidden_size`."""
        return str(self.config_class.attribute_map.get(key, key))

    def new(self, config: PretrainedConfig) -> PreTrainedModel:
        """Hugging Face's model with weights drawn from torch's generator."""
        return (self.build or self.hf_class)(config)
