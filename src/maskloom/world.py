"""Which rank of a run this process is, and where the ranks meet. It imports no torch: a command may ask before it does.

`World.discover` is the only reader of the launchers' variables. It tries, in this order:

- `deepspeed` and `torchrun`: RANK, WORLD_SIZE, LOCAL_RANK;
- `srun`: SLURM_PROCID, inside a job step;
- `mpirun` of Open MPI: OMPI_COMM_WORLD_*.

Without any of them the process is alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from maskloom.errors import UserError

LOOPBACK, LOOPBACK_INTERFACE = "127.0.0.1", "lo"
LARGEST_PORT = 65535


@dataclass(frozen=True)
class World:
    """This process is `rank` of `size` ranks, and `local_rank` of the `local_size` on this machine. All count from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    master_addr: str = LOOPBACK
    master_port: int = 29500

    @staticmethod
    def discover(environment: Mapping[str, str] = os.environ) -> World:
        """Read the launcher's variables. Raises UserError if they contradict each other or are not numbers."""
        if "RANK" in environment and "WORLD_SIZE" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            if "LOCAL_WORLD_SIZE" not in environment:
                names = (*names[:3], "LOCAL_SIZE")  # the deepspeed launcher's name for it
        elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
            # A batch script has SLURM_PROCID too, but it is not a step: there this process is alone.
            names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        elif "OMPI_COMM_WORLD_RANK" in environment:
            prefix = "OMPI_COMM_WORLD_"
            names = (f"{prefix}RANK", f"{prefix}SIZE", f"{prefix}LOCAL_RANK", f"{prefix}LOCAL_SIZE")
        else:
            return World(master_port=free_port())
        rank, size, local_rank, local_size = (_integer(environment, name) for name in names)
        if not (0 <= rank < size):
            raise UserError(f"{names[0]}={rank} is not below {names[1]}={size}: the launcher's variables contradict")
        if local_size < 1:
            raise UserError(f"{names[3]}={local_size} in the environment: a machine with a rank has at least one")
        return World(rank, size, local_rank, local_size, _master_addr(environment), _master_port(environment))

    def export(self) -> None:
        """Set the variables that torch.distributed and DeepSpeed read, whatever launcher started this process."""
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_SIZE": str(self.local_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }
        if self.is_on_loopback and LOOPBACK_INTERFACE in (name for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE)

    def share(self, total: int) -> range:
        """This rank's part of `total` items. The parts are contiguous, in rank order, and differ by at most one item."""
        return range(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def largest_share(self, total: int) -> int:
        """The most items that any rank has."""
        return -(-total // self.size)

    @property
    def is_on_loopback(self) -> bool:
        """Whether the ranks meet at an address that only this machine reaches."""
        return is_loopback(self.master_addr)

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def is_loopback(host: str) -> bool:
    """Whether an address is on loopback: in 127.0.0.0/8, ::1, or the name localhost. Other names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _integer(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if name == "SLURM_STEP_TASKS_PER_NODE":
        text = _of_this_node(text, environment.get("SLURM_NODEID", "0"))
    if not text and name in ("LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        text = "1"
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{name}={text!r} in the environment is not a number: was this started by a launcher?")
    return int(text)


def _of_this_node(counts: str, node: str) -> str:
    """Tasks on one node, from Slurm's list of counts: "2(x3),1" is three nodes with 2 tasks and one with 1.

    If the number of the node is not in the list, the first count is taken.
    """
    each: list[str] = []
    for count, _, times in re.findall(r"([^,(]+)(\(x([0-9]{1,6})\))?", counts):
        each += [count] * int(times or 1)
    number = int(node) if re.fullmatch(r"[0-9]{1,6}", node) else 0
    return each[number] if number < len(each) else counts.split(",")[0].split("(")[0]


def _master_addr(environment: Mapping[str, str]) -> str:
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        return LOOPBACK
    remedy = f"cannot expand the node list {nodes!r} with scontrol: set MASTER_ADDR to the first host"
    try:
        listing = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    except OSError:  # scontrol is not installed, as in most containers
        raise UserError(remedy) from None
    if listing.returncode:
        raise UserError(remedy)
    return listing.stdout.split()[0]


def _master_port(environment: Mapping[str, str]) -> int:
    if "MASTER_PORT" in environment:
        port = _integer(environment, "MASTER_PORT")
        if not 1 <= port <= LARGEST_PORT:
            raise UserError(f"MASTER_PORT={port} in the environment is not a port: choose one from 1 to {LARGEST_PORT}")
        return port
    job = environment.get("SLURM_JOB_ID", "")
    # A port for each job, below the ephemeral range, so that two jobs on one node do not mix.
    return 12000 + int(job) % 20000 if re.fullmatch(r"[0-9]{1,18}", job) else 29500


def free_port(host: str = LOOPBACK, port: int = 0) -> int:
    """A port that a server can listen on: `port`, or any if that is 0.

    Raises:
        OSError: the port is in use, or the address is not one of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections that ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])
