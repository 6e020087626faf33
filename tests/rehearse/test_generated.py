"""`rehearse.generated`: launches and bytes in code as Inductor writes it."""

from __future__ import annotations

import pytest
from rehearse.generated import Buffer, Launch, read_code, read_signatures

CODE = """
import torch
triton_per_fused_add_norm_3 = async_compile.triton('triton_per_fused_add_norm_3', '''
@triton_heuristics.persistent_reduction(
    triton_meta={'signature': {'in_out_ptr0': '*bf16', 'in_ptr0': '*bf16', 'in_ptr1': '*i64', 'out_ptr0': '*i1', \
'load_seed_offset': 'constexpr', 'xnumel': 'i32', 'r0_numel': 'i32', 'XBLOCK': 'constexpr'}, 'device': 0},
)
@triton.jit
def triton_per_fused_add_norm_3(in_out_ptr0, in_ptr0, in_ptr1, out_ptr0, load_seed_offset, xnumel, r0_numel, XBLOCK):
    xnumel = 512
''', device_str='cuda')


class Runner:
    def call(self, args):
        primals_1, primals_2, primals_3 = args
        args.clear()
        s10 = primals_2
        assert_size_stride(primals_1, (512, 64), (64, 1))
        assert_size_stride(primals_3, (s10, ), (1, ))
        with torch.cuda._DeviceGuard(0):
            torch.cuda.set_device(0)
            buf0 = empty_strided_cuda((5, ), (1, ), torch.int64)
            aten.randint.low_out(-9, 9, [5], out=buf0)
            buf1 = empty_strided_cuda((512, 192), (192, 1), torch.bfloat16)
            extern_kernels.addmm(primals_1, primals_1, reinterpret_tensor(primals_1, (64, 192), (1, 64), 0), out=buf1)
            buf2 = torch.ops.torch_attn._varlen_attn.default(buf1, primals_3, 128, False)
            buf3 = buf2[0]
            assert_size_stride(buf3, (512, 64), (64, 1), 'torch.ops.torch_attn._varlen_attn.default')
            buf4 = empty_strided_cuda((512, 64), (64, 1), torch.bool)
            buf5 = buf3; del buf3  # reuse
            stream0 = get_raw_stream(0)
            triton_per_fused_add_norm_3.run(buf5, primals_1, buf0, buf4, 1, 512, 64, stream=stream0)
            buf6 = torch.ops.aten.view.dtype(buf4, torch.uint8)
            workspace_0 = empty_strided_cuda((1024, ), (1, ), torch.float32)
            buf7 = workspace_0[0 * 8 * 64 : (0 + 1) * 8 * 64].view(8, 64).sum(dim=0)
            del workspace_0
        return (buf5, )
"""


def test_launches_stand_in_order() -> None:
    found = [(launch.kind, launch.name) for launch in read_code(CODE).launches]
    assert found == [
        ("aten", "aten.randint.low_out"),
        ("product", "addmm"),
        ("attention", "_varlen_attn.default"),
        ("triton", "triton_per_fused_add_norm_3"),
        ("aten", "sum"),
    ]


def test_bytes_are_those_of_the_arguments() -> None:
    moved = {launch.name: launch.bytes for launch in read_code(CODE).launches}
    hidden = 512 * 64
    in_place, read, seeds, mask = 2 * 2 * hidden, 2 * hidden, 5 * 8, hidden
    assert moved["triton_per_fused_add_norm_3"] == in_place + read + seeds + mask
    assert moved["aten.randint.low_out"] == 5 * 8
    assert moved["sum"] == 4 * 8 * 64
    assert moved["addmm"] == moved["_varlen_attn.default"] == 0


def test_a_kernel_knows_its_ranges() -> None:
    (launch,) = [launch for launch in read_code(CODE).launches if launch.kind == "triton"]
    assert launch.sizes == (512, 64)
    assert launch.stem == "triton_per_fused_add_norm"


def test_signatures_leave_out_the_sizes_of_blocks() -> None:
    (signature,) = read_signatures(CODE).values()
    assert [*signature] == ["in_out_ptr0", "in_ptr0", "in_ptr1", "out_ptr0", "load_seed_offset", "xnumel", "r0_numel"]


def test_the_largest_buffer_of_a_type() -> None:
    code = read_code(CODE)
    assert code.largest("float32") == 1024
    assert code.largest("bfloat16") == 512 * 192
    assert code.largest("float64") == 0
    assert Buffer(5, 8, "int64") in code.allocated


def test_a_launch_with_other_arguments_than_its_signature_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        read_code(CODE.replace("buf4, 1, 512, 64, stream", "buf4, 512, 64, stream"))


def test_code_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no function `call`"):
        read_code("def run(args):\n    pass\n")


def test_stems_of_equal_kernels_are_equal() -> None:
    names = ("triton_poi_fused_gelu_4", "triton_poi_fused_gelu_11")
    assert {Launch("triton", name).stem for name in names} == {"triton_poi_fused_gelu"}
