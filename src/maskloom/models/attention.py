"""Attention within pieces: one function, four ways.

- `KERNEL`: torch's variable-length kernel over the pieces, on a GPU that has it (`choose_attention`);
- `BLOCKS`: blocks as long as the window (`windows`), if a row has several of them or is longer than `MOST_MASKED`;
- `ROWS`: rows with a mask of [S, S], for other rows up to `MOST_MASKED`;
- `PIECES`: one piece at a time (`by_piece`), for the rest.

Masks are made once a micro-batch, by `pieces_of`, and never in compiled code.

Shapes: T slots in the bucket, S slots a row, R = T/S rows, w slots of a window to either side, H heads, G heads of keys and of
values, D head size, N pieces.
"""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch.nn.functional import scaled_dot_product_attention

from maskloom.data.batch import MicroBatch
from maskloom.models.by_piece import by_piece
from maskloom.models.rotary import Rotary
from maskloom.models.windows import block_mask, in_blocks
from maskloom.redaction import brief

HALF = (torch.float16, torch.bfloat16)
MOST_HEAD_SIZE = 256
SIZES_OF_LARGE_MEMORY = range(193, 225)
FIRST_CAPABILITY = (8, 0)
"""Compute capability of Ampere."""
MOST_MASKED = 1024
"""S up to which a row has a mask of [S, S]: in fp32 and with 16 rows, 64 MiB."""
SLOTS_A_WINDOW = 4
"""S / w from which blocks are faster than a mask of [S, S] on a CPU. They compute 3 w scores a slot, and copy keys and values."""


class Way(enum.Enum):
    """How `attend` goes over a bucket: see the head of this file."""

    KERNEL = "by the variable-length kernel"
    ROWS = "over rows with a mask"
    BLOCKS = "in blocks of a window"
    PIECES = "one piece at a time"


class Pieces(NamedTuple):
    """The pieces of a micro-batch, and what the attention of a layer needs to know of them.

    Attributes:
        cu_seqlens: int32 [N + 1]; the first slot of each piece, and T.
        mask: for `ROWS` [R, 1, S, S] as `piece_mask`, for `BLOCKS` [B, 1, w, 3w] as `block_mask`; else None. It is bool, or it
            is added to the scores: 0 and -inf.
        seq_len: S.
        window: slots that a slot sees to either side; None if it sees its whole piece.
        rotary: angles by which queries and keys are turned; None if positions are in the embeddings.
        way: how `attend` computes it.
        positions: for `PIECES` int64 [T], on the CPU; else None.
    """

    cu_seqlens: torch.Tensor
    mask: torch.Tensor | None
    seq_len: int
    window: int | None = None
    rotary: Rotary | None = None
    way: Way = Way.ROWS
    positions: torch.Tensor | None = None


def way_of(masked: bool, seq_len: int, window: int | None) -> Way:
    """How a layer attends.

    Args:
        masked: `Attention.is_masked`.
        window: as in `Pieces`.
    """
    if not masked:
        return Way.KERNEL
    window = within_row(window, seq_len)
    if window is not None and (seq_len > MOST_MASKED or seq_len >= SLOTS_A_WINDOW * window):
        return Way.BLOCKS
    return Way.ROWS if seq_len <= MOST_MASKED else Way.PIECES


def within_row(window: int | None, seq_len: int) -> int | None:
    """The window, or None if every slot of a row sees all others."""
    return None if window is None or window >= seq_len - 1 else window


def pieces_of(batch: MicroBatch, window: int | None, masked: bool, dtype: torch.dtype) -> Pieces:
    """The `Pieces` of layers with this window. Rotary angles are added later.

    Args:
        window: slots that a slot sees to either side; None if it sees its whole piece.
        masked: `Attention.is_masked`.
        dtype: of queries and keys.
    """
    seq_len = batch.seq_len
    window = within_row(window, seq_len)
    way, mask = way_of(masked, seq_len, window), None
    if way is Way.ROWS:
        mask = added_to_scores(piece_mask(batch.pieces, seq_len, window), dtype)
    elif way is Way.BLOCKS:
        assert window is not None
        mask = added_to_scores(block_mask(batch.positions, window), dtype)
    positions = batch.positions.cpu() if way is Way.PIECES else None
    return Pieces(batch.cu_seqlens, mask, seq_len, window, way=way, positions=positions)


def added_to_scores(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as numbers to add to the scores: 0 if True, -inf if False. Else torch makes one in each layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def piece_mask(pieces: torch.Tensor, seq_len: int, window: int | None = None) -> torch.Tensor:
    """bool [R, 1, S, S]: True where two slots of a row belong to the same piece, and are at most `window` apart.

    Args:
        pieces: int32 [T]; number of the piece within its row.
    """
    rows = pieces.view(-1, seq_len)
    mask = rows[:, :, None] == rows[:, None, :]
    if window is not None:
        slots = torch.arange(seq_len, device=pieces.device)
        mask = mask & ((slots[:, None] - slots[None, :]).abs() <= window)
    return mask[:, None]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Pieces, dropout: float) -> torch.Tensor:
    """Softmax attention of every slot over the slots of its own piece that are within the window.

    Args:
        query: [T, H, D].
        key, value: [T, G, D]. G is H or divides it: then H/G queries in a row share a key and a value (Ainslie et al., 2023).
        dropout: probability with which an attention weight is dropped.

    Returns:
        [T, H, D].
    """
    if (shared := query.shape[1] // key.shape[1]) > 1:
        # Copied for each query: the older of the torch releases that we take have no kernel over pieces that shares keys.
        key, value = (part.repeat_interleave(shared, 1) for part in (key, value))
    if pieces.way is Way.KERNEL:
        return _by_kernel(query, key, value, pieces)
    if pieces.way is Way.PIECES:
        assert pieces.positions is not None
        return by_piece(query, key, value, pieces.positions, dropout)
    assert pieces.mask is not None
    if pieces.way is Way.BLOCKS:
        return in_blocks(query, key, value, pieces.mask, dropout)
    slots, heads, size = query.shape
    query, key, value = (part.view(-1, pieces.seq_len, heads, size).transpose(1, 2) for part in (query, key, value))
    output = scaled_dot_product_attention(query, key, value, attn_mask=pieces.mask, dropout_p=dropout)
    return output.transpose(1, 2).reshape(slots, heads, size)


def _by_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # loads flash attention: only if it is used

    reach = (-1, -1) if pieces.window is None else (pieces.window, pieces.window)
    ends = (pieces.cu_seqlens, pieces.cu_seqlens, pieces.seq_len, pieces.seq_len)
    return cast(torch.Tensor, varlen_attn(query, key, value, *ends, window_size=reach))


class Attention(NamedTuple):
    """Whether `attend` does without the variable-length kernel, and why.

    Attributes:
        is_masked: it uses torch's own attention (SDPA), mostly with a mask; else the variable-length kernel.
        why: the reason for SDPA, in words; empty for the kernel.
    """

    is_masked: bool
    why: str = ""


def choose_attention(
    device: str, capability: tuple[int, int] | None, head_size: int, dtype: torch.dtype, dropout: float
) -> Attention:
    """The variable-length kernel wherever it can train, else SDPA, which every device has.

    The limits are those of torch's FlashAttention 2 (its `flash_api.cpp`, and `sdp_utils.cpp` for when SDPA takes the same
    kernel). FlashAttention 3 has no wider ones.

    Args:
        device: type of the tensors' device.
        capability: (major, minor) compute capability of a CUDA device; None for others.
        head_size: D.
        dropout: on attention weights.
    """
    for is_so, why in (
        (device == "cpu", "the device is a CPU"),
        (dropout > 0, f"the dropout of attention weights is {dropout:g}"),
        (dtype not in HALF, f"FlashAttention has no {str(dtype).removeprefix('torch.')}"),
        (head_size % 8 != 0, f"head size {head_size} is not a multiple of 8"),
        (head_size > MOST_HEAD_SIZE, f"head size {head_size} is above {MOST_HEAD_SIZE}"),
    ):
        if is_so:
            return Attention(True, why)
    if capability is not None:
        named = f"compute capability {capability[0]}.{capability[1]}"
        if capability < FIRST_CAPABILITY:
            return Attention(True, f"{named} is below {FIRST_CAPABILITY[0]}.{FIRST_CAPABILITY[1]}")
        # The backward needs more shared memory than these GPUs have.
        if head_size in SIZES_OF_LARGE_MEMORY and ((8, 6) <= capability <= (8, 9) or capability[0] == 12):
            return Attention(True, f"the backward of head size {head_size} does not run on {named}")
    return Attention(False)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def needs_mask(device: torch.device, head_size: int, dtype: torch.dtype, dropout: float) -> bool:
    """Whether `attend` does without the variable-length kernel: see `choose_attention`. Compiled code holds the answer."""
    return choose_attention(device.type, capability_of(device), head_size, dtype, dropout).is_masked


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a CUDA device, None of others. torch keeps it: no wait for the device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def settle_attention(
    device: torch.device,
    head_size: int,
    dtype: torch.dtype,
    dropout: float,
    lengths: Iterable[tuple[int, int | None]] = ((1, None),),
) -> str:
    """Settle which kernel a training forward runs.

    torch's own variable-length kernel is FlashAttention 2. On a Hopper it becomes FlashAttention 3 (Shah et al., 2024) for the
    whole process, if the package that has `flash_attn_interface` is installed.

    Args:
        lengths: S and window of each phase and layer.

    Returns:
        its name, and the reason if it is not the fastest; on a CPU also what in the model would be a reason on a GPU.
    """
    chosen = choose_attention(device.type, capability_of(device), head_size, dtype, dropout)
    if chosen.is_masked:
        lasting = _why_on_every_gpu(head_size, dropout) if device.type == "cpu" else ""
        ways = dict.fromkeys(way_of(True, seq_len, window).value for seq_len, window in lengths)
        return f"SDPA {', '.join(ways)}: {chosen.why}{lasting and f'; on a GPU too: {lasting}'}"
    capability = capability_of(device)
    if capability is None or capability[0] != 9 or not importlib.util.find_spec("flash_attn_interface"):
        return "FlashAttention 2"
    from torch.nn import attention

    try:
        attention.activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch, or without its backward
        return f"FlashAttention 2 (3 is installed, and does not load: {brief(error)})"
    return "FlashAttention 3"


def _why_on_every_gpu(head_size: int, dropout: float) -> str:
    """Which of the model's own properties ask for a mask on every GPU and in every precision; empty if none does."""
    whys = (choose_attention("cuda", None, head_size, torch.bfloat16, dropping).why for dropping in (dropout, 0.0))
    return ", ".join(filter(None, dict.fromkeys(whys)))
