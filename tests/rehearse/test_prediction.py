"""`rehearse.prediction`: the arithmetic of a step."""

from __future__ import annotations

import pytest
from rehearse import prediction
from rehearse.prediction import CAUTIOUS, COPY_BYTES_PER_S, HOPEFUL, ISSUE_PER_S, Speeds

from .facts import HIDDEN, ROWS, SEQ_LEN, SLOTS, UNIT, facts, modern, work

FULL = Speeds(product_share=1, copy_share=1, attention_flops=1e30, attention_copy_share=1, gap_s=0, optimizer_bytes=0)


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_instructions() -> None:
    moved = prediction.elementwise_s({"a": work("triton", 1, COPY_BYTES_PER_S, 1)}, FULL)
    assert moved == pytest.approx(1)
    issued = prediction.elementwise_s({"a": work("triton", 1, 1, int(2 * ISSUE_PER_S))}, FULL)
    assert issued == pytest.approx(2)
    unknown = prediction.elementwise_s({"a": work("triton", 1, COPY_BYTES_PER_S, None)}, FULL)
    assert unknown == pytest.approx(1)


def test_products_are_those_of_the_formula() -> None:
    from maskloom.models.flops import Shape, training_flops

    parts = prediction.step_parts(facts(), FULL)
    head = HIDDEN**2 + HIDDEN * 30528  # 30,522 is padded to a multiple of 64
    padded = Shape(3 * 12 * HIDDEN**2, HIDDEN, head, ((None, 3),))
    expected = 2 * training_flops(padded, SLOTS, [0], 19 * ROWS)  # two micro-batches; attention apart
    assert parts.products == pytest.approx(expected / prediction.BEST_PRODUCT_FLOPS)


def test_attention_of_short_rows_is_bound_by_bytes() -> None:
    flops = 12 * 3 * HIDDEN * SLOTS * SEQ_LEN
    moved = prediction.ATTENTION_BYTES * 3 * UNIT
    by_bytes = prediction.step_parts(facts(), FULL)
    assert by_bytes.attention == pytest.approx(2 * moved / COPY_BYTES_PER_S)
    slow = Speeds(1, 1, 1e12, 1, 0, 0)
    assert prediction.step_parts(facts(), slow).attention == pytest.approx(2 * flops / 1e12)


def test_launches_of_every_layer_and_of_the_rest_count() -> None:
    a_layer, rest = 4 + 2 + 1 + 8 + 2 + 1 + 4, 1 + 0 + 4
    parts = prediction.step_parts(facts(), Speeds(1, 1, 1, 1, gap_s=1, optimizer_bytes=0))
    assert parts.launches == 2 * (3 * a_layer + rest)


def test_elementwise_bytes_of_every_layer_and_of_the_rest_count() -> None:
    given = facts()
    for works in (*given["layer"].values(), *given["rest"].values()):
        for entry in works.values():
            entry["issued"] = 0
    parts = prediction.step_parts(given, FULL)
    assert parts.elementwise == pytest.approx(2 * UNIT * (3 * (34 + 64) + 8 - 2) / COPY_BYTES_PER_S)


def test_the_optimizer_moves_every_parameter() -> None:
    parts = prediction.step_parts(facts(), Speeds(1, 1, 1, 1, 0, optimizer_bytes=10))
    matrices = 12 * 3 * HIDDEN**2 + HIDDEN**2 + 30522 * HIDDEN
    assert parts.optimizer == pytest.approx(10 * matrices / COPY_BYTES_PER_S)


def test_a_window_is_as_wide_as_what_a_tile_of_queries_sees() -> None:
    slow = Speeds(1, 1, 1e12, 1, 0, 0)
    a_key = 12 * HIDDEN * SLOTS / 1e12
    assert prediction.attention_s(HIDDEN, SLOTS, 1024, None, slow) == pytest.approx(1024 * a_key)
    assert prediction.attention_s(HIDDEN, SLOTS, 1024, 64, slow) == pytest.approx((128 + 2 * 64) * a_key)
    assert prediction.attention_s(HIDDEN, SLOTS, 128, 64, slow) == pytest.approx(128 * a_key)  # no more than the row
    parts = prediction.step_parts(modern(), slow)
    assert parts.attention == pytest.approx(2 * 3 * 128 * a_key)  # two micro-batches of three layers


def test_a_modernberts_products_have_its_narrow_inner_layer() -> None:
    # Four D^2 for the attention, and three D * 1.5 D: two halves in, and one out.
    products = 6 * 3 * (4 + 4.5) * HIDDEN**2 * SLOTS + 6 * 38 * ROWS * (HIDDEN**2 + HIDDEN * 30528)
    parts = prediction.step_parts(modern(), FULL)
    assert parts.products == pytest.approx(2 * products / prediction.BEST_PRODUCT_FLOPS)


def test_fewer_instructions_are_never_slower() -> None:
    given = facts()
    given["layer"]["forward"]["triton_per_norm"]["issued"] = int(ISSUE_PER_S)
    slow, fast = prediction.rows_per_s(given), prediction.rows_per_s(facts())
    assert slow[0] < fast[0] and slow[1] < fast[1]


def test_the_range_goes_from_cautious_to_hopeful() -> None:
    cautious, hopeful = prediction.rows_per_s(facts())
    assert 0 < cautious < hopeful
    rows = 2 * ROWS
    assert cautious == pytest.approx(rows / prediction.step_parts(facts(), CAUTIOUS).total)
    assert hopeful == pytest.approx(rows / prediction.step_parts(facts(), HOPEFUL).total)
    assert 0 < prediction.utilisation(facts(), hopeful) < 1
