"""One case compiled for a Hopper in this process: `python -m rehearse.compiling CASE VARIANT FACTS.json`.

The process has the environment of `fake_gpu.environment`. The model is that of a training: `MaskedLM` in bf16, its micro-batch
of the case's size, forward and backward. It is compiled with two layers, over three numbers of pieces, and once more with
three: what the third adds is a layer in the middle, which is all that a deep model has more of. `zero3` is what ZeRO-3
compiles: the layer and the loss as functions of their own.

Variants are rows of kernels: `plain` has the `reference()` of each part, which is torch's own operator, and `ours` what
`engine.kernels: compile` runs.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rehearse import fake_gpu
from rehearse.generated import Code, read_code
from rehearse.machine_code import Compiled, examine

LAYERS = 2
PIECES_A_ROW = (3, 4, 1)
ZERO3 = "zero3"


@dataclass(frozen=True)
class Graph:
    """What Inductor made of a forward or a backward.

    Attributes:
        saved_bytes: of a forward, what it keeps for the backward beside its inputs.
    """

    is_backward: bool
    code: Code
    saved_bytes: int


@dataclass
class Compilation:
    """What came of compiling a model, and of running it with every number of pieces."""

    graphs: list[Graph] = field(default_factory=list)
    kernels: list[Compiled] = field(default_factory=list)
    breaks: dict[str, int] = field(default_factory=dict)
    captured: int = 0
    """Graphs that dynamo captured: one, or more where it broke off or began again for another number of pieces."""


def variants() -> dict[str, Any]:
    """Name -> `Kernels`."""
    from maskloom.models.kernels import KERNELS, Kernels

    plain = {name: importlib.import_module(f"maskloom.models.kernels.{name}").reference for name in Kernels._fields}
    return {"plain": Kernels(**plain), "ours": KERNELS["compile"]}


def compile_whole(case: Any, layers: int, kernels: Any, pieces_a_row: tuple[int, ...]) -> Compilation:
    """`model.compile`, as `engine.forward.prepare_forward` does it for ZeRO 0 to 2."""
    with _recording() as (backend, compilation), _fake_tensors():
        model = _build(case, layers, kernels)
        model.compile(backend=backend, dynamic=False)
        _train(model, case, pieces_a_row)
    return compilation


def compile_layers(case: Any, layers: int, kernels: Any, pieces_a_row: tuple[int, ...]) -> Compilation:
    """The function of a layer alone, as `engine.forward.prepare_forward` compiles it for ZeRO-3; the loss likewise."""
    import torch

    from maskloom.models.masked_lm import layers_of

    with _recording() as (backend, compilation), _fake_tensors():
        loss = torch.compile(kernels.cross_entropy, backend=backend, fullgraph=True, dynamic=False)
        model = _build(case, layers, kernels._replace(cross_entropy=loss))
        run = torch.compile(model.architecture.run, backend=backend, fullgraph=True, dynamic=False)
        for layer in layers_of(model):
            layer.run = run
        _train(model, case, pieces_a_row)
    return compilation


@contextmanager
def _recording() -> Iterator[tuple[Callable[..., Any], Compilation]]:
    """A backend that compiles as Inductor does and runs the graph as it was, which fake tensors can; and what it found."""
    import torch
    from torch._dynamo.utils import counters
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.utils import clear_caches

    torch._dynamo.reset()
    counters.clear()
    clear_caches()  # so that kernels of an earlier model are seen again
    fake_gpu.COMPILED.clear()
    compilation = Compilation()

    def inner(module: Any, inputs: Any, **options: Any) -> Any:
        compiled = compile_fx_inner(module, inputs, **options)
        is_backward = bool(options.get("is_backward", False))
        saved = 0 if is_backward else saved_bytes(module)
        compilation.graphs.append(Graph(is_backward, read_code(compiled.source_code), saved))
        return make_boxed_func(lambda *values: module(*values))

    yield lambda module, inputs, **options: compile_fx(module, inputs, inner_compile=inner), compilation
    compilation.breaks = dict(counters["graph_break"])
    compilation.captured = counters["stats"]["unique_graphs"]
    compilation.kernels = [examine(kernel) for kernel in fake_gpu.COMPILED]


def _fake_tensors() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def _build(case: Any, layers: int, kernels: Any) -> Any:
    import torch
    from step.jobs import bare_config
    from transformers import modeling_utils

    from maskloom.models.masked_lm import new_model

    # Weights that have no memory need no values; drawing them would ask for a generator on the device.
    modeling_utils.PreTrainedModel.init_weights = lambda self: self.tie_weights(recompute_mapping=False)
    config = bare_config(case, layers)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = new_model(config).train()
    finally:
        torch.set_default_dtype(usual)
    model.kernels = kernels
    return model


def _train(model: Any, case: Any, pieces_a_row: tuple[int, ...]) -> None:
    import torch

    from maskloom.data.batch import MicroBatch

    slots = case.micro_batch_rows * case.seq_len
    predicted = predicted_of(case)

    def empty(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="cuda")

    for pieces in pieces_a_row:
        batch = MicroBatch(
            input_ids=empty(slots, torch.int64),
            positions=empty(slots, torch.int64),
            pieces=empty(slots, torch.int32),
            cu_seqlens=empty(pieces * case.micro_batch_rows + 1, torch.int32),
            masked_index=empty(predicted, torch.int64),
            targets=empty(predicted, torch.int64),
            weights=empty(predicted, torch.float32),
            seq_len=case.seq_len,
        ).to(torch.device("cuda"))
        loss, _ = model(batch)
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None


def predicted_of(case: Any) -> int:
    """Predicted tokens of a micro-batch: of each row, the case's share of what is neither [CLS] nor [SEP]."""
    return int(case.micro_batch_rows * round(case.mask_rate * (case.seq_len - 2)))


def saved_bytes(module: Any) -> int:
    """Of a forward graph's results, but for the loss and the hits, what is computed in it."""
    *_, output = module.graph.nodes
    saved = [node for node in output.args[0] if hasattr(node, "meta") and node.op != "placeholder"]
    values = [node.meta["val"] for node in saved]
    return sum(
        value.numel() * value.element_size() for value in values if hasattr(value, "element_size") and value.ndim
    )


@dataclass
class Work:
    """All launches of kernels that are alike, in the forward or the backward.

    Attributes:
        issued: instructions that all their warps issue; None if a loop's turns are not known.
    """

    kind: str
    launches: int = 0
    bytes: int = 0
    issued: int | None = 0


def works(graph: Graph, kernels: list[Compiled]) -> dict[str, Work]:
    """Launches of a graph by the stem of their name."""
    by_name: dict[str, list[Compiled]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel)
    found: dict[str, Work] = {}
    for launch in graph.code.launches:
        work = found.setdefault(launch.stem, Work(launch.kind))
        work.launches += 1
        work.bytes += launch.bytes
        tried = [issued(kernel, launch.sizes) for kernel in by_name.get(launch.name, [])]
        counted = [count for count in tried if count is not None]
        if counted and work.issued is not None:
            work.issued += min(
                counted
            )  # the configuration that a GPU would be found fastest with, as far as one can tell
        elif launch.kind == "triton":
            work.issued = None
    return found


def issued(kernel: Compiled, sizes: tuple[int, ...]) -> int | None:
    """Instructions that the warps of a launch issue; None if the number of a loop's turns does not follow from the sizes.

    Args:
        sizes: the ranges that it is launched over. Programs share the first; rows of the last stay in a program.
    """
    if kernel.loop == 0 and "XBLOCK" in kernel.blocks:
        programs = -(-sizes[0] // kernel.blocks["XBLOCK"])
        return kernel.warps * kernel.straight * programs
    if "RSPLIT_SIZE" in kernel.blocks:  # a reduction along both ranges: a program goes over so many rows, XBLOCK a turn
        programs = -(-sizes[0] // kernel.blocks["RSPLIT_SIZE"])
        turns = -(-sizes[0] // kernel.blocks["XBLOCK"])
        return kernel.warps * (kernel.straight * programs + kernel.loop * turns)
    return None


def difference(more: dict[str, Work], less: dict[str, Work], times: int = 1) -> dict[str, Work]:
    """What of the first is not in the second, whose works count `times`."""
    found = {}
    for stem in {**more, **less}:
        kind = (more.get(stem) or less[stem]).kind
        one, other = more.get(stem, Work(kind)), less.get(stem, Work(kind))
        is_unknown = one.issued is None or other.issued is None
        left = Work(
            kind,
            one.launches - times * other.launches,
            one.bytes - times * other.bytes,
            None if is_unknown else (one.issued or 0) - times * (other.issued or 0),
        )
        if left.launches or left.bytes:
            found[stem] = left
    return found


def facts_of(case: Any, two: Compilation, three: Compilation) -> dict[str, Any]:
    """A case's facts as JSON has them; see `rehearse.checks` and `rehearse.prediction` for what becomes of them."""
    layer, rest = {}, {}
    for direction, number in (("forward", 0), ("backward", 1)):
        few, many = (works(made.graphs[number], made.kernels) for made in (two, three))
        each = difference(many, few)
        layer[direction] = {stem: asdict(work) for stem, work in each.items()}
        rest[direction] = {stem: asdict(work) for stem, work in difference(few, each, LAYERS).items()}
    return {
        "case": asdict(case),
        "predicted": predicted_of(case),
        **graph_facts(two),
        "layer": layer,
        "rest": rest,
        "saved_bytes_a_layer": three.graphs[0].saved_bytes - two.graphs[0].saved_bytes,
    }


def graph_facts(compilation: Compilation) -> dict[str, Any]:
    directions = Counter("backward" if graph.is_backward else "forward" for graph in compilation.graphs)
    return {
        "graphs": dict(directions),
        "captured": compilation.captured,
        "breaks": compilation.breaks,
        "largest_fp32": max(graph.code.largest("float32") for graph in compilation.graphs),
        "kernels": len({kernel.name for kernel in compilation.kernels}),
        "spilled_bytes": {kernel.name: kernel.spilled_bytes for kernel in compilation.kernels if kernel.spilled_bytes},
    }


def compile_case(name: str, variant: str) -> dict[str, Any]:
    """Facts of a case of `step.cases`, or of `zero3`, at BERT-base's size and 128 slots."""
    from step.cases import CASES

    cases = {case.name: case for case in CASES["cuda"]}
    kernels = variants()[variant]
    if name == ZERO3:
        case = cases["base-128"]
        return {
            "case": asdict(case),
            "predicted": predicted_of(case),
            **graph_facts(compile_layers(case, LAYERS, kernels, PIECES_A_ROW)),
        }
    two = compile_whole(cases[name], LAYERS, kernels, PIECES_A_ROW)
    three = compile_whole(cases[name], LAYERS + 1, kernels, PIECES_A_ROW[:1])
    return facts_of(cases[name], two, three)


def main() -> None:
    name, variant, file = sys.argv[1:]
    fake_gpu.install()
    import torch

    torch._dynamo.config.fail_on_recompile_limit_hit = True
    Path(file).write_text(json.dumps(compile_case(name, variant), indent=1))


if __name__ == "__main__":
    main()
