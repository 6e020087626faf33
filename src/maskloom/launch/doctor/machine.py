"""What a host finds out about itself, and what a rank there would meet.

`look` is the table of checks: name -> how it is looked up. The functions below it judge what is found. What only a rank can know
is found out by doing it: the tokenizer is read, blocks are verified, GPUs multiply. Nothing is written but one file of a few
bytes in the run's folder, which is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import random
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed
import numpy
import torch
import transformers

import maskloom
from maskloom import extensions
from maskloom.config import Checkpoint, Data, Engine, Optimizer, RunConfig
from maskloom.config_file import load_config
from maskloom.data.index.loading import load_index
from maskloom.errors import DataFault, UserError
from maskloom.hardware import ask_nvidia_smi, free_memory_bytes
from maskloom.launch.doctor.look import Facts, Line, Request, nearest
from maskloom.launch.probe import free_port, spare_port
from maskloom.models.outline import parameters_of
from maskloom.models.warm_start import tokenizer_of
from maskloom.optim import OPTIMIZERS
from maskloom.progress import size
from maskloom.redaction import shown
from maskloom.tokenizers.loading import find_tokenizer
from maskloom.train.encoder_probe import read_labelled
from maskloom.train.engine.device import unusable_gpus
from maskloom.train.engine.fused_adam import why_no_fused_adam
from maskloom.train.engine.ops import stale_locks
from maskloom.train.resume import check_model
from maskloom.train.setup import prepare
from maskloom.world import World

ERRORS, REASONS = "ecc.errors.uncorrected.volatile.total", "clocks_throttle_reasons.active"
COLUMNS = ("uuid", "memory.free", "memory.total", ERRORS, REASONS)
"""Of nvidia-smi's table of GPUs; memory in MiB."""
SLOWED_BY_FAULT = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""NVML's reasons for a lower clock that mean trouble."""
LOW_MEMORY_SHARE = 0.9
MATRIX = 256
FILES_A_RANK, SPARE_INODES = 2, 1000
OTHER_RUN = "another run's? Stop it, or choose another port"
UNREAD: Line = ("fail", "cannot be read", "name a file on a file system that all hosts share")


@dataclass
class Rank:
    """What the first rank of a host meets before its first step."""

    config: RunConfig | None = None
    refusal: str = ""  # what ends the run's own checks, in its words
    tokenizer: str | None = None  # digest of its file
    parameters: int = 0  # of the model; 0 if it cannot be built
    corpora: list[tuple[str, str | None, Line]] = field(
        default_factory=list
    )  # path, digest of the index, what is found


def look(request: Request) -> Facts:
    """All that this machine can tell."""
    rank, gpus = as_a_rank(request), torch.cuda.device_count()
    config = rank.config
    needed_bytes = rank_bytes(config.engine, config.optimizer, rank.parameters, request.world_size) if config else 0
    workers = config.data.workers if config else 0
    kinds = sorted({torch.cuda.get_device_name(number) for number in range(gpus)})
    packages = (torch, deepspeed, maskloom, transformers, numpy)  # a host that lacks one told that it cannot import it
    files = {"CONFIG": file_digest(Path(request.config))} | ({"tokenizer": rank.tokenizer} if config else {})
    same = {
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in packages},
        "maskloom's source": source_digest(Path(maskloom.__file__).parent),
        "GPU kinds": ", ".join(kinds),
        **files,
        **{f"data {path}": digest for path, digest, _ in rank.corpora},
    }
    checks: list[tuple[str, Iterable[Line]]] = [
        ("configuration", configuration(rank, request)),
        ("GPU health", gpu_health(min(gpus, request.slots), needed_bytes)),
        ("CPU cores", cores(len(os.sched_getaffinity(0)), request.slots, workers)),
        ("memory", memory(free_memory_bytes(), 0 if gpus else request.slots * needed_bytes)),
        *((name, [UNREAD]) for name in files if not files[name]),
        ("run_dir", run_dir(request)),
        *((name, [line]) for name, line in disk(rank, request)),
        *((f"data {path}", [line]) for path, _, line in rank.corpora),
        ("port", port(request)),
        ("FusedAdam", fused_adam(config.optimizer.name) if config else ()),
        ("operator builds", operator_builds()),
    ]
    lines = tuple((name, line) for name, found in checks for line in found)
    return Facts(lines, {name: value for name, value in same.items() if value}, gpus, unusable_gpus(), spare_port())


def as_a_rank(request: Request) -> Rank:
    """Do what a rank does before its first step, as far as that goes well."""
    rank = Rank()
    try:
        extensions.load()
        rank.config = config = load_config(request.config, request.overrides)
        rank.corpora += look_at_corpora(config.data, request)
        with contextlib.suppress(UserError):  # `prepare` says it
            rank.tokenizer = file_digest(find_tokenizer(config.tokenizer))
        with contextlib.suppress(UserError):  # `prepare` says it
            tokenizer = tokenizer_of(config.tokenizer, config.model.init)
            run, lengths = Path(config.run_dir), config.seq_lens
            described = check_model(run, config.from_, config.model, tokenizer, lengths, must_fit=False)
            rank.parameters = parameters_of(described)  # if it does not fit, `memory` says by how much
        prepare(config, World(request.first_rank, request.world_size))  # GPUs and slots are compared on their own
        read_labelled(config.evaluation.probe, World())
    except (UserError, OSError) as error:
        rank.refusal = str(error)
    return rank


def look_at_corpora(data: Data, request: Request) -> Iterator[tuple[str, str | None, Line]]:
    """Open each corpus, and verify some of its blocks. Yields its path, the digest of its index, and what is found."""
    skips = data.on_bad_data == "skip"
    for corpus in data.corpora:
        digest: str | None = None
        try:
            index = load_index(corpus.path, data.storage, finds_shards=not skips)
            digest, blocks = index.digest[:16], len(index.columns["offset"])
            chosen = chosen_blocks(blocks, request)
            for block in chosen:
                index.read(block)
            line: Line = ("ok", f"{len(index.columns['offset']):,} blocks; {len(chosen):,} read and verified", "")
        except (UserError, OSError) as error:
            line = ("fail", str(error), "a run would end there")
            if skips and isinstance(error, DataFault):
                line = ("warn", str(error), "a run skips it (data.on_bad_data: skip)")
        yield shown(corpus.path), digest, line


def chosen_blocks(blocks: int, request: Request) -> list[int]:
    """Blocks to verify: the first, the last, and others that differ from host to host."""
    if blocks <= request.blocks:
        return list(range(blocks))
    between = random.Random(request.number).sample(range(1, blocks - 1), request.blocks - 2)
    return sorted({0, blocks - 1, *between})


def source_digest(folder: Path) -> str:
    """One digest of all Python files below a folder, with their names."""
    files = [f"{file.relative_to(folder)} {file_digest(file)}\n" for file in sorted(folder.rglob("*.py"))]
    return hashlib.sha256("".join(files).encode()).hexdigest()[:16]


def file_digest(file: Path) -> str | None:
    """Digest of a file's bytes; None if it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def configuration(rank: Rank, request: Request) -> Iterator[Line]:
    """What a run refuses before it starts: its configuration, tokenizer, lanes, precision and ZeRO stage."""
    known = [value for _, _, (_, value, _) in rank.corpora]  # which have lines of their own
    if rank.config and not rank.refusal:
        engine, of_model = rank.config.engine, f", {rank.parameters:,} parameters" if rank.parameters else ""
        yield (
            "ok",
            f"{request.world_size} rank(s), precision {engine.precision}, ZeRO {engine.zero_stage}{of_model}",
            "",
        )
    elif request.run_dir and rank.refusal not in known:  # without it the asking machine could not read it, and says so
        yield "fail", rank.refusal, "a run would end with this"


def gpu_health(count: int, needed_bytes: int) -> Iterator[Line]:
    """What nvidia-smi tells of the first GPUs, and what they multiply."""
    if not count:
        return
    known = {row["uuid"]: row for row in ask_nvidia_smi("--query-gpu", COLUMNS)}
    users = ask_nvidia_smi("--query-compute-apps", ("gpu_uuid", "pid", "process_name"))
    found: list[Line] = []
    for number in range(count):
        uuid = f"GPU-{torch.cuda.get_device_properties(number).uuid}"
        others = [row for row in users if row["gpu_uuid"] == uuid and row["pid"] != str(os.getpid())]
        processes = [f"{row['process_name']} (process {row['pid']})" for row in others]
        faults = gpu_faults(known.get(uuid, {}), processes, multiply(number), needed_bytes)
        found += [(level, f"GPU {number}: {value}", remedy) for level, value, remedy in faults]
    yield from found or [("ok", "products exact, no uncorrected errors, no throttling, nobody else", "")]


def gpu_faults(row: dict[str, str], processes: Sequence[str], wrong: str | None, needed_bytes: int) -> Iterator[Line]:
    """What is wrong with one GPU.

    Args:
        row: of nvidia-smi's table, which says "[N/A]" for what the GPU does not have.
        processes: of others, on it.
        wrong: why a product of matrices failed, or what was wrong with it.
        needed_bytes: that a rank holds at least.
    """
    numbers: dict[str, int] = {}
    for name in COLUMNS[1:]:
        with contextlib.suppress(ValueError):
            numbers[name] = int(row.get(name, ""), 0)
    if wrong:
        yield "fail", wrong, "take the host out of the hostfile and have the GPU looked at"
    if errors := numbers.get(ERRORS):
        yield "fail", f"{errors} uncorrected memory error(s)", "reset it, or take the host out"
    if reasons := [why for bit, why in SLOWED_BY_FAULT.items() if numbers.get(REASONS, 0) & bit]:
        yield "warn", f"slowed down: {', '.join(reasons)}", "look at its cooling and power"
    if processes:
        yield "warn", f"in use by {', '.join(processes)}", "stop it, if an earlier run left it"
    if (free := numbers.get("memory.free", -1) << 20) < 0:
        return
    total = numbers.get("memory.total", 0) << 20
    if free < needed_bytes:
        yield "fail", too_little(free, needed_bytes), "free it, raise engine.zero_stage, or use more ranks"
    elif free < LOW_MEMORY_SHARE * total:
        yield "warn", f"{size(free)} of {size(total)} free", "something else holds the rest"


def multiply(number: int) -> str | None:
    """Multiply two matrices on a GPU; returns what is wrong with it or the product."""
    try:
        left, right = (torch.arange(MATRIX**2, dtype=torch.float64).reshape(MATRIX, MATRIX) % p for p in (7, 11))
        device = torch.device("cuda", number)
        # Small whole numbers: exact in every precision that a GPU may sum them in.
        product = (left.to(device, torch.float32) @ right.to(device, torch.float32)).cpu().double()
        return None if torch.equal(product, left @ right) else "a product of matrices came out wrong"
    except RuntimeError as error:
        return str(error).splitlines()[0]


def cores(count: int, slots: int, workers: int) -> Iterator[Line]:
    """A core for each rank and each of its reader processes."""
    if count < (processes := slots * (1 + workers)):
        value = f"{count} for {processes} processes ({slots} rank(s), {workers} reader(s) each)"
        yield "warn", value, "they wait for each other: fewer slots or data.workers"
    else:
        yield "ok", f"{count}", ""


def memory(free: int, needed_bytes: int) -> Iterator[Line]:
    """Room for what ranks on CPUs hold at least."""
    if free < needed_bytes:
        yield "fail", too_little(free, needed_bytes), "fewer slots, or a higher engine.zero_stage"
    else:  # a power of two, so that hosts of a kind say the same
        yield "ok", f"at least {size(1 << (free.bit_length() - 1))} free", ""


def bytes_of_numbers(engine: Engine) -> int:
    """Of one weight as it is computed with; `auto` counts as fp32, the larger."""
    return 2 if engine.precision in ("bf16", "fp16") else 4


def checkpoint_bytes(engine: Engine, optimizer: Optimizer, parameters: int) -> int:
    """Of one checkpoint, all ranks' files together: weights, ZeRO's fp32 copy of them, and the optimizer's moments."""
    width, stage = bytes_of_numbers(engine), engine.zero_stage
    weights = 0 if stage == 3 else width
    copy = 4 if stage or width == 2 else 0
    return parameters * (weights + copy + OPTIMIZERS[optimizer.name].state_bytes)


def checkpoints_at_most(settings: Checkpoint, steps: int) -> int:
    """Checkpoints of a run of so many steps that stand side by side at the fullest moment: the new one is whole before the
    oldest goes."""
    every = settings.every_steps or steps
    saves = steps if settings.keep_best else -(-steps // every)
    kept_for_good = steps // math.lcm(every, settings.keep_every_steps) if settings.keep_every_steps else 0
    best = settings.keep_last if settings.keep_best else 0  # the best one as of each of the newest
    return min(saves, settings.keep_last + 1 + kept_for_good + best)


def rank_bytes(engine: Engine, optimizer: Optimizer, parameters: int, world_size: int) -> int:
    """What a rank holds at least: weights, gradients, and its share of the optimizer's state. No activations."""
    width = bytes_of_numbers(engine)
    states = OPTIMIZERS[optimizer.name].state_bytes + (4 if width == 2 else 0)
    whole, shared = {0: (2 * width + states, 0), 1: (2 * width, states), 2: (width, width + states)}.get(
        engine.zero_stage, (0, 2 * width + states)
    )
    return int(parameters * (whole + shared / world_size))


def too_little(free: int, needed_bytes: int) -> str:
    return f"{size(free)} free, weights, gradients and moments are {size(needed_bytes)}"


def run_dir(request: Request) -> Iterator[Line]:
    """Whether the run's folder is the asking machine's, and whether a file can be written there."""
    if not request.run_dir:
        return
    sees, fault = not request.left_file or os.access(request.left_file, os.F_OK), ""
    own = nearest(Path(request.run_dir)) / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        own.write_text(own.name)
        if own.read_text() != own.name:
            fault = f"{own} does not hold what was written to it"
    except OSError as error:
        fault = str(error)
    with contextlib.suppress(OSError):
        own.unlink()
    if not sees:
        yield "fail", f"{request.run_dir} is another folder there", "set run_dir to a folder on a shared file system"
    if fault:
        yield "fail", fault, "choose another folder, or have it made writable"
    if sees and not fault:
        yield "ok", f"{request.run_dir} can be written", ""


def disk(rank: Rank, request: Request) -> Iterator[tuple[str, Line]]:
    """On the first host: the room that the run's folder has for checkpoints."""
    config = rank.config
    if request.number or not (config and rank.parameters and request.run_dir):
        return
    with contextlib.suppress(OSError):  # `run_dir` says it
        room = os.statvfs(nearest(Path(request.run_dir)))
        inodes = room.f_favail if room.f_files else None  # file systems without a fixed number say 0
        saved = len(list(Path(request.run_dir, "checkpoints").glob("step-*/manifest.json")))
        most = checkpoints_at_most(config.checkpoint, config.total_steps)
        count = max(1, most - saved)  # a new one is whole before an old one goes
        each_bytes = checkpoint_bytes(config.engine, config.optimizer, rank.parameters)
        yield from room_for(count, each_bytes, request.world_size, room.f_bavail * room.f_frsize, inodes)


def room_for(count: int, each_bytes: int, ranks: int, free: int, inodes: int | None) -> Iterator[tuple[str, Line]]:
    """Room for so many checkpoints, of so many bytes each. A file system may not say how many inodes are free."""
    value = f"{size(free)} free, {count} checkpoint(s) of about {size(each_bytes)} to come"
    remedy = "free space, lower checkpoint.keep_last, or set run_dir to another file system"
    yield "disk space", ("fail", value, remedy) if free < each_bytes * count else ("ok", value, "")
    needed = count * FILES_A_RANK * ranks + SPARE_INODES
    if inodes is not None and inodes < needed:
        remedy = "remove files there, or set run_dir to another file system"
        yield "disk inodes", ("fail", f"{inodes:,} inodes free, {needed:,} are wanted", remedy)


def port(request: Request) -> Iterator[Line]:
    """On the first host: whether its first rank can listen."""
    if not request.port:
        return
    try:
        found = free_port(request.port)
    except OSError:
        yield "fail", "none of those that belong to the run is free", OTHER_RUN
        return
    is_taken = request.needs_port and found != request.port
    yield ("fail", f"{request.port} is taken", OTHER_RUN) if is_taken else ("ok", f"{found} is free", "")


def fused_adam(optimizer: str) -> Iterator[Line]:
    """Whether DeepSpeed's FusedAdam can be had on GPUs, if the run would use it."""
    if OPTIMIZERS[optimizer].takes_fused_adam and torch.cuda.is_available():
        if why := why_no_fused_adam():
            remedy = "install nvcc and ninja for DeepSpeed's; without, a run takes torch's"
            yield "warn", f"torch's instead: {why}", remedy
        else:
            yield "ok", "installed, or compiled at the first start", ""


def operator_builds() -> Iterator[Line]:
    """What killed builds of operators left."""
    if paths := ", ".join(map(str, stale_locks())):
        remedy = "remove it: programs that build this extension wait for ever (a run of maskloom removes its own)"
        yield "warn", f"killed build left {paths}", remedy
