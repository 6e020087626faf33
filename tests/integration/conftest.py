"""Training runs of several real ranks over gloo."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskloom.train.checkpoint import saved_at
from maskloom.train.engine import full_precision_weights


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(config: str, rank: int, size: int, port: int, log: str, fake_fp16: bool, compiles: bool) -> None:
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

    os._exit(main([config]))


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., str]:
    """Train a configuration file with `size` ranks; returns their output, and fails where one of them fails.

    The ranks fork from a server that has imported everything already: what costs ten seconds otherwise.
    """

    def run(config: Path, size: int = 1, fake_fp16: bool = False, expect: int = 0, compiles: bool = True) -> str:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["maskloom.train.loop", "torch.utils.tensorboard"])
        log, port = tmp_path / "output.log", free_port()
        log.unlink(missing_ok=True)
        ranks = [
            context.Process(target=_rank, args=(str(config), rank, size, port, str(log), fake_fp16, compiles))
            for rank in range(size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(240)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        assert codes == [expect] * size, f"exit codes {codes}:\n{log.read_text()}"
        return log.read_text()

    return run


def lines(run: Path | str) -> list[dict]:
    """The training lines of metrics.jsonl."""
    text = (Path(run) / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def losses(run: Path | str) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run)}


def final_weights(run: Path | str) -> dict[str, torch.Tensor]:
    return full_precision_weights(saved_at(Path(run)))
