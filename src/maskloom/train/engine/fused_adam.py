"""DeepSpeed's FusedAdam, if every rank can have it.

It is a CUDA extension. A build of DeepSpeed may hold it ready; otherwise it is compiled at the first start. All ranks take it or
none does: its state has another layout than torch's.

A build of DeepSpeed that was made without a GPU holds DeepSpeed's operator of the same name for CPUs. Which it is follows from
what the library links. That is read from the file: readelf need not be installed, and loading the library would run it. An ELF
file's dynamic section is a list of (tag, value): DT_NEEDED is the place of a name in the table of texts whose address DT_STRTAB
has. Addresses become places in the file by the segments that are loaded from it. (System V ABI, chapter 5.)
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import mmap
import re
import socket
from pathlib import Path
from struct import error, unpack_from

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from maskloom.distributed import World, gather_objects
from maskloom.optim.kind import FromDeepSpeed, OptimizerKind
from maskloom.progress import noted_when_slow, say, warn
from maskloom.redaction import one_line, shortened
from maskloom.train.engine.cuda_home import settle_cuda_home
from maskloom.train.engine.muon import muon_for
from maskloom.train.engine.ops import load_operator

OF_A_GPU = re.compile(r"lib(cudart|c10_cuda|torch_cuda|amdhip64|c10_hip|torch_hip)[-.]")
"""Libraries of which an operator for GPUs links at least one; wheels that carry their own write a digest behind the name."""
TELLING = re.compile(r"(?i)\b(error|fatal|cannot|undefined|not found|no such)\b")
FAILED = "its build failed"
DOES_NOT_STEP = "it does not step"
ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB = 0, 1, 5


def why_no_fused_adam() -> str | None:
    """What stands in the way of FusedAdam here, as far as can be seen without compiling it; None if nothing does."""
    if get_accelerator().device_name() != "cuda":
        return "it is for CUDA"
    if is_ready():
        return None
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException, assert_no_cuda_mismatch
    from torch.utils.cpp_extension import verify_ninja_availability

    settle_cuda_home()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert_no_cuda_mismatch("fused_adam")
        verify_ninja_availability()
    except (CUDAMismatchException, MissingCUDAException, RuntimeError) as error:
        return str(error).strip().removeprefix(">- DeepSpeed Op Builder: ")
    return None


def is_ready() -> bool:
    """Whether the installed DeepSpeed holds the operator, built for GPUs."""
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if not installed_ops.get("fused_adam", False) or accelerator_name != get_accelerator().device_name():
        return False
    file = importlib.util.find_spec("deepspeed.ops.adam.fused_adam_op")
    return bool(file and file.origin and links_a_gpu(Path(file.origin)))


def links_a_gpu(library: Path) -> bool:
    """Whether a shared library links one of CUDA's or ROCm's. What cannot be read links none."""
    try:
        return any(map(OF_A_GPU.match, linked_libraries(library)))
    except (OSError, ValueError):
        return False


def offered(kind: OptimizerKind, world: World) -> FromDeepSpeed:
    """What DeepSpeed offers for an optimizer of this kind: FusedAdam, if the kind takes it and all ranks can have it. Every rank
    calls it."""
    muon_class = functools.partial(muon_for, world)
    if not kind.takes_fused_adam:
        return FromDeepSpeed(muon_class=muon_class)
    if why := why_refused(world):
        return FromDeepSpeed(None, why if torch.cuda.is_available() else "", muon_class)
    return FromDeepSpeed(deepspeed.ops.adam.FusedAdam, "", muon_class)


@functools.cache  # a roll-back builds an engine anew: a build that failed would take its minutes again
def why_refused(world: World) -> str:
    """Why FusedAdam is not taken, in a few words; empty if it is.

    The ranks agree whether all have it. The first rank of each machine compiles it, while the others wait.
    """
    if get_accelerator().device_name() != "cuda":
        return "it is for CUDA"
    if why := first_fault(why_no_fused_adam(), world):
        return why
    for mine in (world.local_rank == 0, world.local_rank > 0):
        if why := first_fault(fault_of_loading() if mine else None, world):
            if world.is_first:
                warn(f"DeepSpeed's FusedAdam is not to be had: {why}. All ranks take torch's fused AdamW instead")
            return why.partition(":")[0]  # FAILED or DOES_NOT_STEP
    return ""


def first_fault(mine: str | None, world: World) -> str | None:
    """What is in the way on the first rank that has anything in its way, on all ranks alike."""
    faults = gather_objects([mine, socket.gethostname()], world)
    for rank, (fault, host) in enumerate(faults):
        if fault is not None:
            return f"{fault} (rank {rank} on {host})" if world.size > 1 else str(fault)
    return None


def fault_of_loading() -> str | None:
    """Load the operator, compiled before if need be, and try it; what went wrong, or None."""
    builder = deepspeed.ops.op_builder.FusedAdamBuilder()
    load = builder.load if is_ready() else functools.partial(builder.jit_load, verbose=False)
    try:
        with noted_when_slow(lambda: say("operator fused_adam: nvcc compiles it, a minute or two at a first start")):
            module = load_operator(builder, load)
        if not links_a_gpu(Path(module.__file__)):
            return f"{FAILED}: {module.__file__} is for CPUs"
    except Exception as error:  # of DeepSpeed, torch, ninja and the compiler: the run can do without
        return f"{FAILED}: {telling_line(str(error))}"
    return fault_of_step()


def fault_of_step() -> str | None:
    """One step on this rank's device: an operator may load that was not compiled for this GPU. What went wrong, or None."""
    try:
        weights = torch.nn.Parameter(torch.ones(8, device=get_accelerator().current_device_name()))
        weights.grad = torch.ones_like(weights)
        deepspeed.ops.adam.FusedAdam([weights], lr=0.5).step()
        stepped = weights.tolist()  # waits for the device
    except Exception as error:  # of CUDA: the run can do without
        said, *_ = str(error).splitlines() or [type(error).__name__]
        return f"{DOES_NOT_STEP}: {shortened(one_line(said))}"
    # The first step of Adam is by the learning rate, against the gradient's sign.
    return None if all(abs(weight - 0.5) < 1e-3 for weight in stepped) else f"{DOES_NOT_STEP}: from 1 to {stepped}"


def telling_line(output: str) -> str:
    """The line of a compiler's output that says what is wrong, shortened."""
    lines = [line for line in output.splitlines() if line.strip()]
    told = [line for line in lines[1:] if TELLING.search(line) and not line.startswith(("FAILED:", "ninja:"))]
    return shortened(one_line((told or lines or ["no reason given"])[0]))


def linked_libraries(file: Path) -> list[str]:
    """Names of the libraries that a shared library of x86-64 or arm64 links, such as libc.so.6.

    Raises:
        ValueError: it is none, or is damaged.
    """
    with file.open("rb") as opened:
        try:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _linked(content)
        except (error, IndexError, KeyError, OverflowError, ValueError) as fault:
            raise ValueError(f"{file} is not a shared library: {fault!r}") from None


def _linked(content: mmap.mmap) -> list[str]:
    if content[:6] != ELF64_LITTLE_ENDIAN:
        raise ValueError("it does not begin as one")
    (table,) = unpack_from("<Q", content, 32)
    size, count = unpack_from("<HH", content, 54)
    segments = [unpack_from("<I4xQQ8xQ", content, table + number * size) for number in range(count)]
    dynamic = [(place, length) for kind, place, _, length in segments if kind == PT_DYNAMIC]
    needed, texts = [], 0
    for at in range(dynamic[0][0], sum(dynamic[0]), 16):
        tag, value = unpack_from("<qQ", content, at)
        if tag == DT_NULL:
            break
        needed += [value] if tag == DT_NEEDED else []
        texts = value if tag == DT_STRTAB else texts
    loaded = [
        (place, start) for kind, place, start, length in segments if kind == PT_LOAD and 0 <= texts - start < length
    ]
    begin = texts - loaded[0][1] + loaded[0][0]
    return [content[begin + name : content.find(b"\0", begin + name)].decode() for name in needed]
