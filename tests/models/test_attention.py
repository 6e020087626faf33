"""`attend` against softmax attention written out for one piece at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from maskloom.models.attention import (
    MOST_MASKED,
    Attention,
    Pieces,
    Way,
    added_to_scores,
    attend,
    choose_attention,
    needs_mask,
    piece_mask,
    pieces_of,
    settle_attention,
    way_of,
)
from maskloom.models.windows import block_mask
from maskloom.tokenizers.base import Tokenizer

from .parity import bucket, make_rows

HEADS, SIZE = 2, 8


def rows_of_pieces(lengths: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """`pieces` [T] and `cu_seqlens` [N + 1] of rows whose pieces have these lengths."""
    flat = [length for row in lengths for length in row]
    pieces = [number for row in lengths for number, length in enumerate(row) for _ in range(length)]
    ends = torch.tensor([0, *flat]).cumsum(0)
    return torch.tensor(pieces, dtype=torch.int32), ends.to(torch.int32)


@st.composite
def rows(draw: st.DrawFn) -> list[list[int]]:
    """One to three rows of twelve slots, each cut into pieces."""
    result = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, 11), max_size=4)))
        result.append([end - start for start, end in zip([0, *cuts], [*cuts, 12], strict=True)])
    return result


def test_piece_mask_joins_the_slots_of_a_piece_and_no_others() -> None:
    pieces, _ = rows_of_pieces([[2, 1], [1, 2]])
    first = [[True, True, False], [True, True, False], [False, False, True]]
    second = [[True, False, False], [False, True, True], [False, True, True]]
    assert piece_mask(pieces, 3).tolist() == [[first], [second]]


@settings(max_examples=25, deadline=None)
@given(lengths=rows(), seed=st.integers(0, 2**16))
def test_attend_is_attention_over_each_piece_alone(lengths: list[list[int]], seed: int) -> None:
    pieces, cu_seqlens = rows_of_pieces(lengths)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, len(pieces), HEADS, SIZE, generator=generator)
    result = attend(query, key, value, Pieces(cu_seqlens, piece_mask(pieces, 12), 12), dropout=0.0)
    assert result.shape == query.shape
    bounds = cu_seqlens.tolist()
    for start, end in itertools.pairwise(bounds):
        scores = torch.einsum("qhd,khd->hqk", query[start:end], key[start:end]) / math.sqrt(SIZE)
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[start:end])
        torch.testing.assert_close(result[start:end], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize(
    ("seq_len", "window", "way"), [(12, None, Way.ROWS), (12, 2, Way.BLOCKS), (1200, None, Way.PIECES)]
)
def test_queries_share_the_keys_of_their_group(key_heads: int, seq_len: int, window: int | None, way: Way) -> None:
    """As if each key and value stood there once for every query of its group; gradients too."""
    heads = 4
    positions = torch.arange(seq_len).remainder(7)
    pieces = torch.arange(seq_len, dtype=torch.int32) // 7
    mask = {
        Way.ROWS: lambda: piece_mask(pieces, seq_len),
        Way.BLOCKS: lambda: block_mask(positions, window or 0),
        Way.PIECES: lambda: None,
    }[way]()
    look = Pieces(torch.zeros(1, dtype=torch.int32), mask, seq_len, window, way=way, positions=positions)
    query = torch.randn(seq_len, heads, SIZE)
    key, value = (torch.randn(seq_len, key_heads, SIZE, requires_grad=True) for _ in range(2))
    group = torch.arange(heads) * key_heads // heads  # Hugging Face's order: neighbours share
    expected = attend(query, key[:, group], value[:, group], look, 0.0)
    found = attend(query, key, value, look, 0.0)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, (key, value), upstream), torch.autograd.grad(expected, (key, value), upstream)
    )


def test_dropout_of_one_drops_every_weight() -> None:
    pieces, cu_seqlens = rows_of_pieces([[5, 7]])
    query, key, value = torch.randn(3, 12, HEADS, SIZE)
    assert not attend(query, key, value, Pieces(cu_seqlens, piece_mask(pieces, 12), 12), dropout=1.0).any()


def test_what_is_added_to_scores_is_the_mask() -> None:
    """Bit for bit what torch makes of a bool mask by itself."""
    pieces, cu_seqlens = rows_of_pieces([[5, 7], [12]])
    query, key, value = torch.randn(3, 24, HEADS, SIZE)
    mask = piece_mask(pieces, 12)
    added = added_to_scores(mask, torch.float32)
    assert torch.equal(added == 0, mask)
    found = [attend(query, key, value, Pieces(cu_seqlens, each, 12), 0.0) for each in (mask, added)]
    assert torch.equal(*found)


WAYS = [
    # masked, S, window: the way
    (False, 8192, 64, Way.KERNEL),
    (False, 128, None, Way.KERNEL),
    (True, 1024, None, Way.ROWS),
    (True, 1025, None, Way.PIECES),
    (True, 128, 64, Way.ROWS),  # of which blocks would compute 192 columns
    (True, 512, 64, Way.BLOCKS),
    (True, 8192, 64, Way.BLOCKS),
    (True, 2048, 1500, Way.BLOCKS),
    (True, 1024, 1023, Way.ROWS),  # sees all
    (True, 2048, 2047, Way.PIECES),
]


@pytest.mark.parametrize(("masked", "seq_len", "window", "way"), WAYS)
def test_the_table_of_ways(masked: bool, seq_len: int, window: int | None, way: Way) -> None:
    assert way_of(masked, seq_len, window) is way


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("window", [None, 2, 64, 5000])
@pytest.mark.parametrize("seq_len", [48, 1040])
def test_no_mask_is_larger_than_it_has_to_be(
    seq_len: int, window: int | None, masked: bool, tokenizer: Tokenizer
) -> None:
    batch = bucket(make_rows([[seq_len - 8, 8], [seq_len]], tokenizer, seq_len=seq_len), tokenizer)
    pieces = pieces_of(batch, window, masked, torch.bfloat16)
    assert (pieces.mask is None) == (pieces.way in (Way.KERNEL, Way.PIECES))
    assert (pieces.positions is None) == (pieces.way is not Way.PIECES)
    if pieces.mask is not None:
        assert pieces.mask.dtype == torch.bfloat16
        assert pieces.mask.numel() <= 2 * seq_len * max(MOST_MASKED, 3 * (window or 0))
        assert (pieces.mask == 0).any(-1).all()  # a slot that sees nothing would be NaN


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_50 = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)
CHOICES = [
    # device, capability, head size, dtype, dropout: why it is masked, empty for the kernel over pieces
    ("cuda", AMPERE, 64, BF16, 0.0, ""),
    ("cuda", AMPERE, 64, FP16, 0.0, ""),
    ("cuda", HOPPER, 64, BF16, 0.0, ""),
    ("cuda", BLACKWELL, 64, BF16, 0.0, ""),
    ("cuda", GEFORCE_50, 128, BF16, 0.0, ""),
    ("cuda", HOPPER, 8, BF16, 0.0, ""),
    ("cuda", HOPPER, 256, BF16, 0.0, ""),
    ("meta", None, 64, BF16, 0.0, ""),  # the way of a GPU, seen without one
    ("cpu", None, 64, FP32, 0.0, "the device is a CPU"),
    ("cpu", None, 64, BF16, 0.0, "the device is a CPU"),
    ("cuda", HOPPER, 64, FP32, 0.0, "FlashAttention has no float32"),
    ("cuda", HOPPER, 64, BF16, 0.1, "the dropout of attention weights is 0.1"),
    ("cuda", HOPPER, 20, BF16, 0.0, "head size 20 is not a multiple of 8"),
    ("cuda", HOPPER, 264, BF16, 0.0, "head size 264 is above 256"),
    ("cuda", (7, 5), 64, FP16, 0.0, "compute capability 7.5 is below 8.0"),
    ("cuda", (7, 0), 64, BF16, 0.0, "compute capability 7.0 is below 8.0"),
    ("cuda", ADA, 192, BF16, 0.0, ""),
    ("cuda", ADA, 200, BF16, 0.0, "the backward of head size 200 does not run on compute capability 8.9"),
    ("cuda", (8, 6), 224, BF16, 0.0, "the backward of head size 224 does not run on compute capability 8.6"),
    ("cuda", GEFORCE_50, 224, FP16, 0.0, "the backward of head size 224 does not run on compute capability 12.0"),
    ("cuda", ADA, 232, BF16, 0.0, ""),
    ("cuda", AMPERE, 224, BF16, 0.0, ""),
    ("cuda", HOPPER, 200, BF16, 0.0, ""),
]


@pytest.mark.parametrize(("device", "capability", "head_size", "dtype", "dropout", "why"), CHOICES)
def test_the_table_of_attention_choices(
    device: str, capability: tuple[int, int] | None, head_size: int, dtype: torch.dtype, dropout: float, why: str
) -> None:
    assert choose_attention(device, capability, head_size, dtype, dropout) == Attention(bool(why), why)


def test_the_choice_is_not_a_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code holds the answer: asked once for each graph, nothing breaks it."""
    asked: list[torch.device] = []

    def capability(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return (7, 5)

    monkeypatch.setattr("torch.cuda.get_device_capability", capability)
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True, dynamic=False)
    def masked_twice(hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 2 if needs_mask(torch.device("cuda", 0), 64, hidden.dtype, 0.0) else hidden

    hidden = torch.ones(3, dtype=torch.bfloat16)
    assert masked_twice(hidden).tolist() == masked_twice(hidden).tolist() == [2.0, 2.0, 2.0]
    assert len(asked) == counter.frame_count == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key_heads", [HEADS, 1])
def test_the_kernel_over_pieces_is_the_masked_attention(key_heads: int, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: the variable-length kernel runs nowhere else")
    pieces, cu_seqlens = rows_of_pieces([[5, 7, 20], [32]])
    parts = [
        torch.randn(64, heads, 64, device="cuda", dtype=dtype, requires_grad=True)
        for heads in (HEADS, key_heads, key_heads)
    ]
    mask = piece_mask(pieces.cuda(), 32)
    masked = attend(*parts, Pieces(cu_seqlens.cuda(), mask, 32), 0.0)
    expected = torch.autograd.grad(masked.float().square().sum(), parts)
    kernel = attend(*parts, Pieces(cu_seqlens.cuda(), None, 32, way=Way.KERNEL), 0.0)
    gradients = torch.autograd.grad(kernel.float().square().sum(), parts)
    unit = torch.finfo(dtype).eps  # each path rounds its own intermediate results a few times
    torch.testing.assert_close(kernel, masked, atol=8 * unit, rtol=8 * unit)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=16 * unit * float(theirs.abs().max()), rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [1, 7, 16])
def test_the_kernels_window_is_inclusive(window: int, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: the variable-length kernel runs nowhere else")
    pieces, cu_seqlens = rows_of_pieces([[5, 17, 42], [64]])
    parts = [torch.randn(128, HEADS, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    masked = attend(*parts, Pieces(cu_seqlens.cuda(), piece_mask(pieces.cuda(), 64, window), 64, window), 0.0)
    expected = torch.autograd.grad(masked.float().square().sum(), parts)
    kernel = attend(*parts, Pieces(cu_seqlens.cuda(), None, 64, window, way=Way.KERNEL), 0.0)
    gradients = torch.autograd.grad(kernel.float().square().sum(), parts)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(kernel, masked, atol=8 * unit, rtol=8 * unit)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=16 * unit * float(theirs.abs().max()), rtol=0)
    # Whom the middle of the last piece sees.
    (seen,) = torch.autograd.grad(
        attend(*parts, Pieces(cu_seqlens.cuda(), None, 64, window, way=Way.KERNEL), 0.0)[96].float().sum(), parts[2]
    )
    assert seen.abs().sum((1, 2)).nonzero().flatten().tolist() == list(range(96 - window, 97 + window))


@pytest.mark.parametrize("window", [None, 8])
def test_the_kernel_with_a_window_compiles_whole(window: int | None) -> None:
    """Forward and backward, by its fake kernels, on tensors without values."""
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(attend, backend=counter, fullgraph=True, dynamic=False)
    with torch.device("meta"):
        parts = [torch.empty(64, HEADS, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        pieces = Pieces(torch.empty(5, dtype=torch.int32), None, 32, window, way=Way.KERNEL)
    output = run(*parts, pieces, 0.0)
    output.sum().backward()
    assert output.shape == parts[0].shape
    assert all(part.grad is not None and part.grad.shape == part.shape for part in parts)
    assert counter.frame_count == 1


class TestWhatTheStartSays:
    """`settle_attention`, on a GPU that is told."""

    @pytest.fixture
    def settle(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        def settled(capability: tuple[int, int], installed: bool, size: int = 64, dropout: float = 0.0) -> str:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
            monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
            return settle_attention(torch.device("cuda"), size, BF16, dropout)

        return settled

    def test_flash_attention_3_is_taken_where_it_is_installed_on_a_hopper(
        self, settle: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        activated: list[str] = []
        monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", activated.append)
        assert settle(HOPPER, installed=False) == "FlashAttention 2"
        assert settle(AMPERE, installed=True) == "FlashAttention 2"
        assert settle(BLACKWELL, installed=True) == "FlashAttention 2"
        assert settle(HOPPER, installed=True, dropout=0.1).startswith("SDPA over rows with a mask: the dropout of")
        assert activated == []
        assert settle(HOPPER, installed=True) == "FlashAttention 3"
        assert activated == ["FA3"]

    def test_one_that_does_not_load_is_named(self, settle: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str) -> None:
            raise ImportError("undefined symbol: _ZN3c105ErrorC2E")

        monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", refuse)
        said = settle(HOPPER, installed=True)
        assert said.startswith("FlashAttention 2 (3 is installed, and does not load: ImportError('undefined symbol")

    def test_why_it_is_not_the_fastest(self, settle: Callable[..., str]) -> None:
        assert (
            settle(HOPPER, installed=False, size=20)
            == "SDPA over rows with a mask: head size 20 is not a multiple of 8"
        )
        on_cpu = settle_attention(torch.device("cpu"), 64, FP32, 0.0)
        assert on_cpu == "SDPA over rows with a mask: the device is a CPU"

    def test_the_ways_of_all_phases_and_windows(self) -> None:
        lengths = [(seq_len, window) for seq_len in (1024, 8192) for window in (None, 64)]
        said = settle_attention(torch.device("cpu"), 64, FP32, 0.0, lengths)
        assert said == ("SDPA over rows with a mask, in blocks of a window, one piece at a time: the device is a CPU")

    @pytest.mark.parametrize(
        ("size", "dropout", "lasting"),
        [
            (264, 0.0, "head size 264 is above 256"),
            (64, 0.1, "the dropout of attention weights is 0.1"),
            (264, 0.1, "the dropout of attention weights is 0.1, head size 264 is above 256"),
        ],
    )
    def test_on_a_cpu_what_a_gpu_would_meet_too(self, size: int, dropout: float, lasting: str) -> None:
        on_cpu = settle_attention(torch.device("cpu"), size, FP32, dropout)
        assert on_cpu == f"SDPA over rows with a mask: the device is a CPU; on a GPU too: {lasting}"
