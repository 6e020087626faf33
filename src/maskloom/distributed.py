"""The ranks of a run: which one this process is, how they meet, and sums over them.

`World.discover` is the only reader of the launchers' variables. It tries, in this order:

- `deepspeed` and `torchrun`: RANK, WORLD_SIZE, LOCAL_RANK;
- `srun`: SLURM_PROCID, inside a job step;
- `mpirun` of Open MPI: OMPI_COMM_WORLD_*.

Without any of them the process is alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch.distributed import distributed_c10d

from maskloom.addresses import LARGEST_PORT, LOOPBACK, free_port, is_loopback
from maskloom.errors import PassingFault, UserError

LOOPBACK_INTERFACE = "lo"
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Variable of torch: the store of the ranks runs elsewhere."""
_stores: list[Any] = []  # stores of this process, which the other ranks use until it ends


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


@contextlib.contextmanager
def meeting(world: World, timeout_s: float) -> Iterator[None]:
    """Translate errors of the rendezvous, the meeting of all ranks, into errors that say what to do.

    Args:
        timeout_s: how long the ranks wait for each other there.

    Raises:
        PassingFault: the port is in use, or some ranks did not come in time.
    """
    where = f"{world.master_addr}:{world.master_port}"
    try:
        yield
    except torch.distributed.DistError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise PassingFault(
                f"rank {world.rank}: port {world.master_port} on {world.master_addr} is taken, where the ranks should meet: "
                "another run uses it, most likely. Set MASTER_PORT (deepspeed and torchrun: --master_port) to a free one"
            ) from None
        raise PassingFault(
            f"rank {world.rank}: the {world.size} ranks did not meet at {where} within timeouts.start_s ({timeout_s:g} s): "
            f"{str(error).splitlines()[0]}. Either a rank was not started, or rank 0's host cannot be reached there: see that "
            "MASTER_ADDR and MASTER_PORT are the same for all ranks, and that no firewall is between them"
        ) from None


def set_timeouts(seconds: float) -> None:
    """Set how long a collective waits for other ranks, in all process groups that exist and in all later ones.

    DeepSpeed and torch set it for the group of all ranks only. The groups of ZeRO would keep half an hour.
    """
    timeout = timedelta(seconds=seconds)
    defaults: Any = distributed_c10d
    defaults.default_pg_timeout = timeout
    if defaults.default_pg_nccl_timeout is not None:
        defaults.default_pg_nccl_timeout = timeout
    if torch.distributed.is_initialized():
        for group in distributed_c10d._world.pg_map:
            distributed_c10d._set_pg_timeout(timeout, group)


@contextlib.contextmanager
def meeting_place(world: World) -> Iterator[None]:
    """Keep other machines out of the rendezvous if all ranks are on this one. Call `init_process_group` inside it.

    torch's store listens on every interface and trusts every client. But it accepts an open socket. So the first rank makes
    the store itself, on a loopback socket. AGENT_STORE, which torchrun would set, then makes all ranks clients of it.

    Raises:
        DistNetworkError: the port is in use; torch raises the same.
    """
    if torch.distributed.is_initialized() or not world.is_on_loopback or AGENT_STORE in os.environ:
        yield
        return
    if world.is_first:
        family = socket.AF_INET6 if ":" in world.master_addr else socket.AF_INET
        try:
            listener = socket.create_server(
                (world.master_addr, world.master_port), family=family, backlog=socket.SOMAXCONN
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise torch.distributed.DistNetworkError(
                f"port {world.master_port} (EADDRINUSE, address already in use)"
            ) from None
        _stores.append(
            torch.distributed.TCPStore(  # type: ignore[attr-defined]
                world.master_addr,
                world.master_port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        )
    os.environ[AGENT_STORE] = "True"
    try:
        yield
    finally:
        del os.environ[AGENT_STORE]


def barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` in place over all ranks; also returns it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


def max_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Take the maximum of `tensor` in place over all ranks; also returns it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor


def gather_equal(tensor: torch.Tensor, ranks: int) -> torch.Tensor:
    """Give every rank the vectors of all `ranks` ranks, of one length each: a row a rank."""
    gathered = tensor.new_empty(ranks, len(tensor))
    torch.distributed.all_gather(list(gathered), tensor)
    return gathered


def gather_objects(value: Any, world: World) -> list[Any]:
    """Give every rank the small values of all ranks, in rank order.

    They travel as JSON. torch's own function unpickles them, so whoever reaches the ports of a run could run code in it.

    Args:
        value: numbers, texts, None, and lists of them or dicts with text keys.

    Raises:
        TypeError: JSON would change the value: a tuple becomes a list, and keys become texts.
    """
    text = json.dumps(value)
    if json.loads(text) != value:
        raise TypeError(f"{value!r} is not what JSON makes of it: send lists, and dicts with texts as keys")
    if not torch.distributed.is_initialized():
        return [value]
    on_cuda = torch.distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world.size)]
    torch.distributed.all_gather(lengths, torch.tensor([len(mine)], device=device))
    sizes = [int(length) for length in lengths]
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    torch.distributed.all_gather(parts, padded)
    return [json.loads(bytes(part[:size].tolist())) for part, size in zip(parts, sizes, strict=True)]


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
