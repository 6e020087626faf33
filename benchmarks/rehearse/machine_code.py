"""What ptxas made of a kernel: registers, spills, and how many instructions a warp issues for its share of the work.

A GPU's scheduler issues one instruction of a warp a cycle. A kernel that has to issue more of them than its bytes leave
cycles for is bound by instructions, whatever the memory's speed. For code without a loop the count is exact: what stands in
the code is issued once by each warp. For code with loops, what lies within the loop is counted once a turn.

The disassembler (`cuobjdump`, with `nvdisasm`) and `ptxas` are those of the triton package, triton/backends/nvidia/bin.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rehearse.fake_gpu import Kernel

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)


@dataclass(frozen=True)
class Count:
    """Instructions of a kernel's code.

    Attributes:
        straight: outside of loops; issued once by each warp.
        loop: from the target of the last branch backwards to that branch, loops within it included; 0 without a loop.
    """

    straight: int
    loop: int


@dataclass(frozen=True)
class Compiled:
    """A kernel in one configuration, as facts."""

    name: str
    blocks: dict[str, int]
    warps: int
    registers: int
    spilled_bytes: int
    straight: int
    loop: int


def examine(kernel: Kernel) -> Compiled:
    """Raises RuntimeError if one of NVIDIA's tools fails."""
    registers, spilled, count = _look_into(kernel.ptx, kernel.cubin)
    return Compiled(kernel.name, kernel.blocks, kernel.warps, registers, spilled, count.straight, count.loop)


@functools.cache
def _look_into(ptx: str, cubin: bytes) -> tuple[int, int, Count]:
    """Once for each code: models of another depth have mostly the same."""
    return (*resources(_tool("ptxas"), ptx), count_instructions(disassemble(_tool("cuobjdump"), cubin)))


def count_instructions(sass: str) -> Count:
    """Of the one function in a disassembly. What follows the last jump of a kernel to itself is padding, and no instruction.

    Raises:
        ValueError: there is no instruction in it.
    """
    found = [(int(address, 16), text) for address, text in INSTRUCTION.findall(sass)]
    branches = [(place, jump_target(text)) for place, text in found]
    ends = [place for place, target in branches if target == place]
    if not found:
        raise ValueError("no instruction in the disassembly")
    code = [place for place, _ in found if not ends or place < ends[-1]]
    loops = [(target, place) for place, target in branches if target is not None and target < place]
    within = {place for place in code for first, last in loops if first <= place <= last}
    return Count(len(code) - len(within), len(within))


def jump_target(text: str) -> int | None:
    """Address that an instruction jumps to, or None for what is no jump."""
    jump = re.search(r"\bBRA(?:\.\w+)*\s+(?:!?U?P\d+,\s*)?(?:`\(\S+\)|0x([0-9a-f]+))", text)
    return int(jump[1], 16) if jump and jump[1] else None


def read_resources(report: str) -> tuple[int, int]:
    """Registers a thread and bytes that are spilled (stores and loads), from what `ptxas -v` says of one kernel.

    Raises:
        ValueError: it says neither.
    """
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if registers is None or spills is None:
        raise ValueError(f"no registers or spills in what ptxas says: {report.strip()[:300]}")
    return int(registers[1]), int(spills[1]) + int(spills[2])


def resources(ptxas: str, ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes of a kernel that ptxas compiles once more, with a report."""
    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    assert target is not None, "PTX names its target"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", f"--gpu-name={target[1]}", str(source), "-o", str(source.with_suffix(".cubin"))]
        return read_resources(_run(command))


def disassemble(cuobjdump: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        return _run([cuobjdump, "-sass", str(file)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[:500]}")
    return done.stdout + done.stderr


def _tool(name: str) -> str:
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)
