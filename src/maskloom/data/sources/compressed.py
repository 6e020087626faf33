"""`.gz` and `.zst` files as streams of bytes.

Both decompressors get a little input at a time, so a few bytes can never fill the memory. A file that was cut off is an error;
zstandard's own reader would end silently there. A file that expands beyond reason is refused.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import IO, Any

import zstandard

from maskloom.errors import UserError

FEED_BYTES = 4096  # compressed bytes at a time; zstd can make 128 MiB of text from them, at most
READ_BYTES = 1 << 20
LARGEST_RATIO = 200  # text bytes a compressed byte; English text gives 3 to 6, log files 50
SUSPECT_BYTES = 1 << 30  # of text; no ratio is suspect below this
ZSTD_WINDOW_BYTES = 1 << 31  # what `zstd --long=31` asks for
SUFFIXES = (".gz", ".zst")
DAMAGE = (EOFError, zlib.error, zstandard.ZstdError)


def open_text(name: str) -> IO[bytes]:
    """A plain, `.gz` or `.zst` file as a stream of its text's bytes.

    Reading raises one of `DAMAGE` if a compressed file is damaged or cut off.
    """
    if name.lower().endswith(SUFFIXES):
        return io.BufferedReader(_Decompressed(name), READ_BYTES)
    return Path(name).open("rb", buffering=READ_BYTES)


class _Decompressed(io.RawIOBase):
    """The members of a .gz, or the frames of a .zst, as one stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gzip = name.lower().endswith(".gz")
        self.file = Path(name).open("rb", buffering=READ_BYTES)  # noqa: SIM115  # closed by `close`
        self.frame: Any = None  # the decompressor of the frame that is open
        self.unread = b""
        self.text = memoryview(b"")
        self.read_bytes = self.text_bytes = self.frames = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            data = self.unread or self.file.read(FEED_BYTES)
            if not data:
                what = "gzip member" if self.is_gzip else "zstd frame"
                if self.frame is not None:
                    raise EOFError(f"the file ends inside a {what}")
                if not self.frames:  # even an empty text has one
                    raise EOFError(f"there is no {what} in it")
                return 0
            self.read_bytes += 0 if self.unread else len(data)
            self._decompress(data)
        count = min(len(buffer), len(self.text))
        buffer[:count], self.text = self.text[:count], self.text[count:]
        return count

    def _decompress(self, data: bytes) -> None:
        """Set `text` and `unread` from the bytes that follow."""
        self.unread = b""
        if self.frame is None:
            # gzip allows zeros after a member, as tapes and disk blocks leave them.
            data = data.lstrip(b"\0") if self.is_gzip else data
            if not data:
                return
            self.frame = zlib.decompressobj(31) if self.is_gzip else _zstd_frame()
            self.frames += 1
        self.text = memoryview(self.frame.decompress(data))
        if self.frame.eof:
            self.unread = self.frame.unused_data
            self.frame = None
        self.text_bytes += len(self.text)
        if self.text_bytes > SUSPECT_BYTES and self.text_bytes > LARGEST_RATIO * self.read_bytes:
            raise UserError(
                f"{self.name}: {self.read_bytes} compressed bytes gave {self.text_bytes} bytes, more than "
                f"{LARGEST_RATIO} times as many: no text does that. If it is intended, decompress the file first"
            )

    def close(self) -> None:
        self.file.close()
        super().close()


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
