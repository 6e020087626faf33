"""From a hostfile and a configuration to findings: ask every host, check, let the hosts sum together."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.distributed import LOOPBACK
from maskloom.errors import UserError
from maskloom.launch.doctor.asking import Way, ask
from maskloom.launch.doctor.checks import check
from maskloom.launch.doctor.checks.network import all_reduce
from maskloom.launch.doctor.facts import Request
from maskloom.launch.doctor.findings import Finding, Wanted
from maskloom.launch.doctor.look.folder import lock_holder, nearest
from maskloom.launch.doctor.network import measure
from maskloom.launch.hostfile import Host
from maskloom.launch.probe import preferred_port

ANSWER_S = 300.0
SUM_BYTES = 64 << 20
SUM_S = 60.0


def visit(
    hosts: Sequence[Host],
    way: Way,
    config_path: str,
    overrides: Sequence[str],
    environment: dict[str, str],
    master_addr: str | None = None,
    port: int = 0,
) -> Iterator[Finding]:
    """All findings, as they come.

    Args:
        environment: variables that ranks will have there.
        master_addr: address of the first host as the others reach it; None: what ssh or the hostfile calls it.
        port: that the first rank is told to listen on; 0: one that belongs to the run.
    """
    config, config_fault = None, None
    try:
        config = load_config(config_path, overrides)
    except UserError as error:
        config_fault = str(error)
    run = Path(config.run_dir) if config else None
    slots = {host.name: host.slots for host in hosts}
    with left_token(run) as (token_file, token, folder_fault):
        requests = [
            Request(
                number=number,
                slots=host.slots,
                world_size=sum(slots.values()),
                first_rank=sum(before.slots for before in hosts[:number]),
                config=config_path,
                overrides=tuple(overrides),
                run_dir=str(run or ""),
                token_file=token_file,
                token=token,
                port=0 if number else port or preferred_port(run or Path(), 1),
                environment=environment,
            )
            for number, host in enumerate(hosts)
        ]
        answers = ask([host.name for host in hosts], requests, way, ANSWER_S)
    holder = lock_holder(run) if run else None
    saved = _count_saved(config)
    yield from check(Wanted(slots, config, config_fault, folder_fault, holder, saved, port), answers)
    there = [(host, answer.facts) for host, answer in zip(hosts, answers, strict=True) if answer.facts]
    if sum(host.slots for host, _ in there) > 1:
        names = [host.name for host, _ in there]
        first = LOOPBACK if not way.ssh else way.ssh.address(names[0])
        if master_addr and names[0] == hosts[0].name:
            first = master_addr
        counts = [host.slots for host, _ in there]
        master = first, there[0][1].spare_port
        yield from all_reduce(names, measure(names, counts, way, master, SUM_BYTES, SUM_S, environment))


@contextlib.contextmanager
def left_token(run: Path | None) -> Iterator[tuple[str, str, str | None]]:
    """A small file in the run's folder for the block: its path, its text, and why it could not be written."""
    if run is None:
        yield "", "", None
        return
    token = secrets.token_hex(16)
    file = nearest(run) / f".doctor-{secrets.token_hex(8)}"
    try:
        file.write_text(token)
    except OSError as error:
        yield "", token, str(error)
        return
    try:
        yield str(file), token, None
    finally:
        file.unlink(missing_ok=True)


def _count_saved(config: RunConfig | None) -> int:
    """Checkpoints that the run has; those that are no whole ones have no manifest."""
    if not config:
        return 0
    return len(list(Path(config.run_dir, "checkpoints").glob("step-*/manifest.json")))
