"""What an estimate of a step rests on, at BERT's shapes: a copy, the products, attention over pieces, and two fused chains.

About 20 seconds on a GPU. A CPU does the same with small tensors in fp32, to see that it runs; its figures say nothing.

Shapes: T slots, S slots a row, R = T/S rows, D hidden, H heads of 64.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step.cases import Device
from step.clock import Clock
from torch.nn.functional import dropout, gelu

from maskloom.models.attention import Pieces, Way, attend, piece_mask

SLOTS: dict[Device, dict[int, int]] = {"cuda": {768: 73728, 1024: 36864}, "cpu": {64: 512}}
"""T of a micro-batch of the bench, by D."""
PIECES: dict[int, tuple[int, ...]] = {128: (1, 3), 512: (1, 4)}
"""Pieces a row, by S."""
COPIED_BYTES: dict[Device, int] = {"cuda": 1 << 30, "cpu": 1 << 24}
REPEATS: dict[Device, int] = {"cuda": 20, "cpu": 3}
HEAD_SIZE = 64
VOCABULARY = {768: 30528, 1024: 30528, 64: 1024}
PREDICTED = 0.15


def seconds(device: Device, do: Callable[[], object]) -> float:
    """The median of some calls, after one that is not counted."""
    do()
    clock = Clock(device)
    for _ in range(REPEATS[device]):
        do()
        clock.mark()
    return median(clock.seconds())


def products(device: Device, random: Callable[..., torch.Tensor]) -> dict[str, list[float]]:
    """TFLOP/s of each product of a layer and of the head: forward, gradient of its input, gradient of its weight."""
    found = {}
    for hidden, slots in SLOTS[device].items():
        wide, vocabulary = 4 * hidden, VOCABULARY[hidden]
        shapes = {"qkv": (slots, hidden, 3 * hidden), "out": (slots, hidden, hidden), "up": (slots, hidden, wide)}
        shapes |= {"down": (slots, wide, hidden), "head": (round(PREDICTED * slots), hidden, vocabulary)}
        for name, (rows, inner, width) in shapes.items():
            given, weight, bias, back = random(rows, inner), random(width, inner), random(width), random(rows, width)
            ways = (
                functools.partial(torch.addmm, bias, given, weight.t()),
                functools.partial(torch.mm, back, weight),
                functools.partial(torch.mm, back.t(), given),
            )
            found[f"{name}-{hidden}"] = [2 * rows * inner * width / seconds(device, way) / 1e12 for way in ways]
    return found


def attentions(device: Device, random: Callable[..., torch.Tensor]) -> dict[str, dict[str, float]]:
    """Milliseconds of a layer's attention, forward and backward, and on a GPU the memory that they took beside its inputs."""
    found = {}
    for (hidden, slots), seq_len in itertools.product(SLOTS[device].items(), PIECES):
        for pieces in PIECES[seq_len]:
            qkv = random(slots, 3, hidden // HEAD_SIZE, HEAD_SIZE).requires_grad_()
            # Rows of `pieces` pieces, as even as whole slots allow.
            starts = torch.arange(pieces, device=device) * seq_len // pieces
            begins = torch.arange(0, slots, seq_len, device=device)[:, None] + starts
            bounds = torch.cat([begins.flatten(), torch.tensor([slots], device=device)]).to(torch.int32)
            numbers = torch.bucketize(torch.arange(seq_len, device=device), starts, right=True).repeat(slots // seq_len)
            mask = piece_mask(numbers.to(torch.int32), seq_len) if device == "cpu" else None
            way = Way.KERNEL if mask is None else Way.ROWS
            forward = functools.partial(attend, *qkv.unbind(1), Pieces(bounds, mask, seq_len, way=way), 0.0)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            output = forward()
            back = torch.randn_like(output)
            backward = functools.partial(torch.autograd.grad, output, qkv, back, retain_graph=True)
            row = {"forward_ms": 1e3 * seconds(device, forward), "backward_ms": 1e3 * seconds(device, backward)}
            if device == "cuda":
                row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
            found[f"{hidden}, {seq_len} slots in {pieces} piece(s)"] = row
    return found


def chains(device: Device, random: Callable[..., torch.Tensor]) -> dict[str, float]:
    """GB/s of dropout, residual and LayerNorm in one kernel (three tensors of D a slot are moved), and of GELU (two of 4 D).

    Compiled on a GPU alone: on a CPU that takes longer than everything else here, and a training does it too.
    """
    found = {}
    fuse = functools.partial(torch.compile, dynamic=False) if device == "cuda" else lambda chain: chain
    for hidden, slots in SLOTS[device].items():
        norm = torch.nn.LayerNorm(hidden, device=device, dtype=random(1).dtype)
        update, residual, inner = random(slots, hidden), random(slots, hidden), random(slots, 4 * hidden)
        normed = fuse(lambda update, residual, norm=norm: norm(residual + dropout(update, 0.1)))
        bent = fuse(lambda inner: gelu(inner))
        size = update.element_size()
        with torch.no_grad():
            normed_s = seconds(device, functools.partial(normed, update, residual))
            bent_s = seconds(device, functools.partial(bent, inner))
        found[f"dropout, residual, LayerNorm-{hidden}"] = 3 * size * update.numel() / normed_s / 1e9
        found[f"GELU-{hidden}"] = 2 * size * inner.numel() / bent_s / 1e9
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device: Device = options.device
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    random = functools.partial(torch.randn, device=device, dtype=dtype)
    source = torch.zeros(COPIED_BYTES[device], dtype=torch.uint8, device=device)
    target = source.clone()
    found: dict[str, Any] = {"copy_bytes_per_s": 2 * len(source) / seconds(device, lambda: target.copy_(source))}
    for name, part in {"products_tflops": products, "attention": attentions, "chains_gb_per_s": chains}.items():
        found[name] = part(device, random)
        # After each: a part that fails leaves what came before it.
        options.out.write_text(json.dumps(found), encoding="utf-8")
        print(json.dumps({name: found[name]}, indent=1), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
