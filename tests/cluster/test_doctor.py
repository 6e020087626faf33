"""`maskloom doctor --hostfile` on two nodes: all is well; and each of them can be the one that is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import Cluster

Visit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def visit(cluster: Cluster, run_config: dict, write_config: Callable[[dict], Path]) -> Visit:
    """Run doctor on node1; nothing of it may be left anywhere."""
    config = write_config(run_config)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "maskloom.cli", "doctor", "--hostfile", str(cluster.hostfile()), str(config)]
        done = cluster.run_on("node1", [*command, *arguments], check=False, timeout_s=600)
        assert cluster.processes("maskloom.launch.doctor") == []
        return done

    return run


def test_two_nodes_are_well(visit: Visit, run_config: dict) -> None:
    done = visit()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "over 2 ranks (gloo)" in done.stdout
    assert not Path(run_config["run_dir"]).exists()


def test_a_node_without_its_network(visit: Visit, cluster: Cluster) -> None:
    cluster.link("node2", False)
    done = visit()
    assert done.returncode == 1
    (failure,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failure.split()[1:3] == ["hosts", "node2"]
    assert "Connection timed out" in failure or "No route to host" in failure


def test_a_node_that_sees_other_folders(visit: Visit, cluster: Cluster, run_config: dict, tokenizer_dir: Path) -> None:
    Path(run_config["run_dir"]).mkdir()
    folders = [run_config["run_dir"], str(tokenizer_dir)]
    for folder in folders:
        cluster.run_on("node2", ["mount", "-t", "tmpfs", "none", folder])
    try:
        done = visit()
    finally:
        for folder in folders:
            cluster.run_on("node2", ["umount", folder])
    assert done.returncode == 1
    failures = [line.split()[1:3] for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failures == [["configuration", "node2"], ["tokenizer", "node2"], ["run_dir", "node2"]]
