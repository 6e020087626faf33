"""What ran in a step, by kind: the events of torch.profiler, classed by their names.

On a GPU the time is that of its kernels. Each is classed by its own name and by the operator that launched it. On a CPU it
is the time of an operator without the operators inside it. What is left of the step is `gaps`: no kernel ran (on a CPU: Python,
and whatever is not an operator).

An operator or kernel is classed by the first of these that fits:

1. `data`, `optimizer`: it ran within the scope `DATA` or `OPTIMIZER`, or is a copy from the host.
2. `communication`: its name has nccl, gloo or c10d in it.
3. `optimizer`: its name has adam, lamb, muon, multi_tensor, foreach, or clip in it.
4. `head`: its name has log_softmax, nll_loss, cross_entropy or logsumexp in it; or the operator was given a tensor with a
   dimension of the vocabulary's size (or of that, padded), look-ups of embeddings apart.
5. `attention`: its name has attention, attn, flash, fmha, sdpa or softmax in it, or it is a batched matrix product: a BERT has
   them there only.
6. `gemm`: the other matrix products.
7. `elementwise`: everything of ATen and Inductor that is left: LayerNorm, GELU, dropout, additions, look-ups, copies.
8. `other`: the rest.

The kernels that Inductor writes are named after all the operators that were fused into them (`triton_poi_fused_addmm_gelu`
multiplies no matrices): of them only rules 4, 5 and 7 ask. Kernels inside a CUDA graph have no operator: there the head's
matrix products count as `gemm`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

DATA, OPTIMIZER = "maskloom: data wait", "maskloom: optimizer step"  # scopes: names of `record_function`
PARTS = ("gemm", "attention", "elementwise", "head", "optimizer", "communication", "data", "other")
TITLES = {
    "gemm": "matrix products",
    "attention": "attention",
    "elementwise": "elementwise, LayerNorm, dropout",
    "head": "head and cross-entropy",
    "optimizer": "optimizer",
    "communication": "communication",
    "data": "data wait and transfer",
    "other": "other",
    "gaps": "no kernel",
}
SCOPES = {DATA: "data", OPTIMIZER: "optimizer"}
PADDED_BY = 128  # the most that a vocabulary is padded by
SHOWN = 15  # names that a result keeps

INDUCTOR = re.compile(r"^(graph_\d+_)?(triton_(?!tem_)|cpp_fused)")
COPY_IN = re.compile(r"memcpy htod|memcpy \(htod", re.IGNORECASE)
COMMUNICATION = re.compile(r"nccl|gloo|c10d", re.IGNORECASE)
UPDATE = re.compile(r"adam|lamb|muon|multi_?tensor|foreach|clip", re.IGNORECASE)
HEAD = re.compile(r"log_?softmax|nll_?loss|cross_?entropy|logsumexp", re.IGNORECASE)
ATTENTION = re.compile(r"attention|attn|flash|fmha|sdpa|softmax|(^|[:_])(baddbmm|bmm)(_|$)", re.IGNORECASE)
GEMM = re.compile(
    r"gemm|cutlass|cublas|nvjet|xmma|wgmma|splitk|triton_tem_|mkl_?linear|mkldnn.*(linear|matmul)|"
    r"(^|[:_])(mm|addmm|linear|matmul|gemv)(_|$)",
    re.IGNORECASE,
)
ELEMENTWISE = re.compile(
    r"^aten::|at::native|memset|memcpy|triton_|cpp_fused|layer_?norm|gelu|dropout|elementwise", re.IGNORECASE
)


@dataclass(frozen=True)
class Ran:
    """Something that took time.

    Attributes:
        name: of the kernel, or on a CPU of the operator.
        operator: what launched the kernel; on a CPU as `name`; empty if it is not known.
        shapes: of the operator's tensors.
        scopes: names of the operators and scopes around it.
        seconds: it took.
    """

    name: str
    operator: str
    shapes: tuple[tuple[int, ...], ...]
    scopes: tuple[str, ...]
    seconds: float


def part_of(ran: Ran, vocab_size: int) -> str:
    """The part of a step that something belongs to; see the module's docstring."""
    for scope in ran.scopes:
        if scope in SCOPES:
            return SCOPES[scope]
    names = (ran.name, ran.operator)
    if COPY_IN.search(ran.name):
        return "data"
    if _any(COMMUNICATION, names):
        return "communication"
    if INDUCTOR.search(ran.name):
        if HEAD.search(ran.name):
            return "head"
        return "attention" if ATTENTION.search(ran.name) else "elementwise"
    if _any(UPDATE, names):
        return "optimizer"
    if _any(HEAD, names) or (_has_vocabulary(ran.shapes, vocab_size) and "embedding" not in ran.operator):
        return "head"
    if _any(ATTENTION, names):
        return "attention"
    if _any(GEMM, names):
        return "gemm"
    return "elementwise" if _any(ELEMENTWISE, names) else "other"


def sum_up(everything: Iterable[Ran], wall_s: float, steps: int, vocab_size: int) -> dict[str, object]:
    """Seconds a step by part.

    Args:
        wall_s: of the steps together.

    Returns:
        `step_s`; `parts`, seconds a step of each part and of `gaps`; `names`, the longest [name, part, seconds a step].
    """
    parts = dict.fromkeys(PARTS, 0.0)
    names: dict[tuple[str, str], float] = {}
    for ran in everything:
        part = part_of(ran, vocab_size)
        parts[part] += ran.seconds / steps
        label = ran.name if ran.operator in ("", ran.name) else f"{ran.operator}: {ran.name}"
        names[label[:100], part] = names.get((label[:100], part), 0.0) + ran.seconds / steps
    step_s = wall_s / steps
    longest = sorted(names.items(), key=lambda item: -item[1])[:SHOWN]
    return {
        "step_s": step_s,
        "parts": {**parts, "gaps": max(step_s - sum(parts.values()), 0.0)},
        "names": [[name, part, seconds] for (name, part), seconds in longest],
    }


def what_ran(events: Sequence[Any], is_cuda: bool) -> list[Ran]:
    """The kernels (on a CPU: the operators) of a profile's events, as `torch.profiler.profile.events()` has them."""
    operators = [event for event in events if event.device_type.name == "CPU"]
    if not is_cuda:
        return [
            Ran(event.name, event.name, _shapes(event), _scopes(event), event.self_cpu_time_total / 1e6)
            for event in operators
            # A scope's own time is Python's: a gap, but for the wait for data.
            if not event.is_user_annotation or event.name == DATA
        ]
    on_device = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    left: dict[str, float] = {}  # of a name: seconds of kernels whose operator is not found
    for event in on_device:
        left[event.name] = left.get(event.name, 0.0) + (event.time_range.end - event.time_range.start) / 1e6
    found = []
    for operator in operators:
        for kernel in operator.kernels:
            if kernel.name in left:  # scopes are drawn on the GPU's line of time as well
                seconds = kernel.duration / 1e6
                left[kernel.name] -= seconds
                found.append(Ran(kernel.name, operator.name, _shapes(operator), _scopes(operator), seconds))
    return found + [Ran(name, "", (), (), seconds) for name, seconds in left.items() if seconds > 1e-9]


def _any(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.search(name) for name in names)


def _has_vocabulary(shapes: Iterable[tuple[int, ...]], vocab_size: int) -> bool:
    return any(vocab_size <= size < vocab_size + PADDED_BY for shape in shapes for size in shape)


def _shapes(event: Any) -> tuple[tuple[int, ...], ...]:
    given = event.input_shapes or ()
    return tuple(
        tuple(size for size in shape if isinstance(size, int)) for shape in given if isinstance(shape, list | tuple)
    )


def _scopes(event: Any) -> tuple[str, ...]:
    names = [event.name]
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return tuple(names)
