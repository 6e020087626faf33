"""Names of kernels and operators to parts of a step, and the sums over a profile."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskloom.train.kinds import DATA, OPTIMIZER, PARTS, TITLES, Ran, part_of, sum_up, what_ran

VOCAB = 30522
WIDE = ((1280, 768), (768, VOCAB + 6))  # a vocabulary that was padded to a multiple of 64
PLAIN = ((4096, 768), (768, 3072))

KERNELS = [  # part, kernel as CUDA calls it, operator that launched it, shapes
    ("gemm", "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "aten::mm", PLAIN),
    (
        "gemm",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_kernel__5x_cublas",
        "",
        (),
    ),
    (
        "gemm",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, false>",
        "aten::addmm",
        PLAIN,
    ),
    ("gemm", "triton_tem_fused_addmm_5", "", ()),
    ("head", "nvjet_hsh_256x128_64x4_2x1_v_bz_TNT", "aten::addmm", WIDE),
    ("head", "triton_red_fused__log_softmax__to_copy_nll_loss_forward_12", "", ()),
    (
        "head",
        "void at::native::cunn_SoftMaxForward<8, float, float, float, LogSoftMaxForwardEpilogue>",
        "aten::_log_softmax",
        (),
    ),
    ("attention", "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 64, 4, cutlass::bfloat16_t>>", "", ()),
    ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_32_64x64x64", "", ()),
    ("attention", "fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "", ()),
    ("attention", "nvjet_hsh_64x64_64x16_2x1_v_bz_NNT", "aten::bmm", ((96, 128, 64), (96, 64, 128))),
    ("attention", "void softmax_warp_forward<float, float, float, 7, false, false>", "aten::_softmax", ()),
    ("elementwise", "triton_poi_fused_addmm_gelu_4", "", ()),
    ("elementwise", "triton_per_fused__to_copy_add_native_dropout_native_layer_norm_3", "", ()),
    ("elementwise", "void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "aten::gelu", PLAIN),
    ("elementwise", "void at::native::vectorized_layer_norm_kernel<float, float>", "aten::native_layer_norm", ()),
    ("elementwise", "void at::native::embedding_kernel", "aten::embedding", ((VOCAB, 768), (4096,))),
    ("elementwise", "Memset (Device)", "", ()),
    ("elementwise", "Memcpy DtoD (Device -> Device)", "aten::copy_", ()),
    ("optimizer", "void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctor<float, float, int>>", "", ()),
    (
        "optimizer",
        "void at::native::multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor>",
        "aten::_foreach_norm",
        (),
    ),
    ("data", "Memcpy HtoD (Pinned -> Device)", "aten::copy_", ()),
    ("communication", "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "", ()),
]
OPERATORS = [  # part, operator of a CPU, shapes
    ("gemm", "aten::addmm", PLAIN),
    ("gemm", "mkl::_mkl_linear", PLAIN),
    ("head", "aten::mm", WIDE),
    ("head", "aten::_log_softmax_backward_data", ((1280, VOCAB),)),
    ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu_backward", ()),
    ("attention", "aten::bmm", ((384, 128, 64),)),
    ("attention", "graph_1_cpp_fused__softmax_masked_fill_7", ()),
    ("head", "graph_0_cpp_fused__log_softmax_nll_loss_forward_9", ()),
    ("elementwise", "graph_0_cpp_fused_addmm_gelu_view_3", ()),
    ("elementwise", "aten::native_layer_norm_backward", ()),
    ("optimizer", "aten::_fused_adamw_", ()),
    ("communication", "c10d::allreduce_", ()),
    ("other", "Torch-Compiled Region: 0/0", ()),
]


@pytest.mark.parametrize(("part", "kernel", "operator", "shapes"), KERNELS, ids=lambda value: str(value)[:40])
def test_kernels_of_a_gpu(part: str, kernel: str, operator: str, shapes: Any) -> None:
    assert part_of(Ran(kernel, operator, shapes, (operator,), 1.0), VOCAB) == part


@pytest.mark.parametrize(("part", "operator", "shapes"), OPERATORS, ids=lambda value: str(value)[:40])
def test_operators_of_a_cpu(part: str, operator: str, shapes: Any) -> None:
    assert part_of(Ran(operator, operator, shapes, (operator,), 1.0), VOCAB) == part


def test_what_runs_within_a_scope_is_the_scopes() -> None:
    inside = ("aten::mul_", OPTIMIZER, "ProfilerStep#3")
    assert part_of(Ran("aten::mul_", "aten::mul_", (), inside, 1.0), VOCAB) == "optimizer"
    assert part_of(Ran("aten::copy_", "aten::copy_", (), ("aten::copy_", DATA), 1.0), VOCAB) == "data"


def test_sums_are_seconds_a_step_and_the_rest_is_gaps() -> None:
    ran = [Ran("aten::mm", "aten::mm", PLAIN, (), 0.5), Ran("aten::mm", "aten::mm", WIDE, (), 0.25)]
    found = sum_up([*ran, *ran], wall_s=2.0, steps=2, vocab_size=VOCAB)
    assert found["step_s"] == 1.0
    assert found["parts"] == {**dict.fromkeys(PARTS, 0.0), "gemm": 0.5, "head": 0.25, "gaps": 0.25}
    assert found["names"] == [["aten::mm", "gemm", 0.5], ["aten::mm", "head", 0.25]]
    assert found["parts"].keys() == TITLES.keys()


@dataclass
class Event:
    """As torch.autograd.profiler_util.FunctionEvent, of which `what_ran` reads this much."""

    name: str
    device: str
    begin_us: float = 0.0
    end_us: float = 0.0
    kernels: list[Any] = field(default_factory=list)
    input_shapes: Any = ()
    cpu_parent: Event | None = None
    is_user_annotation: bool = False

    @property
    def device_type(self) -> Any:
        return SimpleNamespace(name=self.device)

    @property
    def time_range(self) -> Any:
        return SimpleNamespace(start=self.begin_us, end=self.end_us)


def test_a_kernel_has_its_operators_shapes_and_scopes_and_counts_once() -> None:
    scope = Event(OPTIMIZER, "CPU", is_user_annotation=True)
    product = Event(
        "aten::mm", "CPU", kernels=[SimpleNamespace(name="nvjet", duration=30.0)], input_shapes=[[8, 4], [4, VOCAB]]
    )
    update = Event("aten::mul_", "CPU", kernels=[SimpleNamespace(name="at::native::k", duration=5.0)], cpu_parent=scope)
    # The scope is drawn on the GPU's line of time too, and torch gives it to an operator as if it were a kernel.
    scope.kernels = [SimpleNamespace(name=OPTIMIZER, duration=99.0)]
    device = [
        Event("nvjet", "CUDA", 0.0, 30.0),
        Event("nvjet", "CUDA", 30.0, 50.0),  # of a CUDA graph: no operator
        Event("at::native::k", "CUDA", 50.0, 55.0),
        Event(OPTIMIZER, "CUDA", 0.0, 99.0, is_user_annotation=True),
    ]
    found = sum_up(what_ran([scope, product, update, *device], is_cuda=True), 100e-6, 1, VOCAB)
    expected = {"head": 30e-6, "gemm": 20e-6, "optimizer": 5e-6, "gaps": 45e-6}
    assert {part: seconds for part, seconds in found["parts"].items() if seconds > 1e-12} == pytest.approx(expected)


def test_a_profile_of_a_cpu_is_split() -> None:
    layer, head = torch.nn.Linear(64, 64), torch.nn.Linear(64, 300)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        loss = torch.nn.functional.cross_entropy(head(layer(torch.randn(8, 64))), torch.zeros(8, dtype=torch.int64))
        loss.backward()
        with torch.profiler.record_function(OPTIMIZER):
            layer.weight.detach().mul_(0.5)
        with torch.profiler.record_function(DATA):
            sum(range(1000))
    ran = what_ran(profile.events(), is_cuda=False)
    parts = {part: [one.name for one in ran if part_of(one, 300) == part] for part in PARTS}
    assert "aten::addmm" in parts["gemm"]  # the layer's
    assert {"aten::addmm", "aten::_log_softmax", "aten::nll_loss_forward"} <= set(parts["head"])
    assert "aten::mul_" in parts["optimizer"]
    assert parts["data"] == [DATA]
    assert sum(one.seconds for one in ran) > 0
