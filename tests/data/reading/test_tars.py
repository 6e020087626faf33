"""What a tar of unknown origin can hold: read as webdataset reads it, or refused with its place."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from webdataset.tariterators import tar_file_expander

from maskloom.data.index.indexing import index_shard
from maskloom.data.reading import tars
from maskloom.data.reading.samples import read_documents, read_tokens
from maskloom.data.reading.tars import LARGEST_HEADER_BYTES, LARGEST_MEMBER_BYTES, RECORD_BYTES, members
from maskloom.errors import DataFault

END = bytes(2 * RECORD_BYTES)
TEXT = b"some words of a good document"


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % RECORD_BYTES)


def header(name: str, size: int, kind: bytes = b"0", change: Callable[[bytearray], None] | None = None) -> bytes:
    """A header whose checksum is right, whatever it says."""
    raw = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    raw[156:157] = kind
    raw[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    if change:
        change(raw)
    raw[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(raw))[0]
    return bytes(raw)


def member(name: str, data: bytes = TEXT, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + padded(data)


def record(key: str, value: str) -> bytes:
    """A pax record: its own length in decimal, key and value."""
    rest = f" {key}={value}\n".encode()
    size = len(rest) + 1
    while size != len(rest) + len(str(size)):
        size += 1
    return str(size).encode() + rest


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    return member("pax", b"".join(records), kind)


def sparse(entries: bytes, is_extended: int = 0) -> bytes:
    def change(raw: bytearray) -> None:
        raw[386 : 386 + len(entries)] = entries
        raw[482] = is_extended

    return header("s.txt", RECORD_BYTES, b"S", change) + bytes(RECORD_BYTES)


def sized(field: bytes, name: str = "a.txt", kind: bytes = b"0") -> bytes:
    """A member of 5 bytes whose size is written so."""
    return header(name, 5, kind, lambda raw: raw.__setitem__(slice(124, 136), field.ljust(12, b"\0"))) + padded(
        b"hello"
    )


GOOD = member("good.txt")
HOSTILE = {
    "size below 0": header("a.txt", -512),
    "size far below 0": header("a.txt", -(256**11)),
    "size beyond the file": header("a.txt", 4096) + TEXT,
    "size beyond any file": header("a.txt", 256**11 - 1),
    "size of no digits": header("a.txt", 0, change=lambda raw: raw.__setitem__(slice(124, 136), b"9x;9 99999\0\0")),
    "folder with a size below 0": header("a", -512, b"5"),
    "folder with a size beyond any file": header("a", 1 << 60, b"5"),
    "link with a size": header("a.txt", 1 << 50, b"2"),
    "hard link": header("a.txt", 0, b"1"),
    "device": header("a.txt", 0, b"3"),
    "fifo": header("a.txt", 0, b"6"),
    "unknown kind": header("a.txt", 512, b"Q") + bytes(512),
    "long name of 1 TiB": header("././@LongLink", 1 << 40, b"L"),
    "long name of a negative size": header("././@LongLink", -512, b"L"),
    "long name above the limit": member("././@LongLink", b"n" * (LARGEST_HEADER_BYTES + 1), b"L") + member("a.txt"),
    "long name of nothing": member("././@LongLink", b"long.txt\0", b"L"),
    "long names without end": member("././@LongLink", b"long.txt\0", b"L") * 3000,
    "long link of 1 TiB": header("././@LongLink", 1 << 40, b"K"),
    "long name outside": member("././@LongLink", b"a/" * 100 + b"../../b.txt\0", b"L") + member("a.txt"),
    "pax of 1 TiB": header("pax", 1 << 40, b"x"),
    "pax of a negative size": header("pax", -512, b"x"),
    "pax above the limit": pax(record("comment", "1" * LARGEST_HEADER_BYTES)) + member("a.txt"),
    "pax record of a huge length": pax(b"9" * 400 + b" a=b\n") + member("a.txt"),
    "pax record of more digits than Python reads": pax(b"9" * 5000 + b" a=b\n") + member("a.txt"),
    "pax record of no length": pax(b"0 a=b\n") + member("a.txt"),
    "pax size below 0": pax(record("size", "-512")) + member("a.txt"),
    "pax size far below 0": pax(record("size", "-99999999999")) + member("a.txt"),
    "pax size beyond the file": pax(record("size", "99999999")) + member("a.txt"),
    "pax size beyond any file": pax(record("size", "9" * 100)) + member("a.txt"),
    "pax of nothing": pax(record("path", "b.txt")),
    "pax path outside": pax(record("path", "../b.txt")) + member("a.txt"),
    "pax path from the root": pax(record("path", "/b.txt")) + member("a.txt"),
    "pax for all: size": pax(record("size", "100"), kind=b"g") + member("a.txt"),
    "pax for all: path": pax(record("path", "b.txt"), kind=b"g") + member("a.txt"),
    "pax for all: sparse": pax(record("GNU.sparse.size", "100"), kind=b"g") + member("a.txt"),
    "pax charset of no text": pax(b"21 hdrcharset=\xff\xfe\xfd\xfc\xfb\n") + member("a.txt"),
    "sparse map of no numbers": pax(record("GNU.sparse.map", "1,a")) + member("a.txt"),
    "sparse map": pax(record("GNU.sparse.map", "0,9")) + member("a.txt"),
    "sparse 0.0": pax(record("GNU.sparse.size", "99999999999")) + member("a.txt"),
    "sparse 0.0 below 0": pax(record("GNU.sparse.size", "-1")) + member("a.txt"),
    "sparse size of no number": pax(record("GNU.sparse.realsize", "many")) + member("a.txt"),
    "sparse 1.0": pax(record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0")) + member("a.txt"),
    "sparse 1.0 of many": pax(record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0"))
    + member("a.txt", b"99999999999\n" + b"1\n" * 100),
    "sparse, old": sparse(b"%011o\0%011o\0" % (0, 5)),
    "sparse, old, below 0": sparse((-512 % 256**12).to_bytes(12, "big") * 2),
    "sparse, old, that goes on": sparse(b"", 1),
    "pax path of nothing": pax(record("path", "")) + member("a.txt"),
    "pax path of a slash": pax(record("path", "/")) + member("a.txt"),
    "pax record without its end": pax(b"9 path=x") + member("a.txt"),
    "pax record without its end or value": pax(b"8 path=") + member("a.txt"),
    "pax record of a wrong length": pax(b"10 path=b.txt\n") + member("a.txt"),
    "pax record that is shorter than its key": pax(b"3 path=b.txt\n") + member("a.txt"),
    "pax records with something between": pax(record("comment", "a"), b"?", record("path", "b.txt")) + member("a.txt"),
    "long name of no bytes": member("././@LongLink", b"", b"L") + member("a.txt"),
    "long name of zeros": member("././@LongLink", bytes(9), b"L") + member("a.txt"),
    "no name": member(""),
    "file with the name of a folder": member("a/"),
    **{
        f"size {field!r}": sized(field)
        for field in (b"0o5", b"0O5", b"+5", b"-0", b"0_5", b"", b" " * 12, b"\t5", b"5 5")
    },
    "old file with a size of nothing": sized(b"", kind=b"\0"),
    "long name with a size of another kind": sized(b"0o5", "././@LongLink", b"L") + member("a.txt"),
    **{
        f"pax size {value!r}": pax(record("size", value)) + member("a.txt")
        for value in ("\u0662\u0669", "2_9", "+29", " 29", "29 ", "", "many", "0x1d")
    },
    "name outside": member("../a.txt"),
    "name from the root": member("/a.txt"),
    "name of another system": member("a\\..\\..\\b.txt"),
    "checksum": header("a.txt", 5)[:148] + b"123456\0 " + header("a.txt", 5)[156:],
    "noise": bytes(range(1, 256)) * 4,
}


def readers(tmp_path: Path) -> list[Callable[[bytes], object]]:
    """All that read tars, from the whole content of one."""

    def index(data: bytes) -> None:
        (tmp_path / "my.tar").write_bytes(data)
        index_shard(tmp_path / "my.tar", 1, "text", "train")

    return [
        index,
        lambda data: list(read_documents(io.BytesIO(data), "my.tar", "text", 7168)),
        lambda data: read_tokens(io.BytesIO(data), "my.tar", 7168),
    ]


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("before", [b"", GOOD], ids=["first", "second"])
def test_a_hostile_member_is_a_fault_of_the_shard(what: str, before: bytes, tmp_path: Path) -> None:
    """Whoever reads it."""
    for read in readers(tmp_path):
        with pytest.raises(DataFault, match=r"shard .*my\.tar") as fault:
            read(before + HOSTILE[what] + END)
        assert fault.value.kind == "tar"


@pytest.mark.parametrize("field", [b"00000000005\0", b"00000000005 ", b"          5 ", b"5", b"5 \0", b"000000000005"])
def test_octal_sizes_of_all_tools_are_read(field: bytes) -> None:
    (found,) = members(io.BytesIO(sized(field) + END), "shard my.tar")
    assert (found.name, found.size) == ("a.txt", 5)


@pytest.mark.parametrize("field", [b"", b" " * 12])
def test_a_folder_may_lack_a_size(field: bytes) -> None:
    folder = header("a", 0, b"5", lambda raw: raw.__setitem__(slice(124, 136), field.ljust(12, b"\0")))
    assert [one.is_read for one in members(io.BytesIO(folder + GOOD + END), "shard my.tar")] == [False, True]


def test_a_long_name_is_shortened_in_a_message() -> None:
    data = member("././@LongLink", b"n" * 9000 + b"\0", b"L") + member("a", kind=b"1")
    with pytest.raises(
        DataFault, match=r"member 'n+\[\.\.\. 8,800 characters left out \.\.\.\]n+' at byte 0 is a link"
    ) as fault:
        list(members(io.BytesIO(data + END), "shard my.tar"))
    assert len(str(fault.value)) < 500


@pytest.mark.parametrize("what", ["size below 0", "long name of 1 TiB", "sparse map of no numbers", "checksum"])
def test_the_place_of_a_fault_is_that_in_the_shard(what: str, tmp_path: Path) -> None:
    index, read, _ = readers(tmp_path)
    for reader, offset in ((index, 0), (read, 7168)):
        with pytest.raises(DataFault, match=f"after byte {offset + len(GOOD)}: ") as fault:
            reader(GOOD + HOSTILE[what] + END)
    assert (fault.value.shard, fault.value.offset) == ("my.tar", 7168)


@pytest.mark.parametrize(
    "compress", [gzip.compress, lzma.compress, lambda data: lzma.compress(data, lzma.FORMAT_ALONE)]
)
def test_a_compressed_block_is_not_unpacked(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    for read in readers(tmp_path):
        with pytest.raises(DataFault, match=r"is compressed|is not a tar"):
            read(compress(GOOD + END))


@pytest.mark.parametrize("read", ["index", "block"])
def test_the_limit_of_a_member_holds_wherever_it_is_read(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = readers(tmp_path)[read == "block"]
    size = len(TEXT)
    monkeypatch.setattr(tars, "LARGEST_MEMBER_BYTES", size)
    reader(GOOD + END)
    monkeypatch.setattr(tars, "LARGEST_MEMBER_BYTES", size - 1)
    with pytest.raises(
        DataFault, match=rf"member 'good\.txt' at byte .* has {size} bytes, more than {size - 1}: .*split it"
    ):
        reader(GOOD + END)


def test_the_limit_of_a_block_counts_all_members_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.tar"
    path.write_bytes(member("a.0.txt") + member("a.1.txt") + member("b.txt") + END)
    monkeypatch.setattr("maskloom.data.index.indexing.LARGEST_BLOCK_BYTES", 2 * 2 * RECORD_BYTES)
    assert index_shard(path, 1, "text", "train").blocks["documents"].tolist() == [2, 1]
    monkeypatch.setattr("maskloom.data.index.indexing.LARGEST_BLOCK_BYTES", 2 * 2 * RECORD_BYTES - 1)
    with pytest.raises(DataFault, match=r"the block at byte 0 has more than 2,047 bytes.*split the sample 'a'"):
        index_shard(path, 1, "text", "train")


NAMES = [
    "a.txt",
    "b/c.txt",
    "d" * 99 + "/" + "e" * 90 + ".txt",
    "f" * 300 + ".txt",
    "gé" * 60 + ".txt",
    "h.0.txt",
    "i.JSON",
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_webdataset_reads(form: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, pax_headers={"comment": "of all"}) as tar:
        for number, name in enumerate([*NAMES, "__meta__", "__info__/a.txt", "folder"]):
            info = tarfile.TarInfo(name)
            info.mtime = 1234567.5  # pax writes a record for it
            info.size = 0 if name == "folder" else number * 300
            info.type = tarfile.DIRTYPE if name == "folder" else tarfile.REGTYPE
            try:
                tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
            except ValueError:  # ustar has no such long names
                assert form == tarfile.USTAR_FORMAT
    data = stream.getvalue()
    source = {"url": "my.tar", "stream": io.BytesIO(data)}
    expected = [(file["fname"], file["data"]) for file in tar_file_expander([source]) if file]
    found = list(members(stream, "shard my.tar")) if not stream.seek(0) else []
    assert [(one.name, data[one.start : one.start + one.size]) for one in found if one.is_read] == expected
    assert len(expected) >= 5
    assert [one.offset for one in found[1:]] == [one.end for one in found[:-1]]


def test_limits_are_far_above_what_text_has() -> None:
    """A name has at most 4096 bytes on Linux, and a link's target as many."""
    assert LARGEST_HEADER_BYTES >= 2 * 4096
    assert LARGEST_MEMBER_BYTES == 2**30
