"""Signs of life: who is to blame, and that a store which does not answer holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from maskloom.train.rank import heartbeats
from maskloom.train.rank.heartbeats import Beat, Board, NoAnswer, Pulse, blame, whereabouts_of_main_thread
from tests.waiting import wait_until

BEAT = Beat(0, "a", 10, 5, step=12, section="compute", ticks=40, quiet_s=61.0, place="", waits=True)


def beats(*changes: dict) -> list[Beat | None]:
    return [replace(BEAT, rank=rank, host="abc"[rank], pid=10 + rank, **change) for rank, change in enumerate(changes)]


def grown(some: list[Beat | None]) -> list[Beat | None]:
    return [beat and replace(beat, number=beat.number + 2) for beat in some]


class TestBlame:
    def test_a_rank_whose_beats_stop(self) -> None:
        before = beats({}, {}, {})
        after = [before[1] if beat and beat.rank == 1 else beat for beat in grown(before)]
        said = blame(before, after, me=0)
        assert "no sign of life from rank 1 on b (process 11), last seen after step 12 in section 'compute'" in said
        assert "rank 2" not in said

    def test_the_one_that_looks_lives(self) -> None:
        before = beats({}, {})
        assert "rank 0" not in blame(before, before, me=0)

    def test_a_rank_that_never_beat(self) -> None:
        assert "rank 1, which never gave a sign of life" in blame([BEAT, None], [BEAT, None], me=0)
        names = ["rank 0 on a (process 1)", "rank 1 on b (process 2)"]
        assert f"{names[1]}, which never gave" in blame([BEAT, None], [BEAT, None], 0, names)

    def test_a_rank_that_is_behind(self) -> None:
        late = {"ticks": 38, "section": "data", "place": "maskloom/data/storage.py:9 (read)", "waits": False}
        before = beats({}, {}, late)
        said = blame(before, grown(before), me=0)
        assert said == (
            "rank 2 on c (process 12) hangs after step 12 in section 'data' at maskloom/data/storage.py:9 (read), quiet for 61 s"
        )

    def test_of_ranks_at_the_same_place_the_one_that_waits_for_nobody(self) -> None:
        before = beats({}, {"waits": False}, {})
        assert blame(before, grown(before), me=0).startswith("rank 1 on b (process 11) hangs")

    def test_all_wait_for_each_other(self) -> None:
        before = beats({}, {})
        assert blame(before, grown(before), me=0) == (
            "all 2 rank(s) wait at the same place: after step 12 in section 'compute'"
        )


def test_a_pulse_counts_ticks_and_forgives_standing_still() -> None:
    pulse = Pulse()
    pulse.tick("data")
    pulse.tick("compute")
    pulse.stepped(7)
    assert (pulse.ticks, pulse.section, pulse.step, pulse.has_stepped) == (3, "compute", 7, True)
    pulse.at_s -= 100
    assert pulse.quiet_s() >= 100
    pulse.forgive(100)
    assert pulse.quiet_s() < 50


def test_the_main_thread_is_found() -> None:
    place, waits = whereabouts_of_main_thread()
    assert place.startswith("maskloom/train/rank/heartbeats.py:")
    assert "whereabouts_of_main_thread" in place
    assert not waits


STORE = (
    "import sys, time, torch.distributed as dist\n"
    "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
    "print(store.port, flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.fixture
def store() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A store in another process, and its port."""
    with subprocess.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        yield keeper, int(keeper.stdout.readline())
        keeper.kill()


def test_ranks_read_each_others_beats(store: tuple[subprocess.Popen[str], int]) -> None:
    first, second = (Board("127.0.0.1", store[1], "a") for _ in range(2))
    assert first.beats(2) == [None, None]
    first.put(BEAT)
    assert second.beats(2) == [BEAT, None]
    assert Board("127.0.0.1", store[1], "another attempt").beats(2) == [None, None]
    assert not second.is_alarmed()
    assert [first.raise_alarm(), second.raise_alarm()] == [1, 2]
    assert second.is_alarmed()
    assert [second.claim_report(), first.claim_report()] == [True, False]
    assert [first.leave(), second.left(), second.leave()] == [1, 1, 2]


def test_what_is_not_a_beat_is_none(store: tuple[subprocess.Popen[str], int]) -> None:
    board = Board("127.0.0.1", store[1], "a")
    for text in (b"\xff", "[]", '{"rank": 0}', '{"rank": {}}'):
        board._ask(lambda store, text=text: store.set("beat/0", text))
        assert board.beats(1) == [None]


def stands_still(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_store_that_does_not_answer_holds_nobody_up(
    store: tuple[subprocess.Popen[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, port = store
    board = Board("127.0.0.1", port, "a")
    board.put(BEAT)
    monkeypatch.setattr(heartbeats, "ANSWER_S", 0.5)
    os.kill(keeper.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{keeper.pid}/task")  # each of its threads stops when it runs next
    wait_until(lambda: all(stands_still(task) for task in tasks.iterdir()), "the store stands still")
    for _ in range(2):
        with pytest.raises(NoAnswer, match=r"no answer in 0\.5 s"):
            board.is_alarmed()
    monkeypatch.setattr(heartbeats, "ANSWER_S", 60)
    os.kill(keeper.pid, signal.SIGCONT)
    assert board.beats(1) == [BEAT], "it goes on when the store does"
    keeper.kill()
    keeper.wait()
    began_s = time.monotonic()
    for _ in range(2):
        with pytest.raises(NoAnswer):
            board.is_alarmed()
    assert time.monotonic() - began_s < 60, "a connection that broke is not tried again"
