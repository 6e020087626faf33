"""One request for a byte range over http(s), and what its answer means.

Every answer names the object's version (its ETag, or the date of its last change) and its size. No request leaves the host
that the URL names.

What may go better next time is `Broken`. An object that is missing or too short is a `DataFault`. What a server refuses (status
403, a redirect to another host, no byte ranges) is a plain `UserError`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from maskloom.config import Storage
from maskloom.data.reading.connections import pool_for
from maskloom.data.reading.s3 import signed_url
from maskloom.errors import DataFault, UserError
from maskloom.progress import noted_when_slow, warn
from maskloom.redaction import shown

MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
TRY_AGAIN = (408, 425, 429)  # and everything from 500 on
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$")
NO_RANGE = re.compile(r"bytes \*/([0-9]{1,18})$")  # what status 416 carries: the object's size
LENGTH = re.compile(r"[0-9]{1,18}$")
S3_CODE = re.compile(rb"<Code>(\w+)</Code>")

logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)  # at DEBUG it prints signed URLs
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)  # at WARNING too, with a traceback

_quiet_until_s: dict[str, float] = {}
"""By host: until when its waits need no new message."""
_have_answered: set[str] = set()
"""Hosts that have answered this process. Only a slow first answer is worth a message."""


@dataclass(frozen=True)
class RangeAnswer:
    """The body that a server offers: bytes [start, stop) of an object of `total` bytes, in one version."""

    response: urllib3.BaseHTTPResponse
    version: str
    start: int
    stop: int
    total: int | None


class Broken(Exception):
    """An attempt that may succeed next time.

    Attributes:
        slow: bytes came, but too slowly.
        wait_s: the pause that the server asked for.
    """

    def __init__(self, reason: str, *, slow: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.slow, self.wait_s = slow, wait_s


@contextlib.contextmanager
def ask_range(url: str, at: int, stop: int | None, settings: Storage, *, whole: bool) -> Iterator[RangeAnswer]:
    """Ask for bytes [at, stop) of an object. With `whole`, an answer with all of the object is right too."""
    headers = {"Range": f"bytes={at}-{'' if stop is None else stop - 1}", "Accept-Encoding": "identity"}
    response = _request(url, headers, settings)
    try:
        if response.status == 206:
            yield _part(url, response, at, stop, whole=whole)
        elif response.status == 200:
            yield _all(url, response, at, whole=whole)
        elif response.status == 416:
            yield _nothing(url, response, at, stop, whole=whole)
        else:
            raise _refusal(url, response, at, settings)
    finally:
        response.close()  # does nothing if the body was read to its end: then the pool has the connection


def _request(url: str, headers: Mapping[str, str], settings: Storage) -> urllib3.BaseHTTPResponse:
    is_s3 = url.startswith("s3:")
    target = signed_url(url, settings) if is_s3 else url
    authorities = os.environ.get("AWS_CA_BUNDLE") if is_s3 else None
    wait_s = settings.timeout_s
    timeout = urllib3.Timeout(connect=wait_s, read=wait_s)
    host = urlsplit(target).netloc.rpartition("@")[2]
    waits = f"{host} does not answer yet: waiting for it, {wait_s:g} s at most"
    # Redirects are followed here, not by urllib3, so that each is checked. Retries are the caller's.
    for _ in range(MOST_REDIRECTS):
        try:
            is_known = host in _have_answered
            with contextlib.nullcontext() if is_known else noted_when_slow(lambda: warn_of_host(url, waits, wait_s)):
                response = pool_for(target, authorities).request(
                    "GET",
                    target,
                    headers=headers,
                    timeout=timeout,
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    retries=False,
                )
            _have_answered.add(host)
        except (HTTPError, OSError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UserError(
                    f"{shown(url)}: the server's certificate is not one that is trusted here. Name the file of its "
                    f"authority in {'AWS_CA_BUNDLE' if is_s3 else 'SSL_CERT_FILE'}"
                ) from None
            raise Broken(reason_of(error, settings)) from None
        if is_s3 or response.status not in REDIRECTS:
            return response
        response.close()
        target = _redirected(url, target, response.headers.get("Location", ""))
    raise UserError(f"{shown(url)}: more than {MOST_REDIRECTS} redirects: give the URL that they lead to")


def _redirected(url: str, target: str, location: str) -> str:
    """Where a redirect leads. Raises UserError for another host, which the author of the URL did not choose."""
    try:
        there = urljoin(target, location)
        before, after = urlsplit(target), urlsplit(there)
    except ValueError:
        raise UserError(f"{shown(url)} redirects to something that is not a URL") from None
    if after.hostname != before.hostname or after.scheme not in ("https", before.scheme) or after.username:
        raise UserError(
            f"{shown(url)} redirects to {after.scheme}://{after.hostname}: redirects are followed on the same host "
            "only, and never from https to http. If that is where the data is, name it in the URL"
        )
    return there


def _part(url: str, response: urllib3.BaseHTTPResponse, at: int, stop: int | None, *, whole: bool) -> RangeAnswer:
    """An answer of status 206."""
    given = response.headers.get("Content-Range", "")
    match = CONTENT_RANGE.match(given)
    if not match or int(match[1]) != at or int(match[2]) < at or (stop is not None and int(match[2]) >= stop):
        raise Broken(f"asked for bytes from {at} on, the server answers with '{given[:80]}'")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if total is not None and last >= total:
        raise Broken(f"the server answers with '{given[:80]}', which is beyond the end")
    if whole and total is None:
        raise UserError(f"{shown(url)}: the server does not say how long it is: copy it to one that does")
    if not whole and stop is not None and total is not None and total < stop:
        raise _too_short(url, at, stop, total)
    return RangeAnswer(response, _version(response, total), first, last + 1, total)


def _all(url: str, response: urllib3.BaseHTTPResponse, at: int, *, whole: bool) -> RangeAnswer:
    """An answer of status 200: the object from its first byte on."""
    if not whole:
        raise UserError(
            f"{shown(url)}: the server sends the whole object when asked for a part of it (byte range from {at} on). Put "
            "the shards on a server with byte ranges (nginx, Apache, S3, MinIO), or copy them to a local folder"
        )
    length = response.headers.get("Content-Length", "")
    if not LENGTH.match(length):
        raise UserError(f"{shown(url)}: the server does not say how long it is: copy it to one that does")
    return RangeAnswer(response, _version(response, int(length)), 0, int(length), int(length))


def _nothing(url: str, response: urllib3.BaseHTTPResponse, at: int, stop: int | None, *, whole: bool) -> RangeAnswer:
    """An answer of status 416: no byte of the object lies in the range."""
    match = NO_RANGE.match(response.headers.get("Content-Range", ""))
    total = int(match[1]) if match else None
    if not whole:
        raise _too_short(url, at, stop or at, total)
    if total is None or total > at:
        raise Broken(f"the server has no byte range from {at} on, and does not say why")
    return RangeAnswer(response, _version(response, total), at, at, total)


def _refusal(url: str, response: urllib3.BaseHTTPResponse, at: int, settings: Storage) -> Exception:
    """The error for an answer without data: try again, a missing object, or a refusal."""
    said = f"status {response.status} {response.reason or ''}".rstrip()
    with contextlib.suppress(HTTPError, OSError):
        if code := S3_CODE.search(response.read1(4096, decode_content=False)):
            said += f", {code[1].decode()}"
    if response.status in TRY_AGAIN or response.status >= 500:
        wait_s = 0.0
        with contextlib.suppress(InvalidHeader, ValueError, OverflowError):  # an absurd number or date
            wait_s = urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
        return Broken(f"the server answers {said}", wait_s=wait_s)
    if response.status in (404, 410):
        return DataFault(
            f"{shown(url)}: the server has no such object ({said}). Restore it, or make the corpus again",
            kind="missing",
            shard=shown(url),
            offset=at,
        )
    if region := response.headers.get("x-amz-bucket-region"):
        said += f"; the bucket is in {region}: is AWS_REGION or the profile's region the same?"
    elif response.status in (401, 403):
        said += ": it may be read with other credentials (s3) or from another machine"
    return UserError(f"{shown(url)}: the server answers {said}")


def _too_short(url: str, at: int, stop: int, total: int | None) -> DataFault:
    size = "fewer" if total is None else f"{total}"
    return DataFault(
        f"{shown(url)} has {size} bytes, and those up to {stop} are needed: it is shorter than when it was indexed. "
        "Restore it, or make the corpus again",
        kind="truncated",
        shard=shown(url),
        offset=at,
    )


def _version(response: urllib3.BaseHTTPResponse, total: int | None) -> str:
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or "no ETag"
    return f"{mark}, {total} bytes"


def reason_of(error: Exception, settings: Storage) -> str:
    """Why a request failed, without any URL, which may hold a secret."""
    if isinstance(error, NameResolutionError):
        return "the name of its host is not known"
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return f"no connection in {settings.timeout_s:g} s"
    if isinstance(error, ReadTimeoutError):
        return f"no answer, or no more of one, came in {settings.timeout_s:g} s"
    cause: BaseException = error
    while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(cause, OSError) and cause.strerror:
        return f"the connection failed: {cause.strerror}"
    if isinstance(error, ProtocolError):
        return "the connection ended early"
    return f"the request failed: {type(error).__name__}"


def warn_of_host(url: str, message: str, for_s: float) -> None:
    """Warn that a host keeps us waiting: once in `for_s` seconds, however many blocks wait."""
    host, now_s = urlsplit(url).netloc, time.monotonic()
    if now_s >= _quiet_until_s.get(host, 0.0):
        _quiet_until_s[host] = now_s + for_s
        warn(message)
