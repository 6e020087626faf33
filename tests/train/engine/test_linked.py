"""Libraries that shared libraries link: of compiled ones, and of what is none."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import torch

from maskloom.train.engine.linked import linked_libraries


def test_they_are_what_the_linker_was_given(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    (tmp_path / "none.c").write_text("int none(void) { return 0; }\n")
    (tmp_path / "user.c").write_text('const char *said = "libspoken_of.so is not linked";\n')
    names = ["libcudart-9335f6a2.so.12", "libc10_cuda.so"]
    for name in names:
        command = [compiler, "-shared", "-fPIC", "-o", name, "none.c", f"-Wl,-soname,{name}"]
        subprocess.run(command, cwd=tmp_path, check=True)
    for given in ([], names):
        command = [compiler, "-shared", "-fPIC", "-nostdlib", "-o", "out.so", "user.c", "-Wl,--no-as-needed", *given]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert linked_libraries(tmp_path / "out.so") == given


def test_torch_links_itself() -> None:
    """A library of hundreds of MiB, made by somebody else."""
    linked = linked_libraries(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert {"libtorch.so", "libc.so.6"} <= set(linked)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + bytes(200)])
def test_what_is_no_library_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "op.so").write_bytes(content)
    with pytest.raises(ValueError, match=r"op\.so is not a shared library"):
        linked_libraries(tmp_path / "op.so")


def test_whatever_is_damaged_in_one_it_is_read_or_refused(tmp_path: Path) -> None:
    """The places and lengths that it holds may point anywhere."""
    whole = Path(sys.executable).resolve()
    content = bytearray(whole.read_bytes()[:4096])
    random = Random(0)
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(random.randint(1, 8)):
            damaged[random.randrange(6, 1024)] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
        (tmp_path / "op.so").write_bytes(damaged)
        with suppress(ValueError):
            linked_libraries(tmp_path / "op.so")


def test_a_place_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    segment = struct.pack("<IIQQQQQQ", 2, 0, 2**63, 0, 0, 16, 16, 8)
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1) + bytes(6)
    (tmp_path / "op.so").write_bytes(head + segment)
    with pytest.raises(ValueError, match=r"op\.so is not a shared library"):
        linked_libraries(tmp_path / "op.so")
