"""Muon (Jordan et al., 2024) for the matrices of the encoder layers, AdamW for the rest, as DeepSpeed has it.

Embeddings, the tied decoder and the head's transform stay with AdamW. Muon keeps one moment: the momentum of whole matrices,
from which it makes an orthogonal update. What follows from that:

- ZeRO has to see whole gradients: at stage 3 DeepSpeed must not scatter them (`reduce_scatter`).
- At stages 1 and 2 a rank keeps the momentum of whole matrices, even if a border between ranks cuts the weights.
- The norm that DeepSpeed clips by is taken after the updates were orthogonalised.

DeepSpeed finds the matrices by the attribute `use_muon` of a parameter.

A fused weight, such as one of queries, keys and values, is one matrix here. DeepSpeed 0.19.8 can split its rows into equal
blocks, by the attribute `muon_num_heads`. We do not use it, for two reasons. Its step at stage 0 and its BF16_Optimizer at
stage 1 do not read the attribute: the same run would take other steps there. And it did not help. A ModernBERT of 2 x 128 had
held-out losses of 4.41, 4.42 and 4.35 after 500 steps of three seeds. With Wqkv in three blocks and Wi in two they were 4.34,
4.45 and 4.35.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskloom.config import Muon, Optimizer
from maskloom.optim import adamw
from maskloom.optim.kind import FromDeepSpeed, Group, OptimizerKind, Spread, betas, decayed_and_plain


def groups(model: nn.Module, settings: Optimizer) -> list[Group]:
    """Three groups: the matrices of the layers, then of the rest those with weight decay and those without."""
    from maskloom.models.masked_lm import hidden_matrices  # transformers come with it: not for who only looks a name up

    hidden = set(hidden_matrices(model))  # type: ignore[arg-type]
    rest = decayed_and_plain(model, settings)
    for group in rest:
        group["params"] = [each for each in group["params"] if each not in hidden]
        group |= {"use_muon": False, "lr": settings.lr, "betas": betas(settings), "eps": settings.eps}
    own = settings.muon or Muon()
    lr = own.lr or settings.lr
    matrices = {
        "params": [each for each in model.parameters() if each in hidden],
        "weight_decay": settings.weight_decay,
        "rate": lr / settings.lr,
        "use_muon": True,
        "momentum": own.momentum,
        "ns_method": own.ns_method,
        "lr": lr,
    }
    return [matrices, *rest]


def build(groups: list[Group], settings: Optimizer, deepspeed: FromDeepSpeed) -> torch.optim.Optimizer:
    """DeepSpeed's Muon over these groups, with the AdamW that is to be had."""
    assert deepspeed.muon_class is not None
    muon = deepspeed.muon_class()
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
    if deepspeed.fused_adam is not None:
        return muon(groups, deepspeed.fused_adam, {"adam_w_mode": True})
    return muon(groups, torch.optim.AdamW, {"fused": True})


def title(optimizer: torch.optim.Optimizer, deepspeed: FromDeepSpeed) -> str:
    """What moves the matrices, and what the rest."""
    rest = adamw.title(_adamw_of(optimizer), deepspeed)
    return f"Muon (DeepSpeed's) for the encoder layers' matrices, {rest} for the rest"


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Count steps as the AdamW of this machine does: the two share one state."""
    adamw.settle_counts(optimizer, in_tensors=isinstance(_adamw_of(optimizer), torch.optim.AdamW))


def refusal(spread: Spread) -> str | None:
    """Stage 2 in half precision with several micro-batches loses gradients."""
    if spread.zero_stage != 2 or spread.precision == "fp32" or not spread.accumulates:
        return None
    return (
        f"engine.zero_stage 2 does not go with optimizer.name muon, {spread.precision} and several micro-batches a step: "
        "DeepSpeed loses the gradients of what AdamW moves. Set engine.zero_stage=1 or 3, or raise "
        "phases.N.micro_batch_rows until a step is one micro-batch"
    )


def zero_settings(zero_stage: int) -> dict[str, object]:
    """Whole gradients for every rank, at stage 3 too."""
    return {"reduce_scatter": False} if zero_stage == 3 else {}


def _adamw_of(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = optimizer.aux_optimizer
    return inner


MUON = OptimizerKind(
    name="muon",
    section=Muon,
    groups=groups,
    build=build,
    state_bytes=4,  # of the matrices, which are nearly all
    title=title,
    takes_fused_adam=True,
    updates_before_norm=True,
    whole_state=frozenset({"momentum_buffer"}),
    refusal=refusal,
    zero_settings=zero_settings,
    settle=settle,
)
