"""Where a checkpoint is judged good: every file has the size and the SHA-256 digest that its manifest names.

`damage` judges a folder in one process. In a run, `_verify` (find.py) shares the files among the ranks. Both ask `fault_of` about
a file. The digests are those of what `save` read back from the disk. Whether a good checkpoint goes with a configuration is
another question: `check_fits` (fit.py).
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import NamedTuple

from maskloom.files import open_plain, parse_json, read_plain
from maskloom.redaction import brief
from maskloom.scalars import is_count
from maskloom.train.checkpoint.state import step_of

CHUNK_BYTES = 1 << 22
MANIFEST = "manifest.json"
DATA = "data.json"


class Digest(NamedTuple):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str

    def is_one(self) -> bool:
        """Whether these are a size and a digest: a manifest may hold anything."""
        return is_count(self.bytes) and isinstance(self.sha256, str)


class Damaged(Exception):
    """A checkpoint whose manifest cannot be relied on."""


def digest(file: Path) -> Digest:
    """Size and SHA-256 of what a file system gives for a file."""
    sha256, size = hashlib.sha256(), 0
    with open(file, "rb", buffering=0, opener=open_plain) as stream:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while count := stream.readinto(buffer):
            sha256.update(buffer[:count])
            size += count
    return Digest(size, sha256.hexdigest())


def read_manifest(folder: Path) -> dict[str, Digest]:
    """The files of a checkpoint. Raises Damaged."""
    try:
        manifest = parse_json(read_plain(folder / MANIFEST))
        step = manifest["step"]
        files = {name: Digest(entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its manifest cannot be read ({brief(error)})") from None
    if wrong := next((name for name, wanted in files.items() if not wanted.is_one()), None):
        raise Damaged(f"its manifest has no size and digest for {brief(wrong)}")
    if step != step_of(folder):
        raise Damaged(f"its manifest is that of step {brief(step)}")
    if DATA not in files:
        raise Damaged(f"its manifest does not list {DATA}")
    if strange := [name for name in files if Path(name).name != name or name == ".." or not name.isprintable()]:
        raise Damaged(f"its manifest lists {brief(strange[0])}, which is not a file name")
    # DeepSpeed and `reshape` find files by patterns of names: what nobody verified would be loaded.
    if unlisted := sorted({file.name for file in folder.glob("*.pt")} - files.keys()):
        raise Damaged(f"it holds {unlisted[0]}, an unexpected file that is not in its manifest")
    return files


def fault_of(file: Path, wanted: Digest) -> str | None:
    """What is wrong with a file, or None."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            return f"{file.name} is not a file"
        size = status.st_size
        if size != wanted.bytes:
            return f"{file.name} has {size} bytes instead of {wanted.bytes}"
        if digest(file).sha256 != wanted.sha256:
            return f"the content of {file.name} is not what was written"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = read_manifest(folder)
    except Damaged as error:
        return str(error)
    return next((fault for name, wanted in files.items() if (fault := fault_of(folder / name, wanted))), None)
