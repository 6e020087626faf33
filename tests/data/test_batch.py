from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maskloom.config import Masking
from maskloom.data.batch import Layout, MicroBatch, make_micro_batch, micro_batches
from maskloom.data.cursors import first_cursors
from maskloom.data.index.corpus import Index
from maskloom.data.masking import MaskRule
from maskloom.data.plan import DataPlan, PhasePlan
from maskloom.data.rows import Rows
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.tokenizers.base import Tokenizer

from .corpora import plan_of

CAPACITY = MaskRule(0.15).most(32)


@pytest.fixture(scope="module")
def plan(index: Index, tokenizer: Tokenizer) -> DataPlan:
    return plan_of([index], tokenizer, [PhasePlan(2, 32, 3)], 4, seed=1)


def rows_of(plan: DataPlan, world: World) -> Rows:
    return next(read_steps(plan, world, first_cursors(plan.lanes), 0, 1)).rows


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 64), st.integers(1, 40), st.integers(1, 64), st.integers(1, 64))
def test_the_layout_holds_every_rank_and_is_the_least_that_does(lanes: int, each: int, most: int, size: int) -> None:
    assume(size <= lanes)
    layouts = {Layout.of(lanes, each, most, World(rank, size)) for rank in range(size)}
    assert len(layouts) == 1
    layout = layouts.pop()
    largest = max(len(World(rank, size).share(lanes)) for rank in range(size)) * each
    assert 1 <= layout.micro_batch_rows <= most
    room = layout.micro_batches * layout.micro_batch_rows
    assert room >= largest
    assert (layout.micro_batches - 1) * most < largest  # one micro-batch fewer would not do,
    assert layout.micro_batches * (layout.micro_batch_rows - 1) < largest  # nor would one row fewer in each
    assert layout.waste == pytest.approx((room * size - lanes * each) / (room * size))


@given(st.integers(1, 64), st.integers(1, 40), st.integers(1, 64), st.integers(1, 64), st.data())
def test_a_smaller_batch_runs_in_as_few_micro_batches_of_the_same_shape(
    lanes: int, each: int, most: int, size: int, data: st.DataObject
) -> None:
    assume(size <= lanes)
    world = World(0, size)
    whole = Layout.of(lanes, each, most, world)
    assert whole.of_smaller(lanes, each, world) == whole
    fewer = data.draw(st.integers(1, each))
    layout = whole.of_smaller(lanes, fewer, world)
    assert layout.micro_batch_rows == whole.micro_batch_rows
    largest = world.largest_share(lanes) * fewer
    assert (layout.micro_batches - 1) * layout.micro_batch_rows < largest
    room = layout.micro_batches * layout.micro_batch_rows
    assert room >= largest
    assert layout.waste == pytest.approx((room * size - lanes * fewer) / (room * size))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [1, 2, 5, 64])
def test_ranks_run_the_same_shapes_and_together_the_global_batch(plan: DataPlan, size: int, most: int) -> None:
    everything = rows_of(plan, World())
    seen, shapes, weight = [], set(), 0.0
    for rank in range(size):
        world = World(rank, size)
        layout = Layout.of(plan.lanes, 3, most, world)
        mine = rows_of(plan, world)
        batches = list(micro_batches(mine, layout, CAPACITY, plan.tokenizer))
        ids = torch.cat([batch.input_ids for batch in batches]).reshape(-1, 32)
        seen.append(ids[: len(mine)])
        assert (ids[len(mine) :] == plan.tokenizer.pad_id).all()
        weight += sum(float(batch.weights.sum()) for batch in batches)
        shapes.add(tuple((len(batch.input_ids), len(batch.weights), batch.seq_len) for batch in batches))
        for number, batch in enumerate(batches):
            real = min(max(len(mine) - number * layout.micro_batch_rows, 0), layout.micro_batch_rows)
            predicted = batch.masked_index[batch.weights > 0]
            assert (predicted < real * 32).all()  # what fills the shape is never predicted
    assert len(shapes) == 1
    assert np.array_equal(torch.cat(seen).numpy(), everything.input_ids)
    assert weight == everything.chosen.sum()


def test_three_ranks_that_do_not_divide_four_lanes(plan: DataPlan) -> None:
    """The largest share is two lanes of three rows: all ranks run six rows, 18 for the batch's 12."""
    layout = Layout.of(4, 3, 4, World(0, 3))
    assert (layout.micro_batches, layout.micro_batch_rows) == (2, 3)
    assert layout.waste == pytest.approx(6 / 18)
    assert sorted(len(rows_of(plan, World(rank, 3))) for rank in range(3)) == [3, 3, 6]


@pytest.mark.parametrize("size", [12, 13, 20])
def test_a_micro_batch_says_what_its_rows_say(plan: DataPlan, size: int) -> None:
    rows = rows_of(plan, World())
    batch = make_micro_batch(rows, size, CAPACITY, plan.tokenizer)
    tokens = np.full((size, 32), plan.tokenizer.pad_id)
    tokens[: len(rows)] = rows.tokens
    real = batch.weights > 0
    assert set(batch.weights.tolist()) <= {0.0, 1.0}
    assert np.array_equal(batch.masked_index[real].numpy(), np.flatnonzero(rows.chosen))
    assert np.array_equal(batch.targets[real].numpy(), rows.tokens[rows.chosen])
    assert batch.masked_index[~real].eq(0).all()
    assert len(batch.weights) == size * CAPACITY

    ends = batch.cu_seqlens.tolist()
    assert ends[0] == 0
    assert ends[-1] == size * 32
    assert (len(ends) - 1) % size == 0
    empty = ends.count(size * 32) - 1
    assert empty < size
    assert all(start < end for start, end in itertools.pairwise(ends[: len(ends) - empty]))
    for start, end in itertools.pairwise(ends[: len(ends) - empty]):
        assert batch.positions[start:end].tolist() == list(range(end - start))
        assert start // 32 == (end - 1) // 32  # no piece crosses a row
        assert len(set(batch.pieces[start:end].tolist())) == 1
        text = tokens.reshape(-1)[start:end]
        is_piece = text[0] == plan.tokenizer.cls_id and text[-1] == plan.tokenizer.sep_id
        assert is_piece or (text == plan.tokenizer.pad_id).all()
    by_row = batch.pieces.reshape(size, 32)
    assert (by_row[:, 0] == 0).all()
    assert set((by_row[:, 1:] - by_row[:, :-1]).unique().tolist()) <= {0, 1}


def test_no_row_at_all_is_a_micro_batch_of_filling(plan: DataPlan) -> None:
    none = rows_of(plan, World()).take(slice(0, 0))
    batch = make_micro_batch(none, 3, CAPACITY, plan.tokenizer)
    assert batch.weights.sum() == 0
    assert batch.input_ids.tolist() == [plan.tokenizer.pad_id] * (3 * 32)
    assert batch.cu_seqlens.tolist() == [0, 32, 64, 96]


def test_dtypes_are_those_that_the_model_takes(plan: DataPlan) -> None:
    batch = make_micro_batch(rows_of(plan, World()), 12, CAPACITY, plan.tokenizer)
    kinds = {name: value.dtype for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert kinds == {
        "input_ids": torch.int64,
        "positions": torch.int64,
        "pieces": torch.int32,
        "cu_seqlens": torch.int32,
        "masked_index": torch.int64,
        "targets": torch.int64,
        "weights": torch.float32,
    }


def test_moving_keeps_every_field(plan: DataPlan) -> None:
    batch = make_micro_batch(rows_of(plan, World()), 12, CAPACITY, plan.tokenizer)
    moved = batch.to(torch.device("meta"))
    for field in fields(MicroBatch):
        one, other = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(one, torch.Tensor):
            assert (other.device.type, other.shape, other.dtype) == ("meta", one.shape, one.dtype)
        else:
            assert one == other


def test_nothing_is_copied_on_a_cpu(plan: DataPlan) -> None:
    batch = make_micro_batch(rows_of(plan, World()), 12, CAPACITY, plan.tokenizer)
    moved = batch.to(torch.device("cpu"))
    for field in fields(MicroBatch):
        assert getattr(moved, field.name) is getattr(batch, field.name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: a CPU copies nothing")
def test_a_gpu_is_not_waited_for(plan: DataPlan) -> None:
    """torch raises where a call would wait for the device."""
    batch = make_micro_batch(rows_of(plan, World()), 12, CAPACITY, plan.tokenizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to(torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for field in fields(MicroBatch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(moved, field.name).cpu(), value)


def test_the_shape_is_that_of_the_phases_richest_step(index: Index, tokenizer: Tokenizer) -> None:
    """While the rate falls, what is not predicted any more becomes filling; nothing of a step is cut off."""
    masking = Masking(rate=0.4, final_rate=0.1)
    plan = plan_of([index], tokenizer, [PhasePlan(8, 32, 3)], 4, masking=masking)
    shapes, weights = set(), []
    for step in read_steps(plan, World(), first_cursors(4), 0):
        batch = make_micro_batch(step.rows, 12, plan.capacity(0), tokenizer)
        assert batch.weights.sum() == step.rows.chosen.sum()
        shapes.add(len(batch.weights))
        weights.append(float(batch.weights.mean()))
    assert shapes == {12 * MaskRule(0.4).most(32)}
    assert weights[0] > 2 * weights[-1]  # 0.4 to 0.1, and rows that are not full
