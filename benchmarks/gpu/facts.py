"""What is here: the GPU and its driver, versions, and whether every module of maskloom can be imported."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

NO_DEVICE = 3


def import_everything() -> dict[str, list[str]]:
    """Import every module of maskloom; returns what is missing or wrong, with the modules that cannot be imported for it."""
    import maskloom

    faults: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(maskloom.__path__, "maskloom."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:  # whatever it is, the next module may tell more
            faults.setdefault(repr(error)[:200], []).append(module.name)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"], check=False, timeout=30)
    import torch

    print(f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds {torch.cuda.device_count()} GPU(s)")
    if options.device == "cuda":
        if not torch.cuda.is_available():
            print("torch can use no GPU here: see docs/install.md")
            return NO_DEVICE
        print(f"{torch.cuda.get_device_name()}, compute capability {torch.cuda.get_device_capability()}", flush=True)
    faults = import_everything()
    for fault, modules in faults.items():
        print(f"{len(modules)} module(s) cannot be imported, {modules[0]} for one: {fault}")
    if not faults:
        from machine import name_of, stamp
        from torch.utils.cpp_extension import CUDA_HOME

        facts = {"device": name_of(options.device), "stamp": stamp("benchmarks/gpu_check.sh", options.device)}
        print(json.dumps(facts, indent=1), f"\nCUDA_HOME {CUDA_HOME}")
        options.out.write_text(json.dumps(facts), encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
