"""Floating-point operations of training, and what the device could do: the two halves of MFU.

Counted are *model* FLOPs: what the mathematics of the model asks for, as in PaLM (Chowdhery et al. 2022, appendix B). Only
real tokens count. The first and the last token of a piece are among them, padding is not. What an implementation does
beyond that counts for nothing: dense heads, padded rows, scores that a flash attention computes twice, layers that
activation checkpointing runs again.

Derivation. A product of [m, k] and [k, n] is 2 m k n operations. A layer multiplies its s slots with each of its matrices. In
attention it multiplies each slot with those that it sees. Each such two are a pair: a piece of s_i slots has s_i^2 pairs.
Scores and weighted values are 2 h operations a pair each. The width h is that of all heads of the queries. With fewer heads of
keys and values the matrices are smaller, and a pair costs the same. The head multiplies its matrices with the
p predicted tokens alone. With W weights in the layers' matrices and H in the head's, a forward pass multiplies

    layers' matrices             2 W s
    scores, weighted values      4 h pairs, summed over the layers
    head                         2 H p

The backward pass is two products of the same size for each, so that training costs three times the forward:

    6 W s  +  12 h pairs  +  6 H p

A BERT or RoBERTa of L layers, feed-forward width f and vocabulary V has W = L (4 h^2 + 2 h f), H = h^2 + h V and
L sum(s_i^2) pairs. A ModernBERT has W = L (4 h^2 + 3 h f), since its feed-forward has a gate. If a layer's attention has a
window of w slots to either side, a piece of n > w slots has n (2 w + 1) - w (w + 1) pairs.

Left out is what multiplies no matrices: look-ups, LayerNorm, softmax, GELU, rotations, dropout, biases, the loss and the
optimizer. These are some 100 h operations a token and layer, beside the forward's 24 h^2. At BERT-base's width that is 0.5 %
of the operations, and more of the time.

MFU = FLOPs / (seconds * peak of a rank * ranks). The peak is, in this order: `logging.peak_tflops`; the data sheet's figure for
a GPU that is known; of another GPU, what a product of matrices reaches when it is measured at the start. Other processes use a
CPU at the same time, so that nothing is measured there: without `logging.peak_tflops` there is no MFU. A data sheet's figure is
never reached: an H200 has 989 TFLOP/s in bf16 and multiplies at about 790. A measured one nearly is. The two MFUs do not
compare, so a run says at its start which one it uses.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from maskloom.models.masked_lm import head_size_of, hidden_matrices
from maskloom.models.outline import empty_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Shape(NamedTuple):
    """What the cost of a model depends on.

    Attributes:
        matrices: elements of the layers' 2-D weights.
        hidden: width of all attention heads.
        head: elements of the head's 2-D weights, the projection to the vocabulary included.
        windows: each distinct window of the layers' attention (None: the whole piece), and the number of layers that have it.
    """

    matrices: int
    hidden: int
    head: int
    windows: tuple[tuple[int | None, int], ...]

    @staticmethod
    def of(config: PretrainedConfig) -> Shape:
        """Of a Hugging Face configuration's model."""
        model = empty_model(config)
        architecture = model.architecture
        names = dict(model.named_parameters(remove_duplicate=False))
        head = [weight for name, weight in names.items() if name.startswith(architecture.head_names)]
        each = architecture.layer_settings(config, model.kernels, False)
        windows = Counter(settings.window for settings in each)
        return Shape(
            sum(weight.numel() for weight in hidden_matrices(model)),
            config.num_attention_heads * head_size_of(config),
            sum(weight.numel() for weight in head if weight.ndim == 2),
            tuple(windows.items()),
        )

    @property
    def distinct_windows(self) -> tuple[int | None, ...]:
        """The windows, in the order in which pairs are counted."""
        return tuple(window for window, _ in self.windows)


def training_flops(shape: Shape, slots: int, pairs: Sequence[int], predicted: int) -> int:
    """Model FLOPs of a forward and a backward pass; linear in the counts, so that sums of counts may be given.

    Args:
        slots: real tokens, the first and last of a piece included, padding excluded.
        pairs: for each of the shape's windows, pairs of slots that see each other (`data.rows.count_slots`); without a window
            `slots * seq_len` if every row is one full piece.
        predicted: tokens that are predicted.
    """
    seen = sum(layers * count for (_, layers), count in zip(shape.windows, pairs, strict=True))
    return 6 * shape.matrices * slots + 12 * shape.hidden * seen + 6 * predicted * shape.head


class Peak(NamedTuple):
    flops: float
    """Floating-point operations per second."""
    origin: str
    """Where the figure comes from, for people to read."""


def peak_of(device: torch.device, precision: Precision, given_tflops: float | None = None) -> Peak | None:
    """The peak of a rank's device: as given, as tabled, or else measured (which takes about a quarter of a second).

    None for a CPU of which none is given: other processes share its cores, so that what is measured at a start can be
    a tenth of what it does later.
    """
    if given_tflops is not None:
        return Peak(given_tflops * 1e12, "logging.peak_tflops")
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tabled = peak_flops(name, precision)
        if tabled is not None:
            return Peak(tabled, f"data sheet of {name}, dense {precision}")
    return Peak(measured_flops(device, precision), f"measured: a product of matrices in {precision}")


def peak_flops(device: str, precision: Precision) -> float | None:
    """FLOP/s of a GPU by its data sheet; None if it is not tabled, is a part of one (MIG), or lacks the precision.

    Args:
        device: as `torch.cuda.get_device_name` spells it.
    """
    for pattern, fp32, fp16, bf16 in PEAK_TFLOPS:
        if re.fullmatch(pattern, device):
            tflops = {"fp32": fp32, "fp16": fp16, "bf16": bf16}[precision]
            return tflops * 1e12 if tflops is not None else None
    return None


# Device, and TFLOP/s in fp32, fp16 and bf16: dense, at boost clock, accumulated in fp32. (GeForce cards are twice as fast
# with fp16 sums, which torch does not use.) The fp32 figure is that of the plain units: TF32 is off in torch by default.
# NVIDIA's data sheets have V100 (2020), T4, A100 (2021), A30, A10, A40, L4, L40, L40S, H100 (its sparse figures halved),
# H200, GH200 and HGX B200 / GB200. Its white papers have GA102 (RTX 3090, A6000), Ada (RTX 4090, 6000) and Blackwell RTX
# (5090). V100 and T4 have no bf16 in their tensor cores.
PEAK_TFLOPS: tuple[tuple[str, float, float, float | None], ...] = (
    (r"(NVIDIA )?(Tesla )?V100-SXM[23]-\d+GB(-LS)?", 15.7, 125.0, None),
    (r"(NVIDIA )?(Tesla )?V100-PCIE-\d+GB", 14.0, 112.0, None),
    (r"(NVIDIA )?(Tesla )?V100S-PCIE-32GB", 16.4, 130.0, None),
    (r"(NVIDIA )?(Tesla )?T4", 8.1, 65.0, None),
    (r"(NVIDIA )?A100-(SXM4|SXM|PCIE|PCIe)-\d+GB|(NVIDIA )?A100 80GB PCIe", 19.5, 312.0, 312.0),
    (r"(NVIDIA )?A30", 10.3, 165.0, 165.0),
    (r"(NVIDIA )?A10", 31.2, 125.0, 125.0),
    (r"(NVIDIA )?A40", 37.4, 149.7, 149.7),
    (r"(NVIDIA )?RTX A6000", 38.7, 154.8, 154.8),
    (r"(NVIDIA )?GeForce RTX 3090", 35.6, 71.0, 71.0),
    (r"NVIDIA L4", 30.3, 121.0, 121.0),
    (r"NVIDIA L40", 90.5, 181.05, 181.05),
    (r"NVIDIA L40S", 91.6, 362.05, 362.05),
    (r"NVIDIA RTX 6000 Ada Generation", 91.1, 364.2, 364.2),
    (r"NVIDIA GeForce RTX 4090", 82.6, 165.2, 165.2),
    (r"NVIDIA H100 80GB HBM3|NVIDIA GH200 .*HBM3e?|NVIDIA GH200 480GB", 66.9, 989.4, 989.4),
    (r"NVIDIA H100 PCIe", 51.2, 756.0, 756.0),
    (r"NVIDIA H100 NVL", 60.0, 835.0, 835.0),
    (r"NVIDIA H200", 66.9, 989.4, 989.4),
    (r"NVIDIA H200 NVL", 60.0, 835.5, 835.5),
    (r"NVIDIA B200", 75.0, 2250.0, 2250.0),
    (r"NVIDIA GB200", 80.0, 2500.0, 2500.0),
    (r"NVIDIA GeForce RTX 5090", 104.8, 209.5, 209.5),
)


def measured_flops(device: torch.device, precision: Precision) -> float:
    """FLOP/s of the best of several square products of matrices; leaves torch's random state as it was.

    The side grows until a product takes 20 ms or is 8192 long, so that a slow CPU is not held up and a GPU is filled. A CPU
    multiplies with the threads of this process.
    """
    generator = torch.Generator().manual_seed(0)
    side, taken_s = 128, 0.0
    while taken_s < 0.02 and side < 8192:
        side *= 2
        matrix = torch.randn(side, side, generator=generator).to(device, DTYPES[precision])
        _seconds_of_product(matrix)  # the first of a shape chooses a kernel
        taken_s = min(_seconds_of_product(matrix) for _ in range(3))  # one may wait for another process
    best_s = min(_seconds_of_product(matrix) for _ in range(5))
    return 2 * side**3 / min(best_s, taken_s)


def _seconds_of_product(matrix: torch.Tensor) -> float:
    _wait(matrix.device)
    began_s = time.perf_counter()
    torch.mm(matrix, matrix)
    _wait(matrix.device)
    return time.perf_counter() - began_s


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
