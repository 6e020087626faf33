"""The members of a tar that anyone may have written: plain files in a plain tar, or a fault that says where.

`tarfile` reads the headers, one at a time and with bounds. A header may ask for `LARGEST_HEADER_BYTES` of memory at most, and a
member may hold `LARGEST_MEMBER_BYTES`. Each member begins behind the one before. What the parser raises is a fault of the tar.
Nothing is decompressed or unpacked. Indexing and training read through this one door, so both refuse the same tars.

webdataset's own `tar_file_expander` would read the same members. But it unpacks without a bound what looks like gzip, bzip2 or
xz, it takes members of any size, and it ends silently at a damaged header.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from maskloom.errors import DataFault
from maskloom.redaction import brief, shortened

RECORD_BYTES = 512  # a tar is made of such records
LARGEST_MEMBER_BYTES = 1 << 30  # a block is read whole, and holds at least one member
LARGEST_BLOCK_BYTES = 4 << 30  # the members of one sample stay together, however many they are
LARGEST_HEADER_BYTES = 16 << 10  # of a long name, or of pax records; the longest path of Linux has 4096
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
META_MEMBER = re.compile(r"__[^/]*__($|/)")  # what webdataset skips
FOR_ALL = re.compile(r"path|linkpath|size|hdrcharset|GNU\.sparse")  # pax records that say how members are read
OCTAL = re.compile(rb" *[0-7]+[ \0]*")
BASE_256 = (0x80, 0xFF)  # the first byte of a number that is not octal; 0xff: below 0
SIZE_FIELD = slice(124, 136)
PAX_RECORD = re.compile(rb"([0-9]{1,9}) ([^=]+)=")
PAX_SIZE = re.compile(rb"[0-9]{1,20}")
NO_END = "no end-of-archive mark stands there. Write it again"
COMPRESSIONS = ((b"\x1f\x8b", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"\xfd7zXZ\0", "unxz"))


class Member(NamedTuple):
    """A file or a folder in a tar.

    Attributes:
        offset: where its headers begin, in bytes from the beginning of the stream.
        start: where its content begins.
        size: of its content, in bytes.
        end: where the next member's headers begin.
        is_read: whether webdataset reads it. It reads no folder, and no name such as `__meta__`.
    """

    name: str
    offset: int
    start: int
    size: int
    end: int
    is_read: bool


class _Header(tarfile.TarInfo):
    """A header whose numbers are checked before anything is read by them.

    tarfile reads numbers as Python does (`0o5`, `1_0`, digits of any script). It takes what it cannot read for 0, and ignores a
    damaged pax record. Other programs would read another tar there.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        most = LARGEST_HEADER_BYTES if header.type in EXTENSIONS else LARGEST_MEMBER_BYTES
        size = bytes(buf[SIZE_FIELD])
        if (
            not header.isdir() and size[0] not in BASE_256 and not OCTAL.fullmatch(size)
        ):  # old tools leave a folder's empty
            raise tarfile.ReadError(f"a header gives the size {brief(size)}, which is not an octal number")
        if header.size < 0:
            raise tarfile.ReadError(f"a header gives a size of {header.size:,} bytes")
        if header.size > most and header.type not in tarfile.REGULAR_TYPES:  # a file that is too large is named later
            raise tarfile.ReadError(f"a header gives {header.size:,} bytes, more than {most:,}")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"'{header.name}' is a sparse file: write the tar again with plain files")
        return header

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        stream = tar.fileobj
        assert stream is not None
        place = stream.tell()
        _check_pax(stream.read(self.size))
        stream.seek(place)
        found: tarfile.TarInfo = super()._proc_pax(tar)  # type: ignore[misc]  # not in the stubs
        return found


def _check_pax(data: bytes) -> None:
    """Raises ReadError if pax records do not follow each other to the end, or if a size is not a plain number."""
    place = 0
    while place < len(data):
        found = PAX_RECORD.match(data, place)
        end = place + int(found[1]) if found else 0
        if not found or not found.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise tarfile.ReadError(f"the pax record {brief(data[place : place + 40])} is damaged")
        value = data[found.end() : end - 1]
        if found[2] == b"size" and not PAX_SIZE.fullmatch(value):
            raise tarfile.ReadError(f"a pax record gives the size {brief(value)}, which is not a number")
        place = end


def members(stream: IO[bytes], where: str, offset: int = 0) -> Iterator[Member]:
    """The members of a tar stream, in order.

    Args:
        stream: seekable, at its beginning. You may seek and read it between members.
        where: names the tar, for messages: "shard a.tar".
        offset: where the stream begins in the shard, for messages.

    Raises:
        DataFault: of kind `tar`. It is compressed or damaged, or a member is not a plain file, too large, or named outside.
    """
    end = 0
    _refuse_compressed(stream.read(10), where)
    stream.seek(0)
    try:
        with tarfile.open(
            fileobj=stream, mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            while (found := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has read
                _check_member(found, where, offset)
                _check_place(tar, found, end)
                end = tar.offset
                is_read = found.isreg() and not META_MEMBER.match(found.name)
                yield Member(found.name, found.offset, found.offset_data, found.size, end, is_read)
    except (DataFault, MemoryError):  # too little memory on this machine is not a fault of the tar
        raise
    except Exception as error:  # tarfile lets many kinds through
        raise tar_fault(
            f"{where} is not a tar, or is damaged after byte {offset + end}: {error or type(error).__name__}"
        ) from None
    # tarfile ends silently at a header that it cannot read.
    stream.seek(end)
    if any(stream.read(RECORD_BYTES)):
        raise tar_fault(f"{where} is damaged or cut off after byte {offset + end}: {NO_END}")


def _refuse_compressed(data: bytes, where: str) -> None:
    tools = [tool for mark, tool in COMPRESSIONS if data.startswith(mark)]
    if data[:3] == b"BZh" and data[4:10] == b"1AY&SY":  # "BZh" alone can begin a member's name
        tools.append("bunzip2")
    if tools:
        raise tar_fault(f"{where} is compressed, so no part of it can be read alone: decompress it first ({tools[0]})")


def _check_member(member: tarfile.TarInfo, where: str, offset: int) -> None:
    """Raises DataFault for members that text never needs. We unpack nothing, but other tools may."""
    where = f"{where}: member '{shortened(member.name, 200)}' at byte {offset + member.offset}"
    if member.isreg() and (not member.name or (member.size and member.name.endswith("/"))):
        # webdataset would silently skip the content.
        raise tar_fault(f"{where} is a file without a name: the tar is damaged. Write it again")
    parts = member.name.replace("\\", "/").split("/")
    if member.name.startswith("/") or ".." in parts:
        raise tar_fault(f"{where} names a place outside the tar: write the tar again with plain relative names")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise tar_fault(f"{where} is a link, a device or a sparse file: write the tar again with plain files")
    if not 0 <= member.size <= LARGEST_MEMBER_BYTES:
        raise tar_fault(
            f"{where} has {member.size:,} bytes, more than {LARGEST_MEMBER_BYTES:,}: a block is read whole, so split it"
            if member.size > 0
            else f"{where} has a size of {member.size:,} bytes: the tar is damaged. Write it again"
        )


def _check_place(tar: tarfile.TarFile, member: tarfile.TarInfo, end: int) -> None:
    """Raises ReadError if a member does not follow the one before (an endless loop), reaches into the next, or would be read
    differently in a part of the tar than in the whole."""
    follows = end <= member.offset < member.offset_data <= tar.offset
    if not follows or (member.isreg() and member.offset_data + member.size > tar.offset):
        raise tarfile.ReadError(f"the headers of '{shortened(member.name, 200)}' contradict each other")
    if for_all := next(filter(FOR_ALL.match, tar.pax_headers), None):
        raise tarfile.ReadError(
            f"a header sets '{for_all[:40]}' of all members that follow, which a part of the tar cannot tell. Write it again"
        )


def tar_fault(message: str) -> DataFault:
    """A fault of a tar."""
    return DataFault(message, kind="tar")
