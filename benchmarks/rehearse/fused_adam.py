"""DeepSpeed's FusedAdam built for a Hopper on a machine without a GPU, as a wheel, and looked into.

Three things have to be said, or the build gives something else without a word: `DS_ACCELERATOR=cuda`, or DeepSpeed takes the
operator of the same name that it has for CPUs; `TORCH_CUDA_ARCH_LIST`, or it asks the GPU; and where CUDA's libraries have
their headers, since a toolkit may hold the compiler alone. These lie in torch's nvidia-* wheels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata, util
from pathlib import Path

ARCHITECTURE = "9.0"
CUBIN = re.compile(r"\S*multi_tensor_adam\S*sm_90\S*\.cubin")


def build(folder: Path) -> Path:
    """A wheel of the DeepSpeed that is installed, with FusedAdam compiled for compute capability 9.0; about two minutes.

    Raises:
        RuntimeError: there is no nvcc, or the build failed.
    """
    found = util.find_spec("nvidia")
    headers = [
        str(part)
        for root in (found.submodule_search_locations or [] if found else [])
        for part in Path(root).glob("cu*/include")
    ]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cuda",
        "DS_BUILD_FUSED_ADAM": "1",
        "TORCH_CUDA_ARCH_LIST": ARCHITECTURE,
        "CUDA_HOME": str(cuda_home()),
        "CPATH": os.pathsep.join([*headers, *filter(None, [os.environ.get("CPATH")])]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # ninja
        "MAX_JOBS": "2",
    }
    command = [sys.executable, "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(folder), f"deepspeed=={metadata.version('deepspeed')}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    (wheel,) = folder.glob("deepspeed-*.whl")
    return wheel


def cuda_home() -> Path:
    """The toolkit of the nvcc on the PATH, which may be a wrapper elsewhere: nvcc itself says where its parts are.

    Raises:
        RuntimeError: there is none.
    """
    try:
        said = subprocess.run(["nvcc", "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(
            "nvcc is not on the PATH: FusedAdam needs CUDA's compiler, of torch's CUDA version"
        ) from None
    return read_home(said.stdout + said.stderr)


def read_home(dry_run: str) -> Path:
    """The toolkit's folder in what `nvcc --dryrun` prints."""
    found = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"nvcc does not say where its toolkit is: {dry_run.strip()[:300]}")
    return Path(found[1].strip()).resolve()


def cubins(wheel: Path, folder: Path, cuobjdump: str) -> list[str]:
    """Machine code for a Hopper in the wheel's FusedAdam, by name; none in the operator that is for CPUs.

    Raises:
        RuntimeError: the wheel has no FusedAdam.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if re.search(r"fused_adam_op.*\.so$", name)]
        if not names:
            raise RuntimeError(f"{wheel.name} has no fused_adam_op")
        library = archive.extract(names[0], folder)
    listed = subprocess.run([cuobjdump, "--list-elf", library], capture_output=True, text=True)
    return CUBIN.findall(listed.stdout)
