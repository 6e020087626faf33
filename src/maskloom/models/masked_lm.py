"""What of a model the optimizers ask for."""

from __future__ import annotations

from torch import nn

from maskloom.models.bert import MaskedLM


def hidden_matrices(model: MaskedLM) -> list[nn.Parameter]:
    """The 2-D weights of the model's layers, in the order of the layers: what Muon orthogonalises.

    Under ZeRO-3 call it before DeepSpeed cuts the parameters into vectors.
    """
    return [weight for weight in model.bert.encoder.layer.parameters() if weight.ndim == 2]
