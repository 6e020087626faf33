"""What a host tells about itself: `python -m maskloom.launch.doctor.facts`, a request as JSON on stdin, answers as JSON lines.

The first line is the host's clock, sent at once so that little time lies between; the second are its `Facts`. What only a
rank can know (the tokenizer as it reads it, blocks of shards, matrices on its GPUs) is found out by doing it. Nothing is
written but one file of a few bytes in the run's folder, which is removed.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maskloom
from maskloom.files import LOCK, NO_LOCKS
from maskloom.launch.ports import free_port, is_free

if TYPE_CHECKING:
    from maskloom.config import RunConfig
    from maskloom.data.index import Index

PACKAGES = ("torch", "deepspeed", "maskloom", "transformers", "numpy")
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


@dataclass(frozen=True)
class Request:
    """What is asked of a host.

    Attributes:
        number: of the host, in the hostfile's order.
        slots: ranks it is to run.
        world_size, first_rank: ranks in all, and the number of this host's first.
        config, overrides: of the run, as given.
        run_dir: of the run; empty where the configuration could not be read.
        token_file, token: a file that the asking machine wrote into the run's folder, and its text.
        blocks: of each corpus, to be read and verified.
        port: that the first rank would like to listen on; 0 on other hosts.
        environment: variables that a rank on this host will have.
    """

    number: int = 0
    slots: int = 1
    world_size: int = 1
    first_rank: int = 0
    config: str = ""
    overrides: tuple[str, ...] = ()
    run_dir: str = ""
    token_file: str = ""
    token: str = ""
    blocks: int = 16
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """One GPU, as torch and nvidia-smi see it. What nvidia-smi does not tell is None."""

    name: str
    memory_free_bytes: int | None = None
    memory_total_bytes: int | None = None
    uncorrected_errors: int | None = None
    slowed_by: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    fault: str | None = None
    """Why a product of matrices on it failed or was wrong."""


@dataclass(frozen=True)
class Corpus:
    """A corpus, as this host reads it.

    Attributes:
        path: as the configuration names it, without secrets.
        digest: of its index; None where that does not open.
        read, blocks: verified blocks, and all.
        fault: what is wrong with it; `is_skipped` where a run would pass over that.
    """

    path: str
    digest: str | None = None
    read: int = 0
    blocks: int = 0
    fault: str | None = None
    is_skipped: bool = False


@dataclass(frozen=True)
class RunFolder:
    """The run's folder, or where that would be made.

    Attributes:
        path: the nearest folder that exists.
        sees_token: whether the file is there that the asking machine wrote; None where it wrote none.
        fault: why nothing can be written.
        free_bytes, free_inodes: for this user; None where the file system does not say.
    """

    path: str
    sees_token: bool | None = None
    fault: str | None = None
    free_bytes: int | None = None
    free_inodes: int | None = None


@dataclass(frozen=True)
class Facts:
    """What a host tells.

    Attributes:
        source: digest of maskloom's Python files.
        memory_free_bytes: of the machine, or of this control group where it has less.
        device: `cuda` or `cpu`: what a rank would compute on.
        config_digest, tokenizer_digest: of the files; None where they cannot be read.
        refusal: what ends a run's own checks here, in its words.
        parameters: of the model; None where it cannot be built.
        fused_adam: how DeepSpeed's FusedAdam is to be had; None where it is not asked for.
        stale_locks: of builds of operators that were killed.
        is_port_free: whether nobody listens on the port that was asked about.
        port: that one, or else the next that is free; 0 where none is.
        spare_port: another free one.
    """

    hostname: str
    python: str
    packages: dict[str, str]
    source: str
    device: str
    cores: int
    memory_free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    config_digest: str | None = None
    tokenizer_digest: str | None = None
    refusal: str | None = None
    parameters: int | None = None
    corpora: tuple[Corpus, ...] = ()
    run: RunFolder | None = None
    fused_adam: str | None = None
    stale_locks: tuple[str, ...] = ()
    is_port_free: bool = True
    port: int = 0
    spare_port: int = 0

    @staticmethod
    def of(values: dict[str, Any]) -> Facts:
        """From JSON. Raises TypeError or KeyError where another maskloom wrote it."""
        nested = {
            "gpus": tuple(
                Gpu(**{**gpu, "slowed_by": tuple(gpu["slowed_by"]), "processes": tuple(gpu["processes"])})
                for gpu in values["gpus"]
            ),
            "corpora": tuple(Corpus(**corpus) for corpus in values["corpora"]),
            "run": RunFolder(**values["run"]) if values["run"] else None,
            "stale_locks": tuple(values["stale_locks"]),
        }
        return Facts(**{**values, **nested})


def main() -> int:
    """Answer one request. Returns the exit code: 0 whatever was found."""
    request = Request(**json.loads(sys.stdin.readline()))
    print(json.dumps({"unix_s": time.time()}), flush=True)
    os.environ |= request.environment
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        answer = json.dumps(asdict(look(request)))
    print(answer, flush=True)
    return 0


def look(request: Request) -> Facts:
    """Find out everything about this machine that `Facts` has room for."""
    import torch

    from maskloom.train.checkpoint.room import free_memory_bytes

    gpus = look_at_gpus(torch.cuda.device_count())
    return Facts(
        hostname=socket.gethostname(),
        python=platform.python_version(),
        packages=packages(),
        source=source_digest(Path(maskloom.__file__).parent),
        device="cuda" if gpus else "cpu",
        cores=len(os.sched_getaffinity(0)),
        memory_free_bytes=free_memory_bytes(),
        gpus=gpus,
        config_digest=file_digest(Path(request.config)) if request.config else None,
        run=look_at_folder(request) if request.run_dir else None,
        is_port_free=is_free(request.port),
        port=next_free_port(request.port) if request.port else 0,
        spare_port=spare_port(),
        **(as_a_rank(request) if request.config else {}),
    )


def as_a_rank(request: Request) -> dict[str, Any]:
    """What the first rank of this host would meet before its first step, and what of it is wrong."""
    from maskloom.config_file import load_config
    from maskloom.distributed import World
    from maskloom.errors import UserError
    from maskloom.train.engine.building import why_no_fused_adam
    from maskloom.train.engine.ops import stale_locks
    from maskloom.train.loop import prepare

    found: dict[str, Any] = {"stale_locks": tuple(str(lock) for lock in stale_locks())}
    try:
        config = load_config(request.config, request.overrides)
        tokenizer = Path(config.tokenizer)
        found["tokenizer_digest"] = file_digest(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer)
        found["corpora"] = tuple(look_at_corpora(config, request))
        found["parameters"] = parameters_of(config)
        prepare(config, World(request.first_rank, request.world_size, 0, request.slots))
    except (UserError, OSError) as error:
        found["refusal"] = str(error)
        return found
    if config.optimizer.name != "lamb" and look_for_cuda():
        why = why_no_fused_adam()
        found["fused_adam"] = f"torch's instead: {why}" if why else "installed, or compiled at the first start"
    return found


def look_for_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def packages() -> dict[str, str]:
    """Versions of what must be the same on every host."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = maskloom.__version__ if name == "maskloom" else "missing"  # run from its source
    return found


def source_digest(folder: Path) -> str:
    """One digest of all Python files below a folder, with their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def file_digest(file: Path) -> str | None:
    """Digest of a file's bytes; None where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError:
        return None


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


def ask_nvidia_smi(table: str, columns: list[str], names: list[str]) -> list[dict[str, str]]:
    """Rows of one of nvidia-smi's tables; none where there is no nvidia-smi or it knows a column not."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    command = [tool, f"{table}={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(names, (cell.strip() for cell in row), strict=True))
        for row in csv.reader(done.stdout.splitlines())
        if len(row) == len(names)
    ]


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


def look_at_folder(request: Request) -> RunFolder:
    """The run's folder: whether it is the asking machine's, and whether a file can be written there."""
    folder = nearest(Path(request.run_dir))
    sees = None
    if request.token_file:
        try:
            sees = Path(request.token_file).read_text() == request.token
        except OSError:
            sees = False
    fault = None
    own = folder / f".doctor-{request.token[:16] or os.getpid()}-{request.number}"
    try:
        own.write_text(request.token)
        if own.read_text() != request.token:
            fault = f"{own} does not hold what was written to it"
    except OSError as error:
        fault = str(error)
    with contextlib.suppress(OSError):
        own.unlink()
    try:
        room = os.statvfs(folder)
    except OSError as error:
        return RunFolder(str(folder), sees, fault or str(error))
    inodes = room.f_favail if room.f_files else None  # file systems without a fixed number say 0
    return RunFolder(str(folder), sees, fault, room.f_bavail * room.f_frsize, inodes)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists (as its absolute path)."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def lock_holder(run_dir: Path) -> str | None:
    """Who holds a run's lock, in words; None where nobody does. A holder on another machine, which locks may not reach, is known
    by touching the file: that may take SILENT_S."""
    from maskloom.train.run_lock import SILENT_S

    path = run_dir / LOCK
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open(encoding="utf-8") as lock:
        holder = lock.read().strip()
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two doctors do not find each other
            fcntl.flock(lock, fcntl.LOCK_UN)
        except BlockingIOError:
            return holder or "another process"
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if not holder or holder.endswith(f" on {socket.gethostname()}"):
            return None
        touched, end_s = path.stat().st_mtime, time.monotonic() + SILENT_S
        while time.monotonic() < end_s:
            if path.stat().st_mtime != touched:
                return holder
            time.sleep(0.5)
    return None


def look_at_corpora(config: RunConfig, request: Request) -> Iterator[Corpus]:
    """Open each corpus, and verify some blocks: the first, the last, and between them others on every host."""
    from maskloom.data.index import load_index
    from maskloom.errors import DataFault, UserError
    from maskloom.redaction import shown

    skips = config.data.on_bad_data == "skip"
    for corpus in config.data.corpora:
        path, read, index = shown(corpus.path), 0, None
        try:
            index = load_index(corpus.path, config.data.storage, finds_shards=not skips)
            for block in chosen_blocks(index, request):
                index.read(block)
                read += 1
        except (UserError, OSError) as error:
            digest, blocks = (index.digest[:16], count_blocks(index)) if index else (None, 0)
            yield Corpus(path, digest, read, blocks, str(error), skips and isinstance(error, DataFault))
        else:
            yield Corpus(path, index.digest[:16], read, count_blocks(index))


def count_blocks(index: Index) -> int:
    return len(index.columns["offset"])


def chosen_blocks(index: Index, request: Request) -> list[int]:
    """Blocks to verify: the first, the last, and others that differ from host to host."""
    blocks = count_blocks(index)
    if blocks <= request.blocks:
        return list(range(blocks))
    between = random.Random(request.number).sample(range(1, blocks - 1), request.blocks - 2)
    return sorted({0, blocks - 1, *between})


def next_free_port(port: int) -> int:
    try:
        return free_port(port)
    except OSError:
        return 0


def spare_port() -> int:
    """Any free port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def parameters_of(config: RunConfig) -> int | None:
    """Parameters of the run's model, without memory for them; None for a model to start from, which is another's."""
    import torch

    from maskloom.model.bert import build_model, count_parameters
    from maskloom.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer)
    if config.model.init is not None:
        return count_parameters(build_model(config.model, tokenizer, config.seed)[0])
    with torch.device("meta"):
        return count_parameters(build_model(config.model, tokenizer, config.seed)[0])


if __name__ == "__main__":
    sys.exit(main())
