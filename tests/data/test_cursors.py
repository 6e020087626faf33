"""A lane's place in each corpus: it survives JSON, and it counts the rows of every sequence length."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.cursors import Cursor, first_cursors

reads = st.lists(st.tuples(st.sampled_from([16, 32, 64]), st.integers(1, 50)), max_size=4).map(tuple)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), reads)
def test_a_cursor_survives_json(number: int, taken: tuple[tuple[int, int], ...]) -> None:
    cursor = Cursor(number, taken)
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([16, 32, 64]), st.integers(0, 9)), max_size=8))
def test_a_cursor_counts_the_rows_of_each_stretch_and_keeps_no_empty_one(stretches: list[tuple[int, int]]) -> None:
    cursor = Cursor(5)
    for seq_len, rows in stretches:
        cursor = cursor.at(seq_len)
        assert cursor.reads[-1][0] == seq_len
        assert cursor.at(seq_len) == cursor
        cursor = cursor.after(rows)
    assert cursor.number == 5
    assert sum(taken for _, taken in cursor.reads) == sum(rows for _, rows in stretches)
    assert all(taken for _, taken in cursor.reads[:-1])


@pytest.mark.parametrize("corpora", [1, 3])
def test_lanes_begin_at_consecutive_blocks_of_each_corpus(corpora: int) -> None:
    assert first_cursors(4, corpora) == [(Cursor(lane),) * corpora for lane in range(4)]
