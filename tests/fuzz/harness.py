"""Mutations of real inputs, and a guard over the parser that reads them.

    fuzz(parse, seeds, words)    `parse` sees every seed, then many mutated ones; it may refuse them with `allowed`

Whatever else a parser does fails the test: another exception, more than 5 s, more memory than its bound, a process that
starts, a connection beyond this machine, a class that pickle looks up, a file that is written outside its folder. The
guard's own errors are no `Exception`s, so that no parser catches them.

A few hundred inputs by default, the same in every run; `MASKLOOM_FUZZ_INPUTS=100000` makes it so many others.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from maskloom.errors import UserError

INPUTS = "MASKLOOM_FUZZ_INPUTS"
HANG_S = 5.0
WAITS = 6
"""So many times as long may an input take in which the process waits and does not compute."""
MEMORY_BYTES = 512 << 20
"""Address space that one input may take beside what the process has already."""
MOST_EDITS = 6
NUMBERS = (
    "0",
    "1",
    "-1",
    "7",
    "255",
    "65536",
    "2147483648",
    "-9223372036854775808",
    "18446744073709551616",
    "1e999",
    "9" * 400,
)
BYTES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\n",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"\x1b[31m",
    b"NaN",
    b"null",
)
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class")
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.truncate",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LOOPBACK = ("127.", "::1", "localhost")


class Violation(BaseException):
    """A parser did what no input may make it do."""


@dataclass
class Guard:
    """What is allowed at the moment; the audit hook looks here, for it cannot be taken away again."""

    is_on: bool = False
    folder: str = ""
    found: list[str] = field(default_factory=list)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event in STARTS:
            self.refuse(f"{event}{arguments[:2]}")
        elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES) or event in CHANGES:
            self.check(event, arguments[0])
        elif event == "socket.connect":
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else ""
            if not str(host).startswith(LOOPBACK):
                self.refuse(f"{event} to {address!r}")

    def check(self, event: str, path: object) -> None:
        """Paths are a parser's own where they lie in its folder; a number is a file that is open already."""
        if isinstance(path, int):
            return
        place = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        if place != os.devnull and not (self.folder and place.startswith(self.folder + os.sep)):
            self.refuse(f"{event} of {place}")

    def refuse(self, what: str) -> None:
        self.found.append(what)  # also where the parser swallows the error
        raise Violation(what)


GUARD = Guard()
sys.addaudithook(GUARD.audit)


@contextlib.contextmanager
def guarded(folder: Path | None = None, hang_s: float = HANG_S, memory_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """The guard is on in the block. `folder` is where the block may write."""

    began_s, began_cpu_s = time.monotonic(), time.process_time()

    def look(number: int, frame: object) -> None:
        """The machine may be busy with something else: this process's own seconds count, and of those of the clock many more."""
        if time.process_time() - began_cpu_s >= hang_s or time.monotonic() - began_s >= WAITS * hang_s:
            GUARD.refuse(f"hangs: no answer in {hang_s:g} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, look)
    GUARD.folder, GUARD.found = os.path.realpath(folder) if folder else "", []
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory_bytes, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, hang_s, hang_s)
    GUARD.is_on = True
    try:
        yield
    finally:
        GUARD.is_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)
    if GUARD.found:
        raise Violation("; ".join(GUARD.found))


@dataclass
class Report:
    """What became of the inputs, for people to read (`pytest -s`)."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest_s: float = 0.0

    def add(self, is_read: bool, taken_s: float) -> None:
        self.inputs += 1
        self.read += is_read
        self.refused += not is_read
        self.slowest_s = max(self.slowest_s, taken_s)

    def __str__(self) -> str:
        return f"{self.inputs:,} inputs: {self.read:,} read, {self.refused:,} refused; slowest {1e3 * self.slowest_s:.1f} ms"


def fuzz(
    parse: Callable[[bytes], object],
    seeds: Sequence[bytes],
    words: Sequence[bytes] = (),
    *,
    allowed: tuple[type[Exception], ...] = (UserError,),
    folder: Path | None = None,
    inputs: int = 500,
    hang_s: float = HANG_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Report:
    """Run `parse` over the seeds, which it reads, and over mutations of them, which it reads or refuses.

    Args:
        words: pieces of the format, which edits put into the input.
        allowed: what `parse` may raise for a mutated input.
        folder: where `parse` may write; nowhere else.
        inputs: how many, unless the environment says otherwise.
    """
    for seed in seeds:
        parse(seed)  # imports what it needs, too, before the guard is on
    report = Report()
    wanted = os.environ.get(INPUTS)

    @settings(
        max_examples=int(wanted) if wanted else inputs,
        derandomize=not wanted,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seeds, words))
    def run(data: bytes) -> None:
        began_s = time.perf_counter()
        is_read = True
        with guarded(folder, hang_s, memory_bytes):
            try:
                parse(data)
            except allowed:
                is_read = False
        report.add(is_read, time.perf_counter() - began_s)

    run()
    print(f"\n{getattr(parse, '__qualname__', parse)}: {report}")
    return report


def mutated(seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> st.SearchStrategy[bytes]:
    """A seed with one to six edits; fewer and simpler ones where a failure is shrunk."""
    known = [*words, *BYTES, *(number.encode() for number in NUMBERS)]
    edit = st.tuples(st.sampled_from(EDITS), st.integers(0, 1 << 24), st.integers(0, 1 << 24))

    def build(seed: bytes, edits: list[tuple[Edit, int, int]]) -> bytes:
        for change, where, what in edits:
            seed = change(seed, where, what, seeds, known)
        return seed

    return st.builds(build, st.sampled_from(list(seeds)), st.lists(edit, min_size=1, max_size=MOST_EDITS))


Edit = Callable[[bytes, int, int, Sequence[bytes], Sequence[bytes]], bytes]


def _place(data: bytes, where: int) -> int:
    return where % (len(data) + 1)


def _set_byte(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    place = _place(data, where)
    return data[:place] + bytes([what % 256]) + data[place + 1 :]


def _flip_bit(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    place = _place(data, where)
    return data[:place] + bytes(byte ^ (1 << what % 8) for byte in data[place : place + 1]) + data[place + 1 :]


def _insert(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    place = _place(data, where)
    return data[:place] + words[what % len(words)] + data[place:]


def _overwrite(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    place, word = _place(data, where), words[what % len(words)]
    return data[:place] + word + data[place + len(word) :]


def _remove(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    place = _place(data, where)
    return data[:place] + data[place + 1 + what % 64 :]


def _cut(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    return data[: _place(data, where)]


def _repeat(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    place = _place(data, where)
    return data[:place] + data[place : place + 1 + what % 512] * (1 + what % 3) + data[place:]


def _splice(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    other = seeds[what % len(seeds)]
    return data[: _place(data, where)] + other[_place(other, what // len(seeds)) :]


def _set_number(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Another number instead of the first that begins behind `where`."""
    digits = b"0123456789"
    place = _place(data, where)
    begin = next((at for at in range(place, min(len(data), place + 4096)) if data[at] in digits), None)
    if begin is None:
        return data
    end = begin
    while end < len(data) and data[end] in digits:
        end += 1
    return data[:begin] + NUMBERS[what % len(NUMBERS)].encode() + data[end:]


def _set_word(data: bytes, where: int, what: int, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """A word instead of what stands between two delimiters behind `where`."""
    delimiters = b" \n\t\"',:[]{}=/"
    place = _place(data, where)
    begin = next((at for at in range(place, min(len(data), place + 4096)) if data[at] not in delimiters), None)
    if begin is None:
        return data
    end = begin
    while end < len(data) and data[end] not in delimiters:
        end += 1
    return data[:begin] + words[what % len(words)] + data[end:]


EDITS: tuple[Edit, ...] = (
    _set_byte,
    _flip_bit,
    _insert,
    _overwrite,
    _remove,
    _cut,
    _repeat,
    _splice,
    _set_number,
    _set_word,
)
