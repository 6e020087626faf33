"""What ranks on one machine listen on: nothing that another machine reaches."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from .conftest import environment, free_port


def listening(process: psutil.Process) -> dict[str, int]:
    """Address -> sockets, of the process and those below it."""
    found: dict[str, int] = {}
    for one in (process, *process.children(recursive=True)):
        for connection in one.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.ip] = found.get(connection.laddr.ip, 0) + 1
    return found


def test_ranks_on_one_machine_listen_on_loopback(
    run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run_config["phases"][0]["steps"] = 100_000
    run_config["data"]["workers"] = 1
    config, port = write_config(run_config), str(free_port())
    variables = environment(WORLD_SIZE="2", LOCAL_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    del variables["GLOO_SOCKET_IFNAME"]  # the run chooses the interface
    with (tmp_path / "output.log").open("w") as log:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "maskloom.train", str(config)],
                env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]
    try:
        metrics, deadline_s = Path(run_config["run_dir"]) / "metrics.jsonl", time.monotonic() + 240
        while not metrics.exists() and time.monotonic() < deadline_s:
            assert all(rank.poll() is None for rank in ranks), (tmp_path / "output.log").read_text()
            time.sleep(0.2)
        assert metrics.exists()
        first, second = (listening(psutil.Process(rank.pid)) for rank in ranks)
        assert first.keys() == second.keys() == {"127.0.0.1"}
        assert sum(first.values()) == sum(second.values()) + 1  # the store
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
