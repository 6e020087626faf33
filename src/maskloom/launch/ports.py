"""The port that ranks meet at: from the run, so that runs on one machine do not meet each other, and free."""

from __future__ import annotations

import contextlib
import errno
import socket
import zlib
from pathlib import Path

FIRST, COUNT = 12000, 20000
"""Below the ports that Linux gives to outgoing connections (32768 and up), which take any that is free."""
TRIES = 64


def preferred_port(run: Path, attempt: int) -> int:
    """Another one for each attempt: the last attempt's may still be held by what is left of it."""
    return FIRST + zlib.crc32(f"{run.resolve()} {attempt}".encode()) % COUNT


def free_port(preferred: int) -> int:
    """The first free port from `preferred` on, on this machine. Raises OSError where none of the next 64 is."""
    for port in range(preferred, preferred + TRIES):
        if is_free(port):
            return port
    raise OSError(errno.EADDRINUSE, f"ports {preferred} to {preferred + TRIES - 1} are all taken")


def is_free(port: int) -> bool:
    """Whether nobody listens at a port, on any address of this machine."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with contextlib.ExitStack() as stack:
            try:
                probe = stack.enter_context(socket.socket(family))
            except OSError:  # no IPv6 here
                continue
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:  # IPv6 is switched off
                    continue
                return False
    return True


def next_free_port(port: int) -> int:
    """As `free_port`, but 0 where none is free."""
    try:
        return free_port(port)
    except OSError:
        return 0


def spare_port() -> int:
    """Any free port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
