"""`rehearse.machine_code`: instructions in a disassembly, and what ptxas says."""

from __future__ import annotations

import pytest
from rehearse.machine_code import Count, count_instructions, jump_target, read_resources

STRAIGHT = """
\t\tFunction : triton_per_fused_add_norm_3
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000ff00000000800 */
        /*0010*/              @!P0 LDG.E.64 R8, desc[UR10][R8.64+0x8] ;   /* 0x0000080a08087981 */
                                                                          /* 0x001eaa000c1e1b00 */
        /*0020*/               @P0 BRA 0x40 ;                             /* 0x00000000004c0947 */
        /*0030*/                   IMAD.HI.U32 R2, R7, 0x300, RZ ;        /* 0x0000030007027824 */
        /*0040*/                   EXIT ;                                 /* 0x000000000000794d */
        /*0050*/                   BRA 0x50;                              /* 0xfffffffc00fc7947 */
        /*0060*/                   NOP;                                   /* 0x0000000000007918 */
        /*0070*/                   NOP;                                   /* 0x0000000000007918 */
"""
LOOP = STRAIGHT.replace("IMAD.HI.U32 R2, R7, 0x300, RZ ;", "@!P5 BRA 0x10 ;")


def test_code_without_a_loop_is_issued_once() -> None:
    assert count_instructions(STRAIGHT) == Count(straight=5, loop=0)


def test_a_loop_goes_from_its_target_to_its_branch() -> None:
    assert count_instructions(LOOP) == Count(straight=2, loop=3)


def test_a_loop_within_a_loop_counts_once() -> None:
    nested = LOOP.replace("@P0 BRA 0x40", "@P0 BRA 0x20")
    assert jump_target("@P0 BRA 0x20") == 0x20
    assert count_instructions(nested.replace("LDG.E.64 R8, desc[UR10][R8.64+0x8]", "BRA 0x10")) == Count(2, 3)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("BRA 0x36b0", 0x36B0),
        ("@!P5 BRA 0x650", 0x650),
        ("BRA.DIV UR4, 0x10", None),
        ("@P1 BRA P2, 0x3160", 0x3160),
        ("BRA.U !UP0, 0x80", 0x80),
        ("BSYNC B0", None),
        ("MOV R1, 0x650", None),
    ],
)
def test_jumps(text: str, target: int | None) -> None:
    assert jump_target(text) == target


def test_no_code_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction"):
        count_instructions("nvdisasm: nothing to do")


def test_registers_and_spills() -> None:
    report = """ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 162 registers, used 1 barriers, 16 bytes smem"""
    assert read_resources(report) == (162, 20)


def test_a_report_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no registers or spills"):
        read_resources("ptxas info    : 0 bytes gmem")
