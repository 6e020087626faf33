"""Bytes of an object over http(s) or from S3, whole or not at all.

One loop reads everything. It asks for a byte range, and when the body breaks off, stalls or crawls, it asks again from
the byte it has come to. Every answer names the object's version (its ETag, or the date of its last change) and size: when
they differ from those of the bytes that are there, nothing of those is kept. An attempt has failed when it brought no byte
that was not there before, or brought them too slowly; `attempts` of them in a row end the read.

S3 is the same HTTP: boto3 finds credentials, region and endpoint, and signs one URL for each request. No connection
crosses a fork, and no request leaves the host that the URL names.

What cannot be reached is a `PassingFault`: nothing of it is bad, and another attempt of the run may find it. An object that
is missing or too short is a `DataFault`; what a server refuses (status 403, a redirect elsewhere, no byte ranges) is a plain
`UserError`. Whether the bytes are the right ones is for the caller to check.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
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
from maskloom.errors import DataFault, PassingFault, UserError
from maskloom.progress import noted_when_slow, warn
from maskloom.redaction import shown

CHUNK_BYTES = 256 * 1024
SLOWEST_BYTES = (
    32 * 1024
)  # a body that brings less in `timeout_s` is given up: a drip keeps every socket's timeout quiet
FIRST_WAIT_S = 0.25
SAID_WAIT_S = 3.0  # a wait between attempts that a user should know of
MOST_REDIRECTS = 5
SIGNED_FOR_S = 3600
REDIRECTS = (301, 302, 303, 307, 308)
TRY_AGAIN = (408, 425, 429)  # and everything from 500 on
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$")
NO_RANGE = re.compile(r"bytes \*/([0-9]{1,18})$")  # what status 416 carries: the object's size
LENGTH = re.compile(r"[0-9]{1,18}$")
S3_CODE = re.compile(rb"<Code>(\w+)</Code>")

logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)  # at DEBUG it prints signed URLs
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)  # so it does at WARNING, with a traceback


@dataclass(frozen=True)
class Answer:
    """The body that a server offers: bytes [start, stop) of an object of `total` bytes, in one version of it."""

    response: urllib3.BaseHTTPResponse
    version: str
    start: int
    stop: int
    total: int | None


class _Broken(Exception):
    """An attempt that may go better the next time; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, *, slow: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.slow, self.wait_s = slow, wait_s


_quiet_until_s: dict[str, float] = {}
"""By host: when a wait for it is worth saying again."""
_have_answered: set[str] = set()
"""Hosts that have answered this process: a first answer that takes its time is worth saying."""


def _say_of(url: str, message: str, for_s: float) -> None:
    """Warn that a host keeps us waiting: once in that time, for all blocks that are waited for."""
    host, now_s = urlsplit(url).netloc, time.monotonic()
    if now_s >= _quiet_until_s.get(host, 0.0):
        _quiet_until_s[host] = now_s + for_s
        warn(message)


class _Patience:
    """Counts failed attempts in a row, and waits between them."""

    def __init__(self, url: str, settings: Storage) -> None:
        self.url, self.settings, self.failed = url, settings, 0

    def after(self, broken: _Broken, *, progress: bool) -> None:
        """Wait before the next attempt. Raises PassingFault when there is none left."""
        if progress and not broken.slow:
            self.failed = 0
            return
        self.failed += 1
        if self.failed >= self.settings.attempts:
            raise PassingFault(
                f"{shown(self.url)} cannot be read: {broken}; {self.failed} attempt(s) in a row failed. Look at the "
                "server and the network, or raise data.storage.attempts or data.storage.timeout_s"
            ) from None
        # Ranks that lost one server together come back spread out, each at a time of its own.
        wait_s = FIRST_WAIT_S * 4 ** (self.failed - 1) * (1 + os.getpid() % 256 / 512)
        wait_s = min(max(wait_s, broken.wait_s), self.settings.timeout_s)
        if wait_s >= SAID_WAIT_S:
            attempt = f"attempt {self.failed} of {self.settings.attempts}, the next in {wait_s:.0f} s"
            _say_of(self.url, f"{shown(self.url)} cannot be read: {broken}; {attempt}", wait_s)
        time.sleep(wait_s)


def read_range(url: str, offset: int, length: int, settings: Storage) -> tuple[bytes, str]:
    """The bytes [offset, offset + length) of an object, and the version that all of them belong to.

    Raises:
        DataFault: there is no such object (`missing`), or it ends before (`truncated`).
        PassingFault: it cannot be reached.
        UserError: its server refuses it, or has no byte ranges.
    """
    data = bytearray()
    version = _receive(url, offset, offset + length, settings, data.extend, data.clear)
    return bytes(data), version


def read_whole(url: str, settings: Storage, largest: int | None = None) -> bytes:
    """All bytes of a small object. Raises as `read_range`, and UserError if it has more than `largest` bytes."""
    data = bytearray()
    _receive(url, 0, None, settings, data.extend, data.clear, largest)
    return bytes(data)


def fetch(url: str, path: Path, settings: Storage, on_bytes: Callable[[int], None], largest: int | None = None) -> None:
    """Write all bytes of an object into the open file's `path`; `on_bytes` is told a negative count where it starts
    again. Raises as `read_whole`."""
    with path.open("wb") as file:

        def write(chunk: bytes) -> None:
            file.write(chunk)
            on_bytes(len(chunk))

        def clear() -> None:
            on_bytes(-file.tell())
            file.seek(0)
            file.truncate()

        _receive(url, 0, None, settings, write, clear, largest)
        file.flush()
        os.fsync(file.fileno())


def size_of(url: str, settings: Storage) -> int:
    """Size of an object in bytes. Raises as `read_range`."""
    patience = _Patience(url, settings)
    while True:
        try:
            with _ask(url, 0, 1, settings, whole=True) as answer:
                if answer.stop == 1:
                    for _ in _chunks(answer, 1, settings):
                        pass  # a body that was read to its end leaves a connection that can be used again
                assert answer.total is not None, "asked for as a whole"
                return answer.total
        except _Broken as broken:
            patience.after(broken, progress=False)


def list_tars(url: str, settings: Storage) -> list[str]:
    """URLs of the tars below an S3 prefix, which is taken as a folder, in order of their names."""
    bucket, prefix = _bucket_and_key(url.rstrip("/") + "/")
    client = _s3_client(os.getpid(), settings.timeout_s, settings.attempts)
    from botocore.exceptions import BotoCoreError, ClientError  # there: the client was made

    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"{url} cannot be listed: {error}") from None
    return [f"s3://{bucket}/{key}" for key in sorted(keys) if key.endswith(".tar")]


def _receive(
    url: str,
    start: int,
    stop: int | None,
    settings: Storage,
    write: Callable[[bytes], object],
    clear: Callable[[], object],
    largest: int | None = None,
) -> str:
    """Give the bytes [start, stop) of one version of an object to `write`, in order; returns the version.

    Args:
        stop: None: to the end.
        clear: told when everything written so far belongs to another version.
        largest: bytes that the whole may have; None: any number.
    """
    patience, whole = _Patience(url, settings), stop is None
    at = furthest = start
    version = ""
    while stop is None or at < stop:
        before = furthest
        try:
            with _ask(url, at, stop, settings, whole=whole) as answer:
                if at > start and (answer.version != version or answer.start != at):
                    clear()
                    at, stop = start, None if whole else stop
                    if answer.start != start:
                        raise _Broken("it changed while it was read")  # counted: mirrors may never agree
                version = answer.version
                stop = answer.total if whole else stop
                if largest is not None and max(answer.stop, answer.total or 0) > largest:
                    raise UserError(
                        f"{shown(url)} has {answer.total:,} bytes, more than the {largest:,} that it may have"
                    )
                for chunk in _chunks(answer, answer.stop - at, settings):
                    write(chunk)
                    at += len(chunk)
                    furthest = max(furthest, at)
        except _Broken as broken:
            patience.after(broken, progress=furthest > before)
        except DataFault as fault:
            fault.offset = start  # of the block, wherever the read had come to
            raise
    return version


def _chunks(answer: Answer, length: int, settings: Storage) -> Iterator[bytes]:
    """The next `length` bytes of a body as they come. Raises _Broken where it ends early, stalls or crawls."""
    since, recent = time.monotonic(), 0
    while length:
        try:
            chunk = answer.response.read1(min(length, CHUNK_BYTES), decode_content=False)
        except (HTTPError, OSError) as error:
            raise _Broken(_reason(error, settings)) from None
        if not chunk:
            raise _Broken("the connection ended early")
        yield chunk
        length -= len(chunk)
        recent += len(chunk)
        if time.monotonic() - since >= settings.timeout_s:
            if length and recent < SLOWEST_BYTES:
                raise _Broken(f"only {recent} bytes came in {settings.timeout_s:g} s", slow=True)
            since, recent = time.monotonic(), 0


@contextlib.contextmanager
def _ask(url: str, at: int, stop: int | None, settings: Storage, *, whole: bool) -> Iterator[Answer]:
    """Ask for bytes [at, stop) of an object; `whole`: an answer with all of it is right too."""
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
        response.close()  # a connection whose body was read to its end has gone back to the pool already


def _request(url: str, headers: Mapping[str, str], settings: Storage) -> urllib3.BaseHTTPResponse:
    is_s3 = url.startswith("s3:")
    target = _signed(url, settings) if is_s3 else url
    authorities = os.environ.get("AWS_CA_BUNDLE") if is_s3 else None
    wait_s = settings.timeout_s
    timeout = urllib3.Timeout(connect=wait_s, read=wait_s)
    host = urlsplit(target).netloc.rpartition("@")[2]
    waits = f"{host} does not answer yet: waiting for it, {wait_s:g} s at most"
    for _ in range(MOST_REDIRECTS):
        try:
            is_known = host in _have_answered
            with contextlib.nullcontext() if is_known else noted_when_slow(lambda: _say_of(url, waits, wait_s)):
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
            raise _Broken(_reason(error, settings)) from None
        if is_s3 or response.status not in REDIRECTS:
            return response
        response.close()
        target = _redirected(url, target, response.headers.get("Location", ""))
    raise UserError(f"{shown(url)}: more than {MOST_REDIRECTS} redirects: give the URL that they lead to")


def _redirected(url: str, target: str, location: str) -> str:
    """Where a redirect leads. Raises UserError for another host: who wrote the URL did not choose it."""
    try:
        there = urljoin(target, location)
        before, after = urlsplit(target), urlsplit(there)
    except ValueError:
        raise UserError(f"{shown(url)} redirects to something that is no URL") from None
    if after.hostname != before.hostname or after.scheme not in ("https", before.scheme) or after.username:
        raise UserError(
            f"{shown(url)} redirects to {after.scheme}://{after.hostname}: redirects are followed on the same host "
            "only, and never from https to http. If that is where the data is, name it in the URL"
        )
    return there


def _part(url: str, response: urllib3.BaseHTTPResponse, at: int, stop: int | None, *, whole: bool) -> Answer:
    """An answer of status 206."""
    given = response.headers.get("Content-Range", "")
    match = CONTENT_RANGE.match(given)
    if not match or int(match[1]) != at or int(match[2]) < at or (stop is not None and int(match[2]) >= stop):
        raise _Broken(f"asked for bytes from {at} on, the server answers with '{given[:80]}'")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if total is not None and last >= total:
        raise _Broken(f"the server answers with '{given[:80]}', which is beyond the end")
    if whole and total is None:
        raise UserError(f"{shown(url)}: the server does not say how long it is: copy it to one that does")
    if not whole and stop is not None and total is not None and total < stop:
        raise _too_short(url, at, stop, total)
    return Answer(response, _version(response, total), first, last + 1, total)


def _all(url: str, response: urllib3.BaseHTTPResponse, at: int, *, whole: bool) -> Answer:
    """An answer of status 200: the object from its first byte on."""
    if not whole:
        raise UserError(
            f"{shown(url)}: the server sends the whole object when asked for a part of it (byte range from {at} on). Put "
            "the shards on a server with byte ranges (nginx, Apache, S3, MinIO), or copy them to a local folder"
        )
    length = response.headers.get("Content-Length", "")
    if not LENGTH.match(length):
        raise UserError(f"{shown(url)}: the server does not say how long it is: copy it to one that does")
    return Answer(response, _version(response, int(length)), 0, int(length), int(length))


def _nothing(url: str, response: urllib3.BaseHTTPResponse, at: int, stop: int | None, *, whole: bool) -> Answer:
    """An answer of status 416: no byte of the object lies in the range."""
    match = NO_RANGE.match(response.headers.get("Content-Range", ""))
    total = int(match[1]) if match else None
    if not whole:
        raise _too_short(url, at, stop or at, total)
    if total is None or total > at:
        raise _Broken(f"the server has no byte range from {at} on, and does not say why")
    return Answer(response, _version(response, total), at, at, total)


def _refusal(url: str, response: urllib3.BaseHTTPResponse, at: int, settings: Storage) -> Exception:
    """What an answer without data means: another attempt, an object that is missing, or an end."""
    said = f"status {response.status} {response.reason or ''}".rstrip()
    with contextlib.suppress(HTTPError, OSError):
        if code := S3_CODE.search(response.read1(4096, decode_content=False)):
            said += f", {code[1].decode()}"
    if response.status in TRY_AGAIN or response.status >= 500:
        wait_s = 0.0
        with contextlib.suppress(InvalidHeader, ValueError, OverflowError):  # a number or date beyond any measure
            wait_s = urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
        return _Broken(f"the server answers {said}", wait_s=wait_s)
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


def _reason(error: Exception, settings: Storage) -> str:
    """Why a request failed, in words that hold no URL."""
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


def _bucket_and_key(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{url}: an S3 URL is s3://BUCKET/KEY")
    return bucket, key


def _signed(url: str, settings: Storage) -> str:
    """The http(s) URL of an object of S3; made anew for each request, for credentials are renewed on the way."""
    bucket, key = _bucket_and_key(url)
    if not key:
        raise UserError(f"{url}: an S3 URL is s3://BUCKET/KEY")
    client = _s3_client(os.getpid(), settings.timeout_s, settings.attempts)
    from botocore.exceptions import BotoCoreError

    try:
        return str(client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, SIGNED_FOR_S))
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"{url}: boto3 makes no request of it: {error}") from None


@functools.lru_cache(maxsize=8)
def _s3_client(pid: int, timeout_s: float, attempts: int) -> Any:
    """The S3 client of process `pid`; anonymous where there are no credentials."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UserError("s3:// URLs are read with boto3: pip install 'maskloom[s3]'") from None
    try:
        session = boto3.session.Session()
        config = Config(
            signature_version="s3v4" if session.get_credentials() else UNSIGNED,
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
        )
        return session.client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"boto3 finds no way to S3: {error}. Look at AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL"
        ) from None
