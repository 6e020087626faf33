"""What a thread does ahead: the same results in order, so far ahead and no further, errors in their place, no thread left."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest
import torch

from maskloom.data.ahead import ahead
from maskloom.errors import UserError
from tests.waiting import wait_until

CPU = torch.device("cpu")
Read = Callable[[Callable[[], bool]], Generator[int]]


@pytest.fixture(autouse=True)
def _as_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskloom.data.ahead.ON_CPUS", True)


def test_on_a_cpu_each_is_done_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskloom.data.ahead.ON_CPUS", False)
    taken: list[int] = []
    with contextlib.closing(ahead(numbers(5, taken), lambda _: threading.current_thread(), CPU)) as results:
        assert next(results) is next(results) is threading.main_thread()
        assert taken == [0, 1]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of all threads")


def numbers(count: int, taken: list[int] | None = None) -> Read:
    def read(_: Callable[[], bool]) -> Generator[int]:
        for number in range(count):
            if taken is not None:
                taken.append(number)
            yield number

    return read


@pytest.mark.parametrize("count", [0, 1, 2, 50])
@pytest.mark.parametrize("most", [1, 3])
def test_every_result_comes_in_order(count: int, most: int) -> None:
    assert list(ahead(numbers(count), lambda number: number**2, CPU, most)) == [number**2 for number in range(count)]


@pytest.mark.parametrize("most", [1, 3])
def test_the_thread_works_so_far_ahead_and_no_further(most: int) -> None:
    taken: list[int] = []
    with contextlib.closing(ahead(numbers(50, taken), lambda number: number, CPU, most)) as results:
        for used in (1, 2, 3):
            next(results)
            wait_until(lambda used=used: len(taken) == used + most, "the thread")
            time.sleep(0.02)
            assert len(taken) == used + most


def test_work_is_done_in_a_thread_and_the_first_item_read_in_this_one() -> None:
    readers: list[threading.Thread] = []

    def read(_: Callable[[], bool]) -> Generator[int]:
        for number in range(3):
            readers.append(threading.current_thread())
            yield number

    workers = set(ahead(read, lambda _: threading.current_thread(), CPU))
    assert threading.main_thread() not in workers
    assert len(workers) == 1
    assert readers == [threading.main_thread(), *workers, *workers]


@pytest.mark.parametrize("fails_at", [0, 1, 4])
@pytest.mark.parametrize("in_work", [False, True])
def test_an_error_is_raised_instead_of_its_item(fails_at: int, in_work: bool) -> None:
    def fail(number: int) -> int:
        if number == fails_at:
            raise UserError(f"number {number}")
        return number

    def read(is_over: Callable[[], bool]) -> Generator[int]:
        yield from map(fail, numbers(9)(is_over)) if not in_work else numbers(9)(is_over)

    found: list[int] = []
    with pytest.raises(UserError, match=f"number {fails_at}"):
        found.extend(ahead(read, fail if in_work else abs, CPU))
    reading = ahead(read, fail if in_work else abs, CPU)
    for number in range(fails_at):
        assert next(reading) == number
    with pytest.raises(UserError):
        next(reading)
    with pytest.raises(StopIteration):
        next(reading)


def test_closing_it_ends_a_wait_for_items_and_their_reader() -> None:
    waits, ended = threading.Event(), threading.Event()

    def read(is_over: Callable[[], bool]) -> Generator[int]:
        try:
            yield 0
            waits.set()
            while not is_over():
                time.sleep(0.001)
        finally:
            ended.set()

    results = ahead(read, abs, CPU)
    assert next(results) == 0
    waits.wait()
    results.close()
    assert ended.is_set()


def test_an_iterator_that_is_dropped_ends_too() -> None:
    results = ahead(numbers(50), abs, CPU)
    next(results)
    del results
