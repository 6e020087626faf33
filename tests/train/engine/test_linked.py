"""Libraries that shared libraries link: of compiled ones, and of what is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

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
    with pytest.raises(ValueError, match=r"op\.so is no shared library"):
        linked_libraries(tmp_path / "op.so")
