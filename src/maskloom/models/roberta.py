"""RoBERTa (Liu et al., 2019), XLM-R (Conneau et al., 2020) and CamemBERT (Martin et al., 2020): `RobertaForMaskedLM` and its kin.

BERT's layers under other names. Three things differ: positions begin behind the padding token's id, only the first type of
token is used, and the head has another structure. Its bias is one parameter of two names, `lm_head.bias` and
`lm_head.decoder.bias`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import CamembertForMaskedLM, RobertaConfig, RobertaForMaskedLM, XLMRobertaForMaskedLM
from transformers.models.camembert.modeling_camembert import CamembertLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from maskloom.config import Camembert, Model, Roberta, XlmRoberta
from maskloom.data.batch import MicroBatch
from maskloom.models.base import Architecture
from maskloom.models.bert import BERT
from maskloom.models.layers import post_norm
from maskloom.redaction import brief
from maskloom.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


def _faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """Faults of the padding token's id and of an untied head, which the lists cannot describe."""
    pad, rows = tree.get("pad_token_id", RobertaConfig.pad_token_id), tree.get("vocab_size")
    if type(pad) is not int or type(rows) is not int or not 0 <= pad < rows:
        yield f"pad_token_id is {brief(pad)}, which is not an id of a token, and positions begin behind it"
    if tree.get("tie_word_embeddings") is False:
        yield "tie_word_embeddings is False (computed: True; else lm_head.bias is a weight that nothing reads)"


DESCRIPTION = replace(
    BERT.description,
    own=("pad_token_id",),  # positions begin behind it
    ids=("bos_token_id", "eos_token_id"),
    faults=_faults,
)


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}


def _longest_piece(config: PretrainedConfig) -> int:
    """Positions begin behind the padding token's id. The rows of the table up to it are never used."""
    return int(config.max_position_embeddings - config.pad_token_id - 1)


def _embed(model: Any, batch: MicroBatch) -> torch.Tensor:
    embeddings = model.roberta.embeddings
    positions = batch.positions + (model.config.pad_token_id + 1)
    hidden = embeddings.word_embeddings(batch.input_ids) + embeddings.position_embeddings(positions)
    hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings.weight[0])
    dropped: torch.Tensor = model.drop(hidden, model.config.hidden_dropout_prob)
    return dropped


def _transform(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The activation is exact GELU, whatever `hidden_act` is."""
    transformed: torch.Tensor = model.lm_head.layer_norm(F.gelu(model.lm_head.dense(hidden)))
    return transformed


def _of_kin(hf_class: Any, layer_class: type[nn.Module], settings: type[Model]) -> Architecture:
    return Architecture(
        hf_class=hf_class,
        layer_class=layer_class,
        settings=settings,
        description=DESCRIPTION,
        token_ids=_token_ids,
        longest_piece=_longest_piece,
        embed=_embed,
        layers=lambda model: model.roberta.encoder.layer,
        weights_of=BERT.weights_of,
        run=post_norm,
        layer_settings=BERT.layer_settings,
        transform=_transform,
        stations=lambda model: (model.roberta.embeddings.LayerNorm, model.lm_head.layer_norm),
        head_names=("lm_head.",),
        spare_names=("roberta.pooler.",),
        counter_names=("roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids"),
        old_endings=BERT.old_endings,
    )


ROBERTA = _of_kin(RobertaForMaskedLM, RobertaLayer, Roberta)
XLM_ROBERTA = _of_kin(XLMRobertaForMaskedLM, XLMRobertaLayer, XlmRoberta)
CAMEMBERT = _of_kin(CamembertForMaskedLM, CamembertLayer, Camembert)
