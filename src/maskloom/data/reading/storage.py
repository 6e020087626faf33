"""Verified bytes of a shard, from wherever its URL leads.

Local paths, `file://`, `http(s)://` and `s3://` are read. Everything else is refused by name. We never call webdataset's own
openers: they start a shell for `pipe:` and rewrite URLs from the environment. `remote.py` reads over the network and `cache.py`
keeps blocks on this machine. Bytes of both are verified here.

If a checksum fails over the network, the block is fetched once more, since a bit may have flipped on the way. A process
remembers the first version (ETag) of each object. Mirrors behind one name may have other ETags for the same bytes, so a new
version alone is not a fault. A new version with other bytes is reported as a change.
"""

from __future__ import annotations

import io
import posixpath
import secrets
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from maskloom.config import Storage
from maskloom.data.reading import remote, s3
from maskloom.data.reading.cache import entry_name, open_cache
from maskloom.errors import DataFault, PassingFault, UserError
from maskloom.progress import warn
from maskloom.redaction import shown

REMOTE_SCHEMES = ("http", "https", "s3")
SCHEMES = ("file", *REMOTE_SCHEMES)
RESTORE = "Restore it, or make the corpus again"

_first_versions: dict[str, str] = {}
_warned: set[str] = set()


def is_remote(url: str) -> bool:
    """Whether a URL is read over the network.

    Raises:
        UserError: a scheme that is not read here, or a password in the URL.
    """
    scheme = url.partition(":")[0] if ":" in url.split("/")[0] else ""
    if url == "-":
        raise UserError("-: shards are read from files and URLs, not from standard input (a file of that name: ./-)")
    if scheme and scheme not in SCHEMES:
        raise UserError(
            f"{shown(url)}: shards are read from local paths and {', '.join(SCHEMES)}:// URLs, not '{scheme}:'"
        )
    if scheme not in REMOTE_SCHEMES:
        return False
    try:
        parts = urlsplit(url)
        host = parts.netloc if parts.port is None or scheme != "s3" else ""
    except ValueError:  # half an IPv6 address, or a port that is not a number
        host = ""
    if "@" in host:
        raise UserError(
            f"{shown(url)}: URLs are written into logs and indexes, so they must hold no user and no password. "
            "Take them out, and give S3 credentials as the AWS tools do"
        )
    if not host or not url.startswith(f"{scheme}://"):
        raise UserError(
            f"{shown(url)}: no host: {scheme}://{'BUCKET/KEY' if scheme == 's3' else 'HOST/PATH'} is needed"
        )
    return True


def local_path(url: str) -> Path:
    """The path of a local URL. Raises UserError for any other."""
    if is_remote(url):
        raise UserError(f"{shown(url)} is not on this machine")
    path = url
    if url.startswith("file:"):
        try:
            parts = urlsplit(url)
        except ValueError:  # half an IPv6 address
            raise UserError(f"{url} is not a URL of a file: file:///PATH is needed") from None
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{url}: a file:// URL has no host (three slashes: file:///{parts.netloc}{parts.path})")
        path = unquote(parts.path)
    if "\0" in path:
        raise UserError(f"{url!r} holds the character 0, which no path can")
    return Path(path)


def join(base: str, relative: str) -> str:
    """The URL or path of `relative`, a path as it stands in an index, below the folder `base`."""
    if not is_remote(base):
        return str(Path(base) / relative)
    relative = posixpath.normpath(relative)
    if base.startswith("s3:"):  # keys are written as they are
        return f"{base.rstrip('/')}/{relative}"
    parts = urlsplit(base)  # a query that opens a whole folder opens what lies in it
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(relative)}"))


def open_range(
    url: str, offset: int, length: int, crc32: int, sha256: str = "", settings: Storage | None = None
) -> io.BytesIO:
    """The bytes [offset, offset + length) of a shard, checked against their CRC-32.

    Args:
        sha256: the shard's digest, by which the cache knows its blocks; "": they are not kept.

    Raises:
        DataFault: the shard is `missing`, `truncated`, or holds other bytes than were indexed (`checksum`; `changed`
            where it was replaced while this process read it).
        PassingFault: it cannot be reached.
        UserError: it may not be read.
    """
    settings = settings or Storage()
    if not is_remote(url):
        return io.BytesIO(_read_local(url, offset, length, crc32))
    if not settings.cache or not sha256:
        return io.BytesIO(_read_remote(url, offset, length, crc32, settings))
    cache, name = open_cache(settings.cache, settings.cache_bytes), entry_name(sha256, offset, length)
    data = cache.get(name, length, crc32)
    if data is None:
        data = _read_remote(url, offset, length, crc32, settings)
        cache.put(name, data)
    return io.BytesIO(data)


def read_whole(url: str, settings: Storage, largest: int | None = None) -> bytes:
    """All bytes of a small object.

    Args:
        largest: bytes that it may have; None: any number.

    Raises:
        DataFault: it is `missing`.
        PassingFault: it cannot be reached.
        UserError: it may not be read, has more bytes, or is not a file.
    """
    if is_remote(url):
        return remote.read_whole(url, settings, largest)
    path = local_path(url)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{url} is not a file")
        if largest is not None and path.stat().st_size > largest:
            raise UserError(f"{url} has more than {largest:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(url, error) from None


def fetch(
    url: str,
    path: Path,
    settings: Storage,
    on_bytes: Callable[[int], None] = lambda count: None,
    largest: int | None = None,
) -> None:
    """Copy an object into the file `path`, which is there whole or not at all.

    Args:
        on_bytes: gets the number of bytes as they come; a negative one if the object changed and the read starts again.
        largest: bytes that the object may have; None: as many as there are.

    Raises:
        DataFault: it is `missing`.
        PassingFault: it cannot be reached.
        UserError: it may not be read, has more than `largest` bytes, or `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        if is_remote(url):
            remote.fetch(url, temporary, settings, on_bytes, largest)
        else:
            on_bytes(size_of(url, settings))
            shutil.copyfile(local_path(url), temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{shown(url)} cannot be copied to {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def size_of(url: str, settings: Storage) -> int:
    """Size of an object in bytes. Raises as `read_whole`."""
    if is_remote(url):
        return remote.size_of(url, settings)
    try:
        return local_path(url).stat().st_size
    except OSError as error:
        raise _unreadable(url, error) from None


def list_tars(url: str, settings: Storage) -> list[str]:
    """URLs of the tars below an s3:// prefix, in order of their names.

    Raises:
        UserError: there is none, it cannot be listed, or `url` is http(s), which has no listing.
    """
    if not url.startswith("s3:"):
        raise UserError(f"{shown(url)}: http has no listing of a folder: name the tars, each with its URL")
    is_remote(url)
    found = s3.list_tars(url, settings)
    if not found:
        raise UserError(f"no .tar object below {url}")
    return found


def _read_local(url: str, offset: int, length: int, crc32: int) -> bytes:
    try:
        with local_path(url).open("rb") as shard:
            shard.seek(offset)
            data = shard.read(length)
    except OSError as error:
        raise _unreadable(url, error, offset) from None
    if len(data) != length:
        raise DataFault(
            f"shard {url}: {len(data)} of {length} bytes at offset {offset}: it is shorter than when it was indexed. "
            f"{RESTORE}",
            kind="truncated",
            shard=url,
            offset=offset,
        )
    found = zlib.crc32(data)
    if found != crc32:
        raise _wrong(url, offset, length, crc32, found)
    return data


def _read_remote(url: str, offset: int, length: int, crc32: int, settings: Storage) -> bytes:
    data, version = remote.read_range(url, offset, length, settings)
    found = zlib.crc32(data)
    if found != crc32:  # perhaps a bit flipped on the way
        data, version = remote.read_range(url, offset, length, settings)
        found = zlib.crc32(data)
    first = _first_versions.setdefault(url, version)
    if found != crc32 and first == version:
        raise _wrong(url, offset, length, crc32, found)
    if found != crc32:
        raise DataFault(
            f"shard {shown(url)} was replaced while it was read: at first it was {first}, then {version}, and the block at "
            f"offset {offset} ({length} bytes) has crc32 {found:08x}, the index says {crc32:08x}. {RESTORE}",
            kind="changed",
            shard=shown(url),
            offset=offset,
        )
    if first != version and url not in _warned:
        _warned.add(url)
        warn(
            f"shard {shown(url)} has a new version ({first}, then {version}); the bytes that were indexed are the same"
        )
    return data


def _unreadable(url: str, error: OSError, offset: int = 0) -> UserError:
    """A missing file is a fault of the data. A permission, a disk or a file server is not."""
    said = f"shard {url}: {error.strerror}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DataFault(f"{said}. {RESTORE}", kind="missing", shard=url, offset=offset)
    if isinstance(error, PermissionError | IsADirectoryError):
        return UserError(f"{said}. Make it readable")
    return PassingFault(f"{said}. Look at the disk, or the file server that has it")


def _wrong(url: str, offset: int, length: int, crc32: int, found: int) -> DataFault:
    return DataFault(
        f"shard {shown(url)}: the block at offset {offset} ({length} bytes) has crc32 {found:08x}, the index says "
        f"{crc32:08x}: the shard changed or is damaged. {RESTORE}",
        kind="checksum",
        shard=shown(url),
        offset=offset,
    )
