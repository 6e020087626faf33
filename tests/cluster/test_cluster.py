"""The cluster is what it says: machines with networks and processes of their own, ssh, pdsh, Slurm; nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .cluster import HEAD, NODES, Cluster, InUse


def test_nodes_are_reached_by_ssh_and_slurm(cluster: Cluster) -> None:
    assert cluster.run_on(HEAD, ["ssh", "node1", "hostname"]).stdout == "node1\n"
    assert cluster.run_on("node1", ["ssh", cluster.address("node2"), "hostname"]).stdout == "node2\n"
    assert set(cluster.run_on(HEAD, ["pdsh", "-R", "ssh", "-w", "node[1-2]", "hostname"]).stdout.split()[1::2]) == set(
        NODES
    )
    assert set(cluster.run_on(HEAD, ["srun", "-N2", "-n2", "hostname"]).stdout.split()) == set(NODES)


def test_a_strange_host_key_is_refused(cluster: Cluster) -> None:
    refused = cluster.run_on(HEAD, ["ssh", "-o", "HostKeyAlias=stranger", "node1", "true"], check=False)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


def test_nodes_have_networks_and_processes_of_their_own(cluster: Cluster) -> None:
    assert cluster.run_on("node1", ["pgrep", "-c", "-x", "slurmd"]).stdout == "1\n"
    assert not Path("/sys/class/net/bridge").exists()
    outside = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    refused = cluster.run_on("node1", [sys.executable, "-c", outside], check=False)
    assert "Network is unreachable" in refused.stderr


def test_a_lost_link_tells_nobody(cluster: Cluster) -> None:
    cluster.link("node2", False)
    assert cluster.run_on(HEAD, ["ssh", "-o", "ConnectTimeout=1", "node2", "true"], check=False).returncode == 255
    cluster.link("node2", True)
    assert cluster.run_on(HEAD, ["ssh", "node2", "hostname"]).stdout == "node2\n"


def test_processes_are_found_by_a_word(cluster: Cluster) -> None:
    waits = [sys.executable, "-c", "import time; time.sleep(300)", "a-word-of-this-test"]
    started = cluster.start("node2", waits)
    while not (found := [each for each in cluster.processes("a-word-of-this-test") if each.argv[0] == sys.executable]):
        time.sleep(0.05)
    assert [each.machine for each in found] == ["node2"]
    os.kill(found[0].pid, signal.SIGKILL)
    assert started.wait(60)
    assert not cluster.processes("a-word-of-this-test")


def test_slurm_sees_a_node_whose_daemon_was_killed(cluster: Cluster) -> None:
    cluster.stop_slurmd("node2")
    cluster.start_slurmd("node2")
    cluster.settle()
    assert cluster.run_on(HEAD, ["srun", "-w", "node2", "hostname"]).stdout == "node2\n"


def test_nothing_is_left_when_the_owner_is_killed(cluster: Cluster) -> None:
    program = (
        "from tests.cluster.cluster import Cluster; import time\n"
        "cluster = Cluster.any_free()\n"
        "started = cluster.start('head', ['sleep', '300'])\n"
        "print(cluster.instance, flush=True); time.sleep(300)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    instance = int(owner.stdout.readline())
    other = Cluster.attach(instance)
    try:
        Cluster(instance).up()
        raise AssertionError("two clusters of one number")
    except InUse:
        pass
    owner.kill()
    owner.wait()
    with Cluster(instance) as again:  # clears what is left: the launched `sleep`
        assert not other.processes("")
        assert again.token != other.token
    assert not again.folder.exists()
