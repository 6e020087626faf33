from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.world import LOOPBACK, World

DEEPSPEED = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
MASTER = {"MASTER_ADDR": "node-a", "MASTER_PORT": "29511"}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "40017",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "node-[a-b]",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
SRUN = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node-[a-b]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


def scontrol(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `scontrol` be a shell script."""
    file = folder / "scontrol"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(
    "environment", [DEEPSPEED, TORCHRUN, SRUN, OPEN_MPI], ids=["deepspeed", "torchrun", "srun", "mpi"]
)
def test_every_launcher_gives_the_same_world(environment: dict[str, str]) -> None:
    assert World.discover(environment | MASTER) == World(5, 8, 1, 4, "node-a", 29511)


def test_deepspeed_without_a_local_size_counts_one() -> None:
    environment = {name: value for name, value in DEEPSPEED.items() if name != "LOCAL_SIZE"}
    assert World.discover(environment | MASTER).local_size == 1


def test_torch_variables_win_over_slurms() -> None:
    """`deepspeed` and `torchrun` are also started inside Slurm jobs."""
    assert World.discover(SRUN | {"SLURM_PROCID": "0"} | TORCHRUN | MASTER).rank == int(TORCHRUN["RANK"])


@pytest.mark.parametrize("environment", [{}, BATCH_SCRIPT], ids=["nothing", "batch script without a step"])
def test_without_a_launcher_a_process_is_alone(environment: dict[str, str]) -> None:
    world = World.discover(environment)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)
    assert world.master_addr == LOOPBACK
    assert world.is_first


@pytest.mark.parametrize(("text", "count"), [("4(x2)", 4), ("3", 3), ("2,1", 2), ("2(x3),1", 2), ("", 1)])
def test_tasks_a_node_in_slurms_notation(text: str, count: int) -> None:
    assert World.discover(SRUN | MASTER | {"SLURM_STEP_TASKS_PER_NODE": text}).local_size == count


@pytest.mark.parametrize(("node", "count"), [("0", 8), ("1", 8), ("2", 4), ("3", 8), ("no number", 8)])
def test_each_node_of_slurms_has_its_own_count(node: str, count: int) -> None:
    counts = {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": node}
    assert World.discover(SRUN | MASTER | counts).local_size == count


def test_slurms_first_host_is_the_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, '[ "$3" = "node-[a-b]" ] && printf "node-a\\nnode-b\\n"', monkeypatch)
    world = World.discover(SRUN)
    assert world.master_addr == "node-a"
    assert 1024 < world.master_port < 32768  # below Linux's ephemeral ports
    other = World.discover(SRUN | {"SLURM_JOB_ID": str(int(SRUN["SLURM_JOB_ID"]) + 1)})
    assert other.master_port != world.master_port


def test_a_node_list_that_cannot_be_expanded_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, "exit 1", monkeypatch)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        World.discover(SRUN)


def test_a_machine_without_scontrol_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        World.discover(SRUN)


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": "8"},
        {"RANK": "-1"},
        {"RANK": "first"},
        {"WORLD_SIZE": ""},
        {"LOCAL_RANK": ""},
        {"MASTER_PORT": "http"},
        {"MASTER_PORT": "0"},
        {"MASTER_PORT": "65536"},
        {"WORLD_SIZE": "²"},
        {"LOCAL_WORLD_SIZE": "0"},
    ],
)
def test_variables_that_make_no_sense_are_named(change: dict[str, str]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        World.discover(DEEPSPEED | MASTER | change)


def test_what_is_exported_is_discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    world = World(3, 4, 1, 2, "node-c", 1234)
    world.export()
    assert World.discover() == world


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70), st.integers(0, 500))
def test_shares_tile_in_rank_order_and_differ_by_at_most_one(size: int, total: int) -> None:
    worlds = [World(rank, size) for rank in range(size)]
    shares = [world.share(total) for world in worlds]
    assert [item for share in shares for item in share] == list(range(total))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert {world.largest_share(total) for world in worlds} == {max(lengths)}


def test_only_rank_zero_is_first() -> None:
    assert [World(rank, 3).is_first for rank in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.1.1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("node1", False),
        ("127.example.org", False),
    ],
)
def test_gloo_talks_on_loopback_where_the_ranks_meet_there(
    address: str, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    World(0, 2, 0, 2, address).export()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == ("lo" if local else None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    World(0, 2, 0, 2, address).export()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
