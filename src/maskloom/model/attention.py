"""Attention within pieces: one function, one choice per device.

Shapes: T slots in the bucket, S slots a row, R = T/S rows, H heads, D head size, N pieces.
"""

from __future__ import annotations

import importlib.util
from typing import cast

import torch
from torch.nn.functional import scaled_dot_product_attention


def piece_mask(pieces: torch.Tensor, seq_len: int) -> torch.Tensor:
    """bool [R, 1, S, S]: True where two slots of a row belong to the same piece.

    Args:
        pieces: int32 [T]; number of the piece within its row.
    """
    rows = pieces.view(-1, seq_len)
    return (rows[:, :, None] == rows[:, None, :])[:, None]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    mask: torch.Tensor | None,
    seq_len: int,
    dropout: float,
) -> torch.Tensor:
    """Softmax attention of every slot over the slots of its own piece.

    On CUDA the variable-length kernel runs over the pieces and never sees a mask; it has no dropout, so that
    `dropout` > 0 takes the masked path there too, as a CPU always does.

    Args:
        query, key, value: [T, H, D].
        cu_seqlens: int32 [N + 1]; where the pieces begin, and T.
        mask: what `piece_mask` gives, or None where `needs_mask` is False.
        seq_len: S.
        dropout: probability with which an attention weight is dropped.

    Returns:
        [T, H, D].
    """
    if mask is None:
        from torch.nn.attention.varlen import varlen_attn  # loads flash attention: only where it is used

        return cast(torch.Tensor, varlen_attn(query, key, value, cu_seqlens, cu_seqlens, seq_len, seq_len))
    slots, heads, size = query.shape
    query, key, value = (part.view(-1, seq_len, heads, size).transpose(1, 2) for part in (query, key, value))
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return output.transpose(1, 2).reshape(slots, heads, size)


def needs_mask(query_device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Whether `attend` goes over padded rows with a mask: on CPUs, in fp32, and with attention dropout."""
    return query_device.type == "cpu" or dtype == torch.float32 or dropout > 0


def choose_flash_kernel(device: torch.device) -> str:
    """Let the variable-length kernel be FlashAttention 3 where it is installed and the GPU is a Hopper, and say which it is.

    torch's own is FlashAttention 2. FlashAttention 3 (Shah et al., 2024) is the package that has `flash_attn_interface`.
    """
    if device.type != "cuda":
        return "SDPA"
    from torch.nn import attention

    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    if is_hopper and importlib.util.find_spec("flash_attn_interface"):
        attention.activate_flash_attention_impl("FA3")
        return "FlashAttention 3"
    return "FlashAttention 2"
