"""GPUs, as torch and nvidia-smi see them, and as they multiply."""

from __future__ import annotations

import os

from maskloom.launch.doctor.facts import Gpu
from maskloom.nvidia_smi import ask_nvidia_smi

GPU_FIELDS = {
    "name": "name",
    "memory_free_mib": "memory.free",
    "memory_total_mib": "memory.total",
    "uncorrected_errors": "ecc.errors.uncorrected.volatile.total",
    "throttle_reasons": "clocks_throttle_reasons.active",
    "uuid": "uuid",
}
"""Names of ours, and what nvidia-smi calls them."""
SLOWED_BY_FAULT = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""NVML's reasons of a lower clock that are no work as usual."""
MATRIX = 256


def look_at_gpus(count: int) -> tuple[Gpu, ...]:
    """The GPUs that torch sees, with what nvidia-smi knows of them."""
    if not count:
        return ()
    import torch

    known = {row["uuid"]: row for row in ask_nvidia_smi("--query-gpu", list(GPU_FIELDS.values()), list(GPU_FIELDS))}
    users: dict[str, list[str]] = {}
    for row in ask_nvidia_smi("--query-compute-apps", ["gpu_uuid", "pid", "process_name"], ["uuid", "pid", "name"]):
        if row["pid"] != str(os.getpid()):
            users.setdefault(row["uuid"], []).append(f"{row['name']} (process {row['pid']})")
    gpus = []
    for number in range(count):
        properties = torch.cuda.get_device_properties(number)
        uuid = f"GPU-{properties.uuid}"
        gpus.append(gpu_of(properties.name, known.get(uuid, {}), users.get(uuid, []), multiply(number)))
    return tuple(gpus)


def gpu_of(name: str, row: dict[str, str], processes: list[str], fault: str | None) -> Gpu:
    """A GPU from a row of nvidia-smi's table, in which a GPU leaves out what it does not have ("[N/A]")."""

    def number(key: str) -> int | None:
        try:
            return int(row.get(key, ""), 0)
        except ValueError:
            return None

    free, total, reasons = number("memory_free_mib"), number("memory_total_mib"), number("throttle_reasons") or 0
    return Gpu(
        name=name,
        memory_free_bytes=None if free is None else free << 20,
        memory_total_bytes=None if total is None else total << 20,
        uncorrected_errors=number("uncorrected_errors"),
        slowed_by=tuple(why for bit, why in SLOWED_BY_FAULT.items() if reasons & bit),
        processes=tuple(processes),
        fault=fault,
    )


def multiply(number: int) -> str | None:
    """Multiply two matrices on a GPU; returns what is wrong with it or the product."""
    import torch

    try:
        left, right = (torch.arange(MATRIX**2, dtype=torch.float64).reshape(MATRIX, MATRIX) % p for p in (7, 11))
        device = torch.device("cuda", number)
        # Small whole numbers: exact in every precision that a GPU may sum them in.
        product = (left.to(device, torch.float32) @ right.to(device, torch.float32)).cpu().double()
        return None if torch.equal(product, left @ right) else "a product of matrices came out wrong"
    except RuntimeError as error:
        return str(error).splitlines()[0]
