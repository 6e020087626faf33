"""Training runs of several real ranks over gloo."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from maskloom.config import MODELS
from maskloom.train.checkpoint import saved_at
from maskloom.train.engine.files import full_precision_weights

PRELOADED = [
    "maskloom.train.loop",
    "torch.utils.tensorboard",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # torch's inductor comes with it, whatever the optimizer
    __name__,
]
_server: list[int] = []  # the process that ranks fork from

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# Pieces are longer than the window. Of four layers the first and the last see the whole piece.
WINDOWED = {
    **SHAPE,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "global_rope_theta": 1000.0,
    "local_rope_theta": 100.0,
}
TINY = {"bert": SHAPE, "roberta": SHAPE, "xlm-roberta": SHAPE, "camembert": SHAPE, "modernbert": WINDOWED}
"""The section `model` of a tiny run of each architecture, without its name and its dropouts."""

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "LOCAL_WORLD_SIZE",
    "DS_ACCELERATOR",
)
"""What launchers tell ranks."""


def tiny(architecture: str, dropout: float = 0.0) -> dict[str, Any]:
    """The section `model` of a tiny run, with this probability for every dropout that the architecture has."""
    dropouts = dict.fromkeys(MODELS[architecture].dropouts, dropout)
    return {"architecture": architecture, **TINY[architecture], **dropouts}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """For processes that a test starts: without what an earlier one may have left in this process, and with gloo on loopback."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def _rank(
    configs: list[str],
    rank: int,
    size: int,
    port: int,
    log: str,
    fake_fp16: bool,
    compiles: bool,
    patch: Callable[[], None] | None,
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    if fake_fp16:  # DeepSpeed refuses fp16 on most CPUs, where it works all the same
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        CPU_Accelerator.is_fp16_supported = lambda self: True
    if not compiles:
        torch.compiler.set_stance("force_eager")
    from maskloom.train.__main__ import main

    if patch is not None:
        patch()
    codes = (main([config]) for config in configs)
    os._exit(next((code for code in codes if code), 0))


def forked_ranks() -> ForkServerContext:
    """A context whose processes fork from a server that has imported everything already: what costs ten seconds otherwise.

    One that runs for something else, such as the readers of a corpus, has not, and ends first.
    """
    context = multiprocessing.get_context("forkserver")
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if _server != [server._forkserver_pid]:
        server._stop()
        context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
        _server[:] = [server._forkserver_pid]
    return context


def start_ranks(
    configs: Sequence[Path],
    size: int,
    log: Path,
    fake_fp16: bool = False,
    compiles: bool = True,
    patch: Callable[[], None] | None = None,
) -> list[multiprocessing.process.BaseProcess]:
    """Start `size` processes, each of which trains configuration files one after the other.

    `patch` is called in each before it begins.
    """
    context = forked_ranks()
    port, names = free_port(), [str(config) for config in configs]
    ranks = [
        context.Process(target=_rank, args=(names, rank, size, port, str(log), fake_fp16, compiles, patch))
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    return list(ranks)


def train_in_ranks(
    configs: Sequence[Path],
    size: int,
    log: Path,
    fake_fp16: bool = False,
    expect: int = 0,
    timeout_s: float = 240,
    compiles: bool = True,
    patch: Callable[[], None] | None = None,
    meanwhile: Callable[[list[int]], None] | None = None,
) -> str:
    """Train configuration files one after the other, in the same `size` processes; returns their output, and fails where
    one of them fails. `meanwhile` is called once they run, with their process ids."""
    log.unlink(missing_ok=True)
    ranks = start_ranks(configs, size, log, fake_fp16, compiles, patch)
    if meanwhile:
        meanwhile([rank.pid or 0 for rank in ranks])
    for rank in ranks:
        rank.join(timeout_s)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [expect] * size, f"exit codes {codes}:\n{log.read_text()}"
    return log.read_text()


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., str]:
    """Train a configuration file with `size` ranks: see `train_in_ranks`."""

    def run(config: Path, size: int = 1, fake_fp16: bool = False, expect: int = 0, compiles: bool = True) -> str:
        return train_in_ranks([config], size, tmp_path / "output.log", fake_fp16, expect, compiles=compiles)

    return run


def lines(run: Path | str) -> list[dict]:
    """The training lines of metrics.jsonl."""
    text = (Path(run) / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def losses(run: Path | str) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run)}


def final_weights(run: Path | str) -> dict[str, torch.Tensor]:
    return full_precision_weights(saved_at(Path(run)))


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a library of `peers.txt`, installed when it is first asked for."""
    from .peers import install

    folder = tmp_path_factory.mktemp("peers")
    return lambda name: install(name, folder)


def note_rows(batches: str, batch: Any, trainer: Any) -> None:
    """In a rank: add to the run's and the rank's file what each lane gave to a step. `batches` is how the files' names begin."""
    lanes = torch.from_numpy(batch.rows.input_ids).chunk(len(batch.cursors))
    with Path(f"{batches}.{trainer.run.name}.{trainer.world.rank}").open("a") as file:
        for lane, rows in zip(batch.cursors, lanes, strict=True):
            digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
            file.write(json.dumps([batch.number + 1, lane, digest]) + "\n")


def batches_of(batches: Path, run: str) -> dict[tuple[int, int], str]:
    """(step, lane) -> digest of the rows that it was given last."""
    found: dict[tuple[int, int], str] = {}
    for file in sorted(batches.parent.glob(f"{batches.name}.{run}.*")):
        for line in file.read_text().splitlines():
            step, lane, digest = json.loads(line)
            found[step, lane] = digest
    return found
