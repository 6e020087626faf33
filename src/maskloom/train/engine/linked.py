"""Which libraries a shared library links, from the file itself: readelf need not be installed, and loading it would run it.

An ELF file's dynamic section is a list of (tag, value): DT_NEEDED is the place of a name in the table of texts whose address
DT_STRTAB has. Addresses become places in the file by the segments that are loaded from it. (System V ABI, chapter 5.)
"""

from __future__ import annotations

import mmap
from pathlib import Path
from struct import error, unpack_from

ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB = 0, 1, 5


def linked_libraries(file: Path) -> list[str]:
    """Names of the libraries that a shared library of x86-64 or arm64 links, such as libc.so.6.

    Raises:
        ValueError: it is none, or is damaged.
    """
    with file.open("rb") as opened:
        try:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _linked(content)
        except (error, IndexError, KeyError, OverflowError, ValueError) as fault:
            raise ValueError(f"{file} is not a shared library: {fault!r}") from None


def _linked(content: mmap.mmap) -> list[str]:
    if content[:6] != ELF64_LITTLE_ENDIAN:
        raise ValueError("it does not begin as one")
    (table,) = unpack_from("<Q", content, 32)
    size, count = unpack_from("<HH", content, 54)
    segments = [unpack_from("<I4xQQ8xQ", content, table + number * size) for number in range(count)]
    dynamic = [(place, length) for kind, place, _, length in segments if kind == PT_DYNAMIC]
    needed, texts = [], 0
    for at in range(dynamic[0][0], sum(dynamic[0]), 16):
        tag, value = unpack_from("<qQ", content, at)
        if tag == DT_NULL:
            break
        needed += [value] if tag == DT_NEEDED else []
        texts = value if tag == DT_STRTAB else texts
    loaded = [
        (place, start) for kind, place, start, length in segments if kind == PT_LOAD and 0 <= texts - start < length
    ]
    begin = texts - loaded[0][1] + loaded[0][0]
    return [content[begin + name : content.find(b"\0", begin + name)].decode() for name in needed]
