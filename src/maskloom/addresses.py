"""Addresses of this machine: which are on loopback, and which ports are free."""

from __future__ import annotations

import ipaddress
import socket

LOOPBACK = "127.0.0.1"
LARGEST_PORT = 65535


def is_loopback(host: str) -> bool:
    """Whether an address is on loopback: in 127.0.0.0/8, ::1, or the name localhost. Other names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(host: str = LOOPBACK, port: int = 0) -> int:
    """A port that a server can listen on: `port`, or any if that is 0.

    Raises:
        OSError: the port is in use, or the address is not one of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: connections that ended do not count
        probe.bind(address)
        return int(probe.getsockname()[1])
