"""A Hopper that is not there: what Inductor and Triton have to find of a GPU to write and compile their kernels for it.

Tensors are fake (`torch._subclasses.FakeTensorMode`): they have a shape, a type and a device, and no memory. What runs is
the compilation alone: dynamo's graph, autograd's, Inductor's fusion and code, Triton's and ptxas' machine code. Three things
stand in its way on a machine without a GPU, and each is met here:

- libraries that ask CUDA: `nvidia.c`, preloaded under the driver's name (`environment`);
- Python that asks torch.cuda or Triton's driver: the functions below (`install`), which describe an H200;
- small computations on the device while a graph is compiled (a folded constant, a pattern that is traced): on the CPU, or
  left out.

Written for torch 2.11. It needs the CUDA build: a CPU build has no Triton and no CUDA operators.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Properties:
    """What `torch.cuda.get_device_properties` says of an H200."""

    name: str = "NVIDIA H200"
    major: int = CAPABILITY[0]
    minor: int = CAPABILITY[1]
    multi_processor_count: int = 132
    total_memory: int = 141 << 30
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    warp_size: int = 32
    regs_per_multiprocessor: int = 65536
    shared_memory_per_block: int = 48 << 10
    shared_memory_per_block_optin: int = 227 << 10
    shared_memory_per_multiprocessor: int = 228 << 10
    L2_cache_size: int = 60 << 20
    gcnArchName: str = ""  # of AMD's
    is_integrated: bool = False
    is_multi_gpu_board: bool = False
    uuid: str = "0"
    pci_bus_id: int = 0
    pci_device_id: int = 0
    pci_domain_id: int = 0


@dataclass(frozen=True)
class Kernel:
    """A Triton kernel in one of the configurations that Inductor would try.

    Attributes:
        name: as Inductor gave it.
        blocks: XBLOCK and the like: what of its ranges one program does.
        warps: of a program.
        ptx: what ptxas compiles.
        cubin: what would be loaded.
    """

    name: str
    blocks: dict[str, int]
    warps: int
    ptx: str
    cubin: bytes


COMPILED: list[Kernel] = []
"""Every kernel that was compiled since `install`."""


def environment(folder: Path) -> dict[str, str]:
    """Of a process that is to `install`: with `nvidia.c` compiled into `folder`, and preloaded; all caches lie in `folder`.

    Raises:
        RuntimeError: there is no C compiler, or it failed.
    """
    library = folder / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(HERE / "nvidia.c")]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError("gcc is not installed: Triton compiles with it too") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(command)}: {error.stderr}") from None
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def install() -> None:
    """Let this process, whose environment is `environment`'s, believe in the GPU; to be called once, before models are built.

    Raises:
        RuntimeError: torch is a CPU build, or the driver's stand-in is not preloaded.
    """
    import torch

    if torch.version.cuda is None:
        raise RuntimeError(
            f"torch {torch.__version__} is a CPU build in {sys.prefix}; the CUDA build is needed, no GPU"
        )
    if Path(os.environ.get("LD_PRELOAD", "")).name != "libcuda.so.1":
        raise RuntimeError("the environment has to be that of fake_gpu.environment")
    _pretend_in_torch()
    _pretend_in_triton()
    _compile_here()
    _keep_kernels()


def _pretend_in_torch() -> None:
    import torch
    import torch.cuda.random

    properties, state = Properties(), torch.zeros(16, dtype=torch.uint8)

    class Stream:
        cuda_stream, stream_id, device_index, device = 0, 0, 0, torch.device("cuda", 0)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Stream)

        def __hash__(self) -> int:
            return 0

        def wait_stream(self, other: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "current_stream": lambda device=None: Stream(),
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_name": lambda device=None: properties.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
    }
    random: dict[str, Callable[..., Any]] = {
        "get_rng_state": lambda device="cuda": state,
        "set_rng_state": lambda new_state, device="cuda": None,
        "get_rng_state_all": lambda: [state],
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    _replace(torch.cuda, {**answers, **random})
    _replace(torch.cuda.random, random)
    _replace(torch.accelerator, {"is_available": lambda: False})  # it would make a context
    _replace(torch._C, {"_cuda_getCurrentRawStream": lambda device: 0, "_cuda_getDevice": lambda: 0})
    _replace(torch._subclasses.fake_tensor, {"init_gpu_context": lambda device: None})


def _pretend_in_triton() -> None:
    import torch._inductor.runtime.triton_helpers as helpers
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Utilities:
        def get_device_properties(self, device: int) -> dict[str, int]:
            known = Properties()
            return {
                "max_shared_mem": known.shared_memory_per_block_optin,
                "max_num_regs": known.regs_per_multiprocessor,
                "multiprocessor_count": known.multi_processor_count,
                "warpSize": known.warp_size,
            }

    class Driver:
        utils = Utilities()

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], Properties.warp_size)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

        def map_python_to_cpp_type(self, name: str) -> str:
            from triton.backends.nvidia.driver import ty_to_cpp

            return str(ty_to_cpp(name))

    pretended = Driver()
    driver.set_active(pretended)
    helpers.set_driver_to_gpu = lambda: driver.set_active(pretended)


def _compile_here() -> None:
    """In this process, without caches, and with nothing computed on the device."""
    import torch._functorch.config
    import torch._inductor.config as inductor
    from torch._inductor.fx_passes import fuse_attention, joint_graph, misc_patterns, pad_mm

    inductor.compile_threads = 1
    inductor.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    for name in ("static_cuda_launcher", "static_triton_launcher"):  # they load what was compiled
        for option in (f"use_{name}", f"strict_{name}"):
            if hasattr(inductor, option):
                setattr(inductor, option, False)
    # Patterns that these look for are traced on the device; none occurs in a model that calls varlen_attn.
    _replace(fuse_attention, {"_sfdp_init": lambda *device: None})
    _replace(misc_patterns, {"_misc_patterns_init": lambda *device: None})
    _replace(pad_mm, {"_pad_mm_init": lambda *device: None})
    # Constants are folded by computing a scalar on their device. That method, with the CPU for it:
    folder = joint_graph.UniformValueConstantFolder
    source = textwrap.dedent(inspect.getsource(folder._deduce_value))
    for old, new in (
        ("*new_args, **node.kwargs)", "*new_args, **{**node.kwargs, 'device': 'cpu'})"),
        (
            "node.target(*args, **kwargs)",
            "node.target(*args, **{**kwargs, **({'device': 'cpu'} if 'device' in kwargs else {})})",
        ),
    ):
        if old not in source:
            raise RuntimeError(f"torch {torch.__version__} folds constants in another way: {folder._deduce_value}")
        source = source.replace(old, new)
    names = dict(vars(joint_graph))
    exec(source, names)
    folder._deduce_value = names["_deduce_value"]


def _keep_kernels() -> None:
    import torch._inductor.runtime.triton_heuristics as heuristics

    def make_launcher(result: Any) -> Callable[..., None]:
        compiled, config = result.kernel, result.config
        blocks = {name: size for name, size in config.kwargs.items() if isinstance(size, int)}
        COMPILED.append(
            Kernel(compiled.metadata.name, blocks, config.num_warps, compiled.asm["ptx"], compiled.asm["cubin"])
        )

        def launcher(*arguments: object, **more: object) -> None:
            raise AssertionError("a kernel was launched, and there is no GPU")

        launcher.__dict__.update(
            config=config, n_regs=0, n_spills=0, shared=compiled.metadata.shared, store_cubin=False, cache_hash=None
        )
        launcher.__dict__.update(def_args=[], call_args=[])
        return launcher

    heuristics.TritonCompileResult.make_launcher = make_launcher


def _replace(module: Any, answers: dict[str, Callable[..., Any]]) -> None:
    for name, answer in answers.items():
        setattr(module, name, answer)
