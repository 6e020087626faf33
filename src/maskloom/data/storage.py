"""A byte range of a shard as a stream, verified against the index.

Only local paths and `file://` are read; every other scheme is refused by name. `webdataset`'s own openers, which start a
shell for `pipe:` and rewrite URLs from the environment, are never called.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from maskloom.errors import UserError

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


def open_range(url: str, offset: int, length: int, crc32: int) -> io.BytesIO:
    """The bytes [offset, offset + length) of a shard, checked against their CRC-32.

    Raises:
        UserError: missing shard, short read, or bytes that differ from those that were indexed.
    """
    try:
        with local_path(url).open("rb") as shard:
            shard.seek(offset)
            data = shard.read(length)
    except OSError as error:
        raise UserError(
            f"shard {url}: {error.strerror}; it is listed in the index. Restore it, or index again"
        ) from None
    if len(data) != length:
        raise UserError(
            f"shard {url}: {len(data)} of {length} bytes at offset {offset}: it is shorter than when it was indexed. "
            "Restore it, or index again"
        )
    found = zlib.crc32(data)
    if found != crc32:
        raise UserError(
            f"shard {url}: the block at offset {offset} ({length} bytes) has crc32 {found:08x}, the index says "
            f"{crc32:08x}: the shard changed or is damaged. Restore it, or index again"
        )
    return io.BytesIO(data)
