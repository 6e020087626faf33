"""A byte range of a shard as a stream, verified against the index.

Only local paths and `file://` are read; every other scheme is refused by name. `webdataset`'s own openers, which start a
shell for `pipe:` and rewrite URLs from the environment, are never called.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from maskloom.config import Storage
from maskloom.errors import DataFault, UserError

SCHEMES = ("file",)


def local_path(url: str) -> Path:
    """The path of a local URL. Raises UserError for any scheme that is not read here."""
    scheme = url.partition(":")[0] if ":" in url.split("/")[0] else ""
    if not scheme:
        return Path(url)
    if scheme not in SCHEMES:
        raise UserError(f"{url}: shards are read from local paths and {', '.join(SCHEMES)}:// URLs, not '{scheme}:'")
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{url}: a file:// URL has no host (three slashes: file:///{parts.netloc}{parts.path})")
    return Path(unquote(parts.path))


def is_remote(url: str) -> bool:
    return url.partition("://")[0] in ("http", "https", "s3")


def join(base: str, relative: str) -> str:
    return f"{base.rstrip('/')}/{relative.removeprefix('./')}" if is_remote(base) else str(Path(base) / relative)


def read_whole(url: str, settings: Storage) -> bytes:
    raise NotImplementedError


def fetch(url: str, path: Path, settings: Storage) -> None:
    raise NotImplementedError


def size_of(url: str, settings: Storage) -> int:
    try:
        return local_path(url).stat().st_size
    except OSError:
        raise DataFault(f"shard {url} is missing", kind="missing", shard=url) from None


def open_range(
    url: str, offset: int, length: int, crc32: int, sha256: str = "", settings: Storage | None = None
) -> io.BytesIO:
    """The bytes [offset, offset + length) of a shard, checked against their CRC-32.

    Raises:
        UserError: missing shard, short read, or bytes that differ from those that were indexed.
    """
    try:
        with local_path(url).open("rb") as shard:
            shard.seek(offset)
            data = shard.read(length)
    except OSError as error:
        raise DataFault(
            f"shard {url}: {error.strerror}; it is listed in the index. Restore it, or index again",
            kind="missing",
            shard=url,
            offset=offset,
        ) from None
    if len(data) != length:
        raise DataFault(
            f"shard {url}: {len(data)} of {length} bytes at offset {offset}: it is shorter than when it was indexed. "
            "Restore it, or index again",
            kind="truncated",
            shard=url,
            offset=offset,
        )
    found = zlib.crc32(data)
    if found != crc32:
        raise DataFault(
            f"shard {url}: the block at offset {offset} ({length} bytes) has crc32 {found:08x}, the index says "
            f"{crc32:08x}: the shard changed or is damaged. Restore it, or index again",
            kind="checksum",
            shard=url,
            offset=offset,
        )
    return io.BytesIO(data)
