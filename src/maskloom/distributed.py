"""How the ranks of a run meet, and sums over them. Which rank this process is, `world` says."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch.distributed import distributed_c10d

from maskloom.errors import PassingFault
from maskloom.world import World as World  # for those who need its ranks to meet, too

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Variable of torch: the store of the ranks runs elsewhere."""
_stores: list[Any] = []  # stores of this process, which the other ranks use until it ends


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
