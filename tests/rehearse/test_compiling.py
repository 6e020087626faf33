"""`rehearse.compiling`: what is counted of a compilation; the compilation itself needs torch's CUDA build (`make rehearse`)."""

from __future__ import annotations

import operator

import torch
from rehearse.compiling import Graph, Work, difference, issued, saved_bytes, variants, works
from rehearse.generated import Code, Launch
from rehearse.machine_code import Compiled


def kernel(name: str, blocks: dict[str, int], warps: int, straight: int, loop: int = 0) -> Compiled:
    return Compiled(name, blocks, warps, registers=32, spilled_bytes=0, straight=straight, loop=loop)


def test_every_warp_of_every_program_issues_straight_code() -> None:
    assert issued(kernel("a", {"XBLOCK": 2}, 4, 100), (9, 768)) == 4 * 100 * 5


def test_a_split_reduction_turns_once_for_each_block_of_rows() -> None:
    split = kernel("a", {"XBLOCK": 2, "RSPLIT_SIZE": 64}, 4, straight=10, loop=100)
    assert issued(split, (128, 768)) == 4 * (10 * 2 + 100 * 64)


def test_other_loops_are_not_known() -> None:
    assert issued(kernel("a", {"XBLOCK": 64, "R0_BLOCK": 8}, 4, 10, 100), (128, 768)) is None


def test_equal_kernels_are_added_up_in_their_faster_configuration() -> None:
    launches = [
        Launch("triton", "triton_poi_gelu_1", 100, (64,)),
        Launch("triton", "triton_poi_gelu_2", 100, (64,)),
        Launch("product", "mm"),
    ]
    kernels = [
        kernel("triton_poi_gelu_1", {"XBLOCK": 64}, 1, 30),
        kernel("triton_poi_gelu_1", {"XBLOCK": 32}, 1, 20),
        kernel("triton_poi_gelu_2", {"XBLOCK": 64}, 1, 31),
    ]
    found = works(Graph(False, Code(launches), 0), kernels)
    assert found == {"triton_poi_gelu": Work("triton", 2, 200, 30 + 31), "mm": Work("product", 1, 0, 0)}


def test_a_kernel_that_nobody_examined_is_not_known() -> None:
    found = works(Graph(False, Code([Launch("triton", "triton_poi_gelu_1", 100, (64,))]), 0), [])
    assert found["triton_poi_gelu"].issued is None


def test_what_a_layer_adds() -> None:
    two = {"norm": Work("triton", 4, 40, 400), "embed": Work("triton", 1, 7, 70)}
    three = {"norm": Work("triton", 6, 62, 600), "embed": Work("triton", 1, 7, 70)}
    layer = difference(three, two)
    assert layer == {"norm": Work("triton", 2, 22, 200)}
    # the last layer's norm writes less than the others'
    assert difference(two, layer, 2) == {"norm": Work("triton", 0, -4, 0), "embed": Work("triton", 1, 7, 70)}


def test_what_a_forward_saves_is_what_it_computed_and_gives_on() -> None:
    graph = torch.fx.Graph()
    weight = graph.placeholder("weight")
    hidden, loss = (graph.call_function(operator.add, (weight, number)) for number in (1, 2))
    weight.meta["val"] = torch.empty(1000)
    hidden.meta["val"], loss.meta["val"] = torch.empty(3, 5, dtype=torch.bfloat16), torch.empty(())
    graph.output((loss, hidden, weight))
    assert saved_bytes(torch.fx.GraphModule({}, graph)) == 3 * 5 * 2


def test_variants_are_torchs_operators_and_ours() -> None:
    from maskloom.models.kernels import KERNELS, dropout

    found = variants()
    assert found["plain"].dropout is dropout.reference
    assert found["ours"] is KERNELS["compile"]
