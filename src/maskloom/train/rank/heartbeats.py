"""Signs of life of all ranks, and which rank is to blame when the others wait.

Every two seconds a rank writes a few words about itself into the store that the ranks met at (torch's `TCPStore`: rank 0's, or
that of torchrun's agent). Nobody reads them until something is wrong.

Host clocks differ, so ranks send counts of beats, not timestamps. A rank is silent if its count does not grow while another one
looks. A store whose process is stopped never answers, and its client waits for ever. So each question is asked in a thread of its
own. If no answer comes, the thread is left behind; if it comes late, the client is in order again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

BEAT_S = 2.0
ANSWER_S = 10.0
"""Longest wait for an answer of the store."""
LOOK_S = 3 * BEAT_S
"""How long to look whether a rank's beats continue."""
COLLECTIVES = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")

WORDS_OF_START = {
    "load": "loading the model",
    "data": "reading the first rows",
    "compute": "the first step",
    "update": "the first step",
    "evaluate": "evaluating",
    "save": "saving",
}
WORDS_OF_TRAINING = {
    "data": "waiting for data",
    "load": "rolling back",
    "evaluate": "evaluating",
    "save": "saving",
    "report": "sending the last figures",
}
"""Section -> what people are told."""

T = TypeVar("T")


class Pulse:
    """What the main thread of this rank is doing. It says so at every micro-batch and section; the watch thread reads it.

    Attributes:
        step: optimizer steps done.
        section: `start`, `load`, `data`, `compute`, `update`, `log`, `evaluate`, `save` or `report`.
        ticks: how often it said anything; ranks that are at the same place have the same number.
        at_s: when it last did, by this machine's monotonic clock.
        has_stepped: the first step of this process is done.
    """

    def __init__(self) -> None:
        self.step, self.section, self.ticks, self.has_stepped = 0, "start", 0, False
        self.at_s = time.monotonic()

    def tick(self, section: str | None = None) -> None:
        self.section = section or self.section
        self.ticks += 1
        self.at_s = time.monotonic()

    def stepped(self, step: int) -> None:
        """A step is done."""
        self.step, self.has_stepped = step, True
        self.tick()

    def quiet_s(self) -> float:
        """Seconds since the last tick."""
        return time.monotonic() - self.at_s

    def doing(self) -> tuple[str, int]:
        """What this rank does, in words for people, and the steps done."""
        words = WORDS_OF_TRAINING if self.has_stepped else WORDS_OF_START
        if self.has_stepped and self.section == "data" and self.quiet_s() < BEAT_S:
            return "training", self.step
        return words.get(self.section, "training" if self.has_stepped else "starting"), self.step

    def forgive(self, seconds: float) -> None:
        """This process stood still as a whole, as in a job that was suspended: nobody waited for anybody."""
        self.at_s += seconds


@dataclass(frozen=True)
class Beat:
    """What a rank says about itself.

    Attributes:
        number: counts its beats.
        quiet_s: seconds since its main thread's last tick.
        place: where in our code its main thread is, once it has been quiet for a while.
        waits: its main thread is in a collective.
    """

    rank: int
    host: str
    pid: int
    number: int
    step: int
    section: str
    ticks: int
    quiet_s: float
    place: str = ""
    waits: bool = False

    def name(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"

    def whereabouts(self) -> str:
        place = f" at {self.place}" if self.place else ""
        return f"after step {self.step} in section '{self.section}'{place}"


class NoAnswer(Exception):
    """The store does not answer."""


class Board:
    """Where ranks leave their beats: a client of the ranks' store.

    Args:
        prefix: of this attempt's keys; a store may outlive several attempts.
    """

    def __init__(self, host: str, port: int, prefix: str) -> None:
        self.host, self.port, self.prefix = host, port, prefix
        self._store: Any = None
        self._fault = ""

    def put(self, beat: Beat) -> None:
        self._ask(lambda store: store.set(f"beat/{beat.rank}", json.dumps(asdict(beat))))

    def beats(self, size: int) -> list[Beat | None]:
        """The newest beat of every rank, None of one that has left none."""

        def read(store: Any) -> list[bytes]:
            keys = [f"beat/{rank}" for rank in range(size)]
            if store.check(keys):
                return list(store.multi_get(keys))
            return [store.get(key) if store.check([key]) else b"" for key in keys]

        return [_parse(text) for text in self._ask(read)]

    def raise_alarm(self) -> int:
        """Ask all ranks for the stacks of their threads; returns how many ranks did so by now."""
        return int(self._ask(lambda store: store.add("alarm", 1)))

    def is_alarmed(self) -> bool:
        return bool(self._ask(lambda store: store.check(["alarm"])))

    def claim_report(self) -> bool:
        """Whether this rank is the first that asks."""
        return int(self._ask(lambda store: store.add("report", 1))) == 1

    def leave(self) -> int:
        """Say that this rank needs the store no more; returns how many ranks have said so."""
        return int(self._ask(lambda store: store.add("left", 1)))

    def left(self) -> int:
        return int(self._ask(lambda store: store.add("left", 0)))

    def _ask(self, question: Callable[[Any], T]) -> T:
        """Raises NoAnswer. If the connection broke, it always does so from then on: a store begins only once."""
        if self._fault:
            raise NoAnswer(self._fault)
        answers: list[T] = []
        faults: list[BaseException] = []

        def ask() -> None:
            try:
                self._store = self._store or self._connect()
                answers.append(question(self._store))
            except BaseException as error:
                faults.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(ANSWER_S)
        if answers:
            return answers[0]
        self._fault = str(faults[0]).split("\n")[0] if faults else ""
        raise NoAnswer(self._fault or f"no answer in {ANSWER_S:g} s")

    def _connect(self) -> Any:
        import torch.distributed as dist

        store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            self.host, self.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ANSWER_S)
        )
        return dist.PrefixStore(self.prefix, store)  # type: ignore[attr-defined]


def blame(before: Sequence[Beat | None], after: Sequence[Beat | None], me: int, names: Sequence[str] = ()) -> str:
    """Who is to blame, from the beats of all ranks at two moments, in rank order.

    That all ranks live and wait for each other is a finding too.

    Args:
        me: the rank that looks: it is alive.
        names: of the ranks, for one that left no beat: it may have stood still before its first.
    """
    silent = [rank for rank, (old, new) in enumerate(zip(before, after, strict=True)) if old == new and rank != me]
    if silent:
        named = []
        for rank in silent:
            last = after[rank]
            named.append(
                f"{last.name()}, last seen {last.whereabouts()}"
                if last
                else f"{names[rank] if names else f'rank {rank}'}, which never gave a sign of life"
            )
        return "no sign of life from " + "; ".join(named) + ": stopped, killed or cut off"
    live = [beat for beat in after if beat is not None]
    fewest = min((beat.ticks for beat in live), default=0)
    behind = [beat for beat in live if beat.ticks == fewest]
    if len(behind) == len(live):
        behind = [beat for beat in live if not beat.waits]
    if behind and len(behind) < len(live):
        return "; ".join(f"{beat.name()} hangs {beat.whereabouts()}, quiet for {beat.quiet_s:.0f} s" for beat in behind)
    places = sorted({beat.whereabouts() for beat in live})
    return f"all {len(live)} rank(s) wait at the same place: {'; '.join(places)}"


def whereabouts_of_main_thread() -> tuple[str, bool]:
    """Where in our code the main thread is, and whether it is in a collective."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    place, waits = "", False
    while frame is not None:
        file = frame.f_code.co_filename
        waits = waits or any(part in file for part in COLLECTIVES)
        if not place and f"{os.sep}maskloom{os.sep}" in file:
            place = f"{file[file.rindex(f'maskloom{os.sep}') :]}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return place, waits


def _parse(text: bytes) -> Beat | None:
    """What another process wrote is checked: whoever reaches the store could write there."""
    try:
        values = json.loads(text)
        beat = Beat(**values)
    except (ValueError, TypeError):
        return None
    kinds: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}
    return beat if all(isinstance(values[field.name], kinds[str(field.type)]) for field in fields(beat)) else None
