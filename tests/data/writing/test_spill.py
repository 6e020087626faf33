from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.writing.spill import Record, SpillWriter, read_bucket, read_notes, text_digest
from maskloom.errors import UserError

BUCKETS = 4


def write(path: Path, items: list[tuple[int, Record]], run_bytes: int) -> None:
    with path.open("wb") as file:
        spill = SpillWriter(file, BUCKETS, run_bytes)
        for bucket, record in items:
            spill.add(bucket, record)
        spill.finish({"items": len(items)})


def record(order: int, text: bytes) -> Record:
    return Record(order, text_digest(text), text)


items = st.lists(
    st.tuples(st.integers(0, BUCKETS - 1), st.builds(record, st.integers(0, 2**64 - 1), st.binary(max_size=40))),
    max_size=20,
)


@settings(max_examples=50, deadline=None)
@given(items, st.sampled_from([1, 500, 1 << 20]))
def test_every_record_comes_back_from_its_bucket_in_order(
    tmp_path_factory: pytest.TempPathFactory, given_items: list[tuple[int, Record]], run_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("spill") / "a"
    write(path, given_items, run_bytes)
    for bucket in range(BUCKETS):
        expected = [record for place, record in given_items if place == bucket]
        assert list(read_bucket(path, bucket, BUCKETS)) == expected
    assert read_notes(path) == {"items": len(given_items)}


def test_damage_anywhere_is_refused_or_loses_records_that_the_notes_count(tmp_path: Path) -> None:
    rng = random.Random(3)
    path = tmp_path / "a"
    given_items = [(rng.randrange(BUCKETS), record(rng.getrandbits(64), rng.randbytes(20))) for _ in range(12)]
    write(path, given_items, 1000)
    data = path.read_bytes()
    whole = [list(read_bucket(path, bucket, BUCKETS)) for bucket in range(BUCKETS)]
    refused = 0
    for place in range(0, len(data), 3):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]):
            path.write_bytes(damaged)
            try:
                found = [list(read_bucket(path, bucket, BUCKETS)) for bucket in range(BUCKETS)]
                counted = read_notes(path).get("items")
            except UserError as error:
                assert str(error).startswith(f"{path} is damaged: remove it")
                refused += 1
            else:
                assert found == whole or sum(map(len, found)) != counted
    assert refused > len(data) // 3  # every cut, and more
