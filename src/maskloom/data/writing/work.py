"""The folder `.OUT.work` beside OUT: a corpus in the making. A killed job resumes from it, and machines share it.

```
plan.json   inputs, options, number of batches and shards
files.tsv   every input with its size and time
batches/    one file for each batch of the input that was read
corpus/     the shards; becomes OUT
entries/    one file for each shard that was written: its rows of the index
temporary/  what is being written
locks/      one file for each part that ever ran
finishing   held while the index is made
```
A file in `batches` or `entries` is there whole or not at all. If it is there, that piece of work is done. Its content follows
from the plan, so two processes that happen to do the same piece write the same bytes.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from maskloom.data.index.files import BLOCK, Shard, Split
from maskloom.data.index.indexing import IndexedShard
from maskloom.errors import UserError
from maskloom.files import only_one, refuse_existing, sync_folder, whole_file

VERSION = 1
DIFFERENCES_SHOWN = 5
FOLDERS = ("batches", "corpus", "entries", "temporary", "locks")


@dataclass(frozen=True)
class JobPart:
    """The part of one of several machines that write a corpus: `number` is 1 to `of`. Every `of`-th piece of work is its own."""

    number: int = 1
    of: int = 1

    def takes(self, piece: int) -> bool:
        return piece % self.of == self.number - 1

    @property
    def tag(self) -> str:
        """The part in names of files."""
        return f"part-{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class WorkPlan:
    """What a corpus is made of, and how. It is the same for all parts and at every start.

    Attributes:
        inputs: as they were given.
        options: of the shards, by name.
        tokenizer: its `tokens_mark`, if token shards are written, else "".
        corpus: digest of the corpus whose blocks are tokenised, else "".
        batches: pieces of the input.
        names: of the shards, without their suffix.
        files: (name, stamp) of every input.
    """

    inputs: tuple[str, ...]
    options: dict[str, Any]
    tokenizer: str
    corpus: str
    batches: int
    names: tuple[str, ...]
    files: tuple[tuple[str, str], ...]

    def header(self) -> dict[str, object]:
        """Everything but the files, as plain values."""
        values = {key: value for key, value in asdict(self).items() if key != "files"}
        return {"version": VERSION, **values, "inputs": list(self.inputs), "names": list(self.names)}

    def differences(self, other: WorkPlan) -> list[str]:
        """How another plan differs, as lines of text."""
        mine, its = ({**plan.options, "inputs": plan.inputs, "tokenizer": plan.tokenizer} for plan in (self, other))
        found = [f"{key}: {mine[key]!r} then, {its[key]!r} here" for key in mine if mine[key] != its.get(key)]
        files, others = dict(self.files), dict(other.files)
        found += [f"{name}: not there then" for name in others if name not in files]
        found += [f"{name}: no longer there" for name in files if name not in others]
        found += [
            f"{name}: {files[name]} then, {stamp} here"
            for name, stamp in others.items()
            if files.get(name, stamp) != stamp
        ]
        return found or (["files come in another order, or this is another version"] if self != other else [])


@dataclass(frozen=True)
class Entry:
    """A shard that was written.

    Attributes:
        indexed: its rows of the index. None: no document fell into it.
        text: for token shards, the rows of the text that they were made from. They identify the corpus.
        records: documents that fell into it.
        duplicates: how many of them have the text of another.
    """

    indexed: IndexedShard | None
    text: IndexedShard | None
    records: int
    duplicates: int


@dataclass(frozen=True)
class WorkFolder:
    """A corpus in the making, as one part sees it."""

    folder: Path
    plan: WorkPlan
    part: JobPart = JobPart()

    def batch(self, number: int) -> Path:
        return self.folder / "batches" / f"{number:06d}"

    def shard(self, number: int) -> Path:
        return self.folder / "corpus" / f"{self.plan.names[number]}.tar"

    def unread(self) -> list[int]:
        """Numbers of the batches that were not read yet."""
        done = {file.name for file in (self.folder / "batches").iterdir()}
        return [number for number in range(self.plan.batches) if self.batch(number).name not in done]

    def unwritten(self) -> list[int]:
        """Numbers of the shards that were not written yet."""
        done = {file.name for file in (self.folder / "entries").iterdir()}
        return [number for number, name in enumerate(self.plan.names) if f"{name}.json" not in done]

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[IO[bytes]]:
        """A file of the work. It is there whole or not at all."""
        with whole_file(path, self.temporary(path.name)) as file:
            yield file
        sync_folder(path.parent)

    def temporary(self, name: str) -> Path:
        """A name that no other process has."""
        return self.folder / "temporary" / f"{name}.{self.part.tag}.{socket.gethostname()}.{os.getpid()}"

    def write_entry(self, number: int, entry: Entry) -> None:
        values = {"indexed": _to_json(entry.indexed), "text": _to_json(entry.text)}
        counts = {"records": entry.records, "duplicates": entry.duplicates}
        with self.writing(self.folder / "entries" / f"{self.plan.names[number]}.json") as file:
            file.write(json.dumps(values | counts).encode())

    def read_entry(self, number: int) -> Entry:
        values = json.loads((self.folder / "entries" / f"{self.plan.names[number]}.json").read_bytes())
        indexed, text = (_from_json(values[name], self.shard(number)) for name in ("indexed", "text"))
        return Entry(indexed, text, values["records"], values["duplicates"])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that works on this part, and remove what a killed one left half written."""
        busy = f"another process works on part {self.part} in {self.folder}: wait for it, or stop it"
        with only_one(self.folder / "locks" / self.part.tag, busy) as alone:
            if alone:
                for file in (self.folder / "temporary").glob(f"*.{self.part.tag}.*"):
                    file.unlink(missing_ok=True)
            yield

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Be the only process that makes the index."""
        with only_one(self.folder / "finishing", f"another process finishes the work in {self.folder}"):
            yield

    @property
    def is_shared(self) -> bool:
        """Whether it was begun in parts, so that other machines may share it."""
        return any(file.name != JobPart().tag for file in (self.folder / "locks").iterdir())

    def parts(self) -> int | None:
        """How many parts there are, by those that were started. None: they do not agree."""
        numbers = {int(file.name.rpartition("-")[2]) for file in (self.folder / "locks").iterdir()}
        return numbers.pop() if len(numbers) == 1 else None

    def complete(self, out: Path) -> None:
        """Turn the shards into OUT."""
        for folder in (self.folder / "corpus" / "index", self.folder / "corpus"):
            for file in folder.iterdir():
                if file.is_file() and file.suffix != ".tar":  # the shards were synced when they were written
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            sync_folder(folder)
        (self.folder / "corpus").rename(out)
        sync_folder(out.parent)


def work_folder(out: Path) -> Path:
    """The folder in which `out` is made, as an absolute path: a name such as "a:b" would look like a URL."""
    return out.absolute().parent / f".{out.name}.work"


def begin(out: Path, plan: WorkPlan, part: JobPart) -> WorkFolder:
    """Create the work folder, or resume one that has the same plan.

    Raises:
        UserError: `out` exists, or work with another plan was begun.
    """
    folder = work_folder(out)
    refuse_existing(out)
    # Another machine may create the folder at the same moment, so whoever did, read its plan and compare.
    if not folder.exists():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            _create(folder, plan)
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror} ({error.filename or folder})") from None
    work = open_work(out)
    if work.plan != plan:
        found = work.plan.differences(plan)
        more = f"\n  and {len(found) - DIFFERENCES_SHOWN} more" if len(found) > DIFFERENCES_SHOWN else ""
        listed = "".join(f"\n  {line}" for line in found[:DIFFERENCES_SHOWN])
        raise UserError(
            f"{folder} holds unfinished work on {out} that was begun with other settings:{listed}{more}\nRemove {folder} to "
            "begin again, or use the same settings to resume it"
        )
    return replace(work, part=part)


def open_work(out: Path) -> WorkFolder:
    """The work on `out` that was begun. Raises UserError if there is none."""
    folder = work_folder(out)
    try:
        header = json.loads((folder / "plan.json").read_bytes())
        rows = (folder / "files.tsv").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no work on {out} was begun ({folder} is not there): write it with `maskloom shards INPUT... "
            f"{shlex.quote(str(out))} --part 1/N`"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder / 'plan.json'} is not valid JSON: {error}: remove {folder}") from None
    if header.pop("version") != VERSION:
        raise UserError(f"{folder} was begun by another version of maskloom: finish it with that one, or remove it")
    files = tuple((json.loads(name), stamp) for stamp, name in (row.split("\t") for row in rows))
    return WorkFolder(
        folder,
        WorkPlan(**header | {"inputs": tuple(header["inputs"]), "names": tuple(header["names"]), "files": files}),
    )


def remove_finished(out: Path) -> bool:
    """Remove the work folder of an `out` that is complete: a kill at the very end leaves it. Returns whether it did."""
    folder = work_folder(out)
    if not out.exists() or not folder.exists() or (folder / "corpus").exists():
        return False
    with contextlib.suppress(FileNotFoundError):  # another process does the same
        for left in list(folder.parent.glob(f"{glob.escape(folder.name)}.*")):
            # A process that was killed while it made the folder left NAME.HOST.PID. The work on another OUT may have a name
            # with ".work." in it, which would look the same: so hosts with such a name clean up by hand.
            is_left = re.fullmatch(r"\.(?!(.*\.)?work\.).+\.\d+", left.name.removeprefix(folder.name))
            if is_left and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
        for name in FOLDERS:  # the plan last: it says whose work this was
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.rmtree(folder)
    return True


def is_finished(out: Path, plan: WorkPlan) -> bool:
    """Whether `out` is what this plan makes, so that only a kill at the very end can have left its work folder."""
    folder = work_folder(out)
    if not out.exists() or not (folder / "plan.json").exists() or (folder / "corpus").exists():
        return False
    return open_work(out).plan == plan


def shard_names(counts: Sequence[tuple[Split, int]]) -> tuple[str, ...]:
    """`train-000000` and so on."""
    return tuple(f"{split}-{number:06d}" for split, count in counts for number in range(count))


def _create(folder: Path, plan: WorkPlan) -> None:
    """Create it at once, by rename: if several machines begin together, one is first and the others find its plan."""
    made = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        for name in FOLDERS:
            (made / name).mkdir(parents=True)
        rows = "".join(f"{stamp}\t{json.dumps(name)}\n" for name, stamp in plan.files)
        (made / "files.tsv").write_text(rows, encoding="utf-8")
        (made / "plan.json").write_text(json.dumps(plan.header(), indent=1), encoding="utf-8")
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _to_json(indexed: IndexedShard | None) -> dict[str, object] | None:
    if indexed is None:
        return None
    shard = {key: value for key, value in asdict(indexed.shard).items() if key != "url"}
    counts = {"text_bytes": indexed.text_bytes, "bad_documents": indexed.bad_documents}
    return {"shard": shard, "blocks": indexed.blocks.tolist(), **counts}


def _from_json(values: dict[str, Any] | None, path: Path) -> IndexedShard | None:
    if values is None:
        return None
    blocks = np.array([tuple(row) for row in values["blocks"]], dtype=BLOCK)
    shard = Shard(url=str(path.absolute()), **values["shard"])
    return IndexedShard(shard, blocks, values["text_bytes"], values["bad_documents"])
