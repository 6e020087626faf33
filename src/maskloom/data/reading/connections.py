"""This process's connections to servers of http(s), with a bound on the time that the head of an answer takes.

A socket's timeout starts again with every byte. A head that drips, or an endless row of answers with status 100, would never
meet it. So the connection is shut down when the time is over. `remote.py` watches the bodies.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import urllib.request
from collections.abc import Iterator
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection


@contextlib.contextmanager
def _head_in_time(connection: HTTPConnection) -> Iterator[None]:
    """Shut the connection down, and raise TimeoutError, if the body of this `with` takes longer than the timeout."""

    if not isinstance(connection.timeout, int | float):
        yield
        return
    is_over = threading.Event()

    def shut_down() -> None:
        is_over.set()
        if connection.sock:
            with contextlib.suppress(OSError, ValueError):
                connection.sock.shutdown(SHUT_RDWR)

    timer = threading.Timer(connection.timeout, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_over.is_set():  # whatever error the cut-off head gave
            raise TimeoutError("the head of the answer took too long") from None


class _Connection(HTTPConnection):
    def getresponse(self) -> Any:
        with _head_in_time(self):
            return super().getresponse()


class _SecureConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        with _head_in_time(self):
            return super().getresponse()


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def pool_for(target: str, authorities: str | None) -> urllib3.PoolManager:
    """This process's connections, through the proxy that http_proxy, https_proxy and no_proxy name."""
    parts = urlsplit(target)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = "" if urllib.request.proxy_bypass(host) else proxies.get(parts.scheme) or proxies.get("all") or ""
    return pool(os.getpid(), proxy, authorities)


@functools.lru_cache(maxsize=8)
def pool(pid: int, proxy: str, authorities: str | None) -> urllib3.PoolManager:
    """Connections of process `pid`. If two processes shared one, they would read each other's bytes."""
    options: dict[str, Any] = {"maxsize": 32, "ca_certs": authorities}
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        headers = urllib3.make_headers(proxy_basic_auth=login)
        found: urllib3.PoolManager = urllib3.ProxyManager(address, proxy_headers=headers, **options)
    else:
        found = urllib3.PoolManager(**options)
    found.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return found
