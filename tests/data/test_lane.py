"""A lane gives rows for ever: every document of every epoch once, whatever the lengths, the weights and the damage."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import Masking
from maskloom.data.cursors import Cursor, first_cursors
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.lane import Lane, Track, rows_of_step
from maskloom.data.masking import MaskRule
from maskloom.data.mixing import corpus_of_rows, rows_of_corpora
from maskloom.data.order import block_at
from maskloom.data.plan import DataPlan, PhasePlan
from maskloom.data.rows import RowRange, Rows
from maskloom.errors import DataFault, UserError
from maskloom.tokenizers.base import Tokenizer
from tests.conftest import sentences

from .corpora import block_of, corpus_of, digest_of, flip, plan_of, text_tokens, tokens_of

RULE = MaskRule(0.15)
stretches_of = st.lists(st.tuples(st.sampled_from([16, 24, 64]), st.integers(1, 9)), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """25 blocks of a document each."""
    rng = random.Random(8)
    return corpus_of(tmp_path_factory.mktemp("small"), [sentences(rng, rng.choice([3, 10, 40])) for _ in range(25)])


@pytest.fixture(scope="module")
def plan(small: Index, tokenizer: Tokenizer) -> DataPlan:
    return plan_of([small], tokenizer, [PhasePlan(30, 32, 2)], 6)


@pytest.fixture
def damaged(small: Index, tmp_path: Path) -> Index:
    """A copy of the corpus, to be damaged."""
    return load_index(shutil.copytree(small.folder, tmp_path / "damaged"))


def take(track: Track, count: int, seq_len: int, rule: MaskRule = RULE, is_constant: bool = True) -> Rows:
    parts = [RowRange(Rows.none(seq_len), 0, 0), *track.take(count, seq_len, rule, is_constant)]
    return Rows.gather(parts)


def tokens_of_blocks(index: Index, blocks: list[int], tokenizer: Tokenizer) -> Counter[int]:
    return tokens_of([text for block in blocks for text in index.documents(block, "train")], tokenizer)


def rows_by_epoch(track: Track, stretches: list[tuple[int, int]], epochs: int) -> Iterator[tuple[int, Rows]]:
    """The rows of a track's first epochs, one by one, in stretches of (sequence length, rows)."""
    blocks = len(track.index.train_blocks)
    for seq_len, count in itertools.cycle(stretches):
        for _ in range(count):
            rows = take(track, 1, seq_len)
            epoch = track.cursor.number // blocks
            if epoch >= epochs:
                return
            yield epoch, rows


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7), stretches_of)
def test_every_epoch_holds_every_documents_tokens_once_over_all_lanes(
    small: Index, tokenizer: Tokenizer, seed: int, lanes: int, stretches: list[tuple[int, int]]
) -> None:
    """Whatever the seed, the number of lanes and the changes of the sequence length."""
    plan, epochs = plan_of([small], tokenizer, [], lanes, seed=seed), 2
    seen = [Counter[int]() for _ in range(epochs)]
    for lane in range(lanes):
        for epoch, rows in rows_by_epoch(Track(plan, 0, Cursor(lane)), stretches, epochs):
            seen[epoch] += text_tokens(rows, tokenizer)
    assert seen == [tokens_of_blocks(small, small.train_blocks.tolist(), tokenizer)] * epochs


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7), stretches_of, st.sets(st.integers(0, 24), min_size=1, max_size=20))
def test_only_damaged_blocks_are_lost_and_each_occurrence_is_reported(
    tmp_path_factory: pytest.TempPathFactory,
    small: Index,
    tokenizer: Tokenizer,
    seed: int,
    lanes: int,
    stretches: list[tuple[int, int]],
    bad: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("bad") / "corpus"
    index = load_index(shutil.copytree(small.folder, folder))
    for block in bad:
        flip(index, block)
    plan, epochs = plan_of([index], tokenizer, [], lanes, seed=seed, skips_bad=True), 2
    seen = [Counter[int]() for _ in range(epochs)]
    skips = []
    for lane in range(lanes):
        track = Track(plan, 0, Cursor(lane))
        for epoch, rows in rows_by_epoch(track, stretches, epochs):
            seen[epoch] += text_tokens(rows, tokenizer)
        skips += track.skips
    good = [block for block in range(25) if block not in bad]
    assert seen == [tokens_of_blocks(small, good, tokenizer)] * epochs
    found = [skip.number for skip in skips if skip.epoch < epochs]
    assert sorted(found) == [number for number in range(25 * epochs) if block_of(plan, 0, number) in bad]
    for skip in skips:
        block = block_of(plan, 0, skip.number)
        assert (skip.corpus, skip.epoch, skip.kind, skip.key) == (0, skip.number // 25, "checksum", "")
        assert (skip.shard, skip.offset) == (str(folder / "0.tar"), int(index.columns["offset"][block]))
        assert f"the block at offset {skip.offset}" in skip.message


def test_a_row_is_masked_anew_in_every_epoch(small: Index, tokenizer: Tokenizer) -> None:
    """Blocks of one short document give one row, the same in every epoch."""
    track = Track(plan_of([small], tokenizer, [], 1, seed=0), 0, Cursor(0))
    masks: dict[bytes, list[bytes]] = {}
    epochs = 6
    while True:
        rows = take(track, 1, 512)
        if track.cursor.number >= epochs * len(small.train_blocks):
            break
        masks.setdefault(rows.tokens.tobytes(), []).append(rows.chosen.tobytes())
    assert len(masks) == len(small.train_blocks)
    for tokens, drawn in masks.items():
        assert len(drawn) == epochs
        maskable = int(tokenizer.is_maskable[np.frombuffer(tokens, np.int32)].sum())
        count = int(RULE.count(np.asarray([maskable]))[0])
        if math.comb(maskable, count) > 1000:  # six equal draws: once in 1000^5
            assert len(set(drawn)) > 1


@settings(max_examples=20, deadline=None)
@given(stretches_of, st.integers(0, 5), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_rows_taken_together_one_by_one_or_skipped_are_the_same(
    plan: DataPlan, stretches: list[tuple[int, int]], lane: int, pieces: list[int]
) -> None:
    together, single, skipped = (Track(plan, 0, Cursor(lane)) for _ in range(3))
    for seq_len, count in stretches:
        rows = take(together, count, seq_len)
        assert len(rows) == count
        parts, left = [], count
        for piece in itertools.cycle(pieces):
            parts.append(take(single, min(piece, left), seq_len))
            left -= len(parts[-1])
            if not left:
                break
        assert digest_of(Rows.concatenate(parts)) == digest_of(rows)
        skipped.skip(count, seq_len)
        assert together.cursor == single.cursor == skipped.cursor


@settings(max_examples=20, deadline=None)
@given(stretches_of, st.integers(0, 5), st.sampled_from(["token", "whole_word", "span"]), st.booleans())
def test_a_block_masked_at_once_is_the_block_masked_run_by_run(
    plan: DataPlan, stretches: list[tuple[int, int]], lane: int, unit: str, is_bernoulli: bool
) -> None:
    rule = MaskRule(0.2, unit=unit, draw="bernoulli" if is_bernoulli else "exact")  # type: ignore[arg-type]
    one, other = Track(plan, 0, Cursor(lane)), Track(plan, 0, Cursor(lane))
    for seq_len, count in stretches:
        assert digest_of(take(one, count, seq_len, rule, True)) == digest_of(take(other, count, seq_len, rule, False))
    assert one.cursor == other.cursor


def test_a_rule_that_changes_inside_a_block_is_the_new_one_from_there(plan: DataPlan) -> None:
    """Also where the block was masked as a whole before: a phase with a rate of its own begins inside it."""
    rules = [MaskRule(0.15), MaskRule(0.5), MaskRule(0.15)]
    whole, single = Track(plan, 0, Cursor(0)), Track(plan, 0, Cursor(0))
    for rule in rules * 5:
        assert digest_of(take(whole, 1, 16, rule, True)) == digest_of(take(single, 1, 16, rule, False))


def test_blocks_that_are_fetched_ahead_are_the_same(plan: DataPlan) -> None:
    with ThreadPoolExecutor(4) as executor:
        ahead, plain = (Track(plan, 0, Cursor(1), used) for used in (executor, None))
        ahead.prefetch()
        for seq_len, count in ((16, 5), (64, 3), (16, 40)):
            assert digest_of(take(ahead, count, seq_len)) == digest_of(take(plain, count, seq_len))
            assert ahead.cursor == plain.cursor


def test_blocks_that_are_fetched_ahead_report_damage_in_the_same_way(plan: DataPlan, damaged: Index) -> None:
    for block in (3, 4, 11, 24):
        flip(damaged, block)
    bad = replace(plan, corpora=(damaged,), skips_bad=True)
    with ThreadPoolExecutor(4) as executor:
        ahead, plain = (Track(bad, 0, Cursor(1), used) for used in (executor, None))
        assert digest_of(take(ahead, 200, 16)) == digest_of(take(plain, 200, 16))
    assert ahead.skips == plain.skips
    assert {block_of(bad, 0, skip.number) for skip in plain.skips} == {3, 4, 11, 24}
    assert ahead.cursor == plain.cursor


def test_a_block_that_is_damaged_while_it_is_open_is_skipped_from_there(plan: DataPlan, damaged: Index) -> None:
    """Its rows until then stand; at the next sequence length it is read again, and found bad."""
    bad = replace(plan, corpora=(damaged,), skips_bad=True)
    number = next(n for n in range(25) if len(damaged.documents(block_of(bad, 0, n), "train")[0].split()) > 30)
    track, sound = Track(bad, 0, Cursor(number)), Track(plan, 0, Cursor(number))
    assert digest_of(take(track, 1, 16)) == digest_of(take(sound, 1, 16))
    assert track.cursor == Cursor(number, ((16, 1),))
    flip(damaged, block_of(bad, 0, number))
    rows = take(track, 3, 32)
    assert [skip.number for skip in track.skips] == [number]
    after = Track(bad, 0, Cursor(number + 6))
    assert digest_of(rows) == digest_of(take(after, 3, 32))  # as if it had ended there
    assert track.cursor == after.cursor

    resumed = Track(
        bad, 0, Cursor(number, ((16, 1),))
    )  # so does a run that was stopped before, also at the same length
    assert digest_of(take(resumed, 3, 32)) == digest_of(rows)
    assert resumed.skips == track.skips

    strict = Track(replace(bad, skips_bad=False), 0, Cursor(number, ((16, 1),)))
    with pytest.raises(DataFault) as fault:
        take(strict, 1, 32)
    offset = int(damaged.columns["offset"][block_of(bad, 0, number)])
    assert (fault.value.kind, fault.value.shard) == ("checksum", str(Path(damaged.folder) / "0.tar"))
    assert fault.value.offset == offset


@pytest.mark.parametrize("kind", ["missing", "truncated", "checksum"])
def test_every_block_bad_ends_with_a_reason(kind: str, plan: DataPlan, damaged: Index) -> None:
    path = Path(damaged.folder) / "0.tar"
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size) if kind == "checksum" else b"")
    bad = replace(plan, corpora=(damaged,), skips_bad=True)
    for lane in range(6):
        track = Track(bad, 0, Cursor(lane))
        with pytest.raises(UserError, match=r"has no token for training.*the last that was skipped: shard .*0\.tar"):
            take(track, 1, 16)
        assert {skip.kind for skip in track.skips} == {kind}


def test_a_corpus_without_a_token_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plan = plan_of([corpus_of(tmp_path, [" ", "\n"])], tokenizer, [PhasePlan(1, 16, 1)], 1)
    with pytest.raises(UserError, match=r"no token for training: no text to learn$"):
        rows_of_step([Lane(plan, 0, first_cursors(1)[0])], 0)


def test_blocks_without_a_token_are_skipped(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plan = plan_of([corpus_of(tmp_path, [" ", "text", "\n"])], tokenizer, [PhasePlan(5, 16, 2)], 2)
    lanes = [Lane(plan, number, cursors) for number, cursors in enumerate(first_cursors(2))]
    for step in range(5):
        rows = rows_of_step(lanes, step)
        assert len(rows) == 4
        assert tokenizer.decode(rows.tokens[0]).startswith("[CLS]")
        assert rows.starts[:, 0].all()


# Three corpora whose documents share no token, each document a row: a row says where it came from.
LETTERS = ("river mountain water", "paper number value", "quiet bright small")


@pytest.fixture(scope="module")
def three(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, ...]:
    """Of 7, 12 and 20 blocks; a document tells its number by how often each of its corpus's words stands in it."""
    corpora = []
    for name, size in zip(LETTERS, (7, 12, 20), strict=True):
        one, two, three = name.split()
        texts = [" ".join([one] * (1 + n % 3) + [two] * (n // 3 % 3) + [three] * (n // 9)) for n in range(size)]
        corpora.append(corpus_of(tmp_path_factory.mktemp("three"), texts))
    assert max(len(ids) for index in corpora for b in index.train_blocks
               for ids in tokenizer.encode(index.documents(int(b), "train"))) <= 14  # fmt: skip
    return tuple(corpora)


def documents_in(rows: Rows, corpora: tuple[Index, ...], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(corpus, block) of each row."""
    known = {
        tuple(tokenizer.encode(index.documents(int(block), "train")).ids.tolist()): (number, int(block))
        for number, index in enumerate(corpora)
        for block in index.train_blocks
    }
    assert len(known) == 7 + 12 + 20
    special = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id]
    return [known[tuple(token for token in row.tolist() if token not in special)] for row in rows.tokens]


weights_of = st.tuples(*[st.sampled_from([0.0, 0.25, 1.0, 3.0])] * 3).filter(any)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5), weights_of), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_mixed_lanes_read_each_corpus_in_its_own_order_and_by_its_own_epochs(
    three: tuple[Index, ...],
    tokenizer: Tokenizer,
    phases: list[tuple[int, int, tuple[float, ...]]],
    lanes: int,
    seed: int,
) -> None:
    """Every document as often as the weights of the phases say, in the order of its corpus alone."""
    planned = [PhasePlan(steps, 16, rows, weights) for steps, rows, weights in phases]
    plan = plan_of(three, tokenizer, planned, lanes, seed=seed)
    for number in range(lanes):
        lane = Lane(plan, number, first_cursors(lanes, 3)[number])
        read = documents_in(all_rows(lane), three, tokenizer)
        chosen = [
            int(corpus)
            for steps, rows, weights in phases
            for corpus in corpus_of_rows(weights, lanes, number, 0, steps * rows)
        ]
        assert [corpus for corpus, _ in read] == chosen
        for corpus, index in enumerate(three):
            blocks = [block for of, block in read if of == corpus]
            counted = sum(
                int(rows_of_corpora(weights, lanes, number, np.asarray([steps * rows]))[corpus, 0])
                for steps, rows, weights in phases
            )
            assert len(blocks) == counted
            numbers = [number + turn * lanes for turn in range(counted)]
            size = len(index.train_blocks)
            assert blocks == [int(index.train_blocks[block_at(seed, index.digest, q, size)[1]]) for q in numbers]


def all_rows(lane: Lane) -> Rows:
    return Rows.concatenate([rows_of_step([lane], step) for step in range(lane.plan.total_steps)])


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 23), st.integers(0, 2))
def test_a_lane_resumes_from_its_cursors_over_epochs_lengths_and_weights(
    three: tuple[Index, ...], tokenizer: Tokenizer, step: int, number: int
) -> None:
    phases = [
        PhasePlan(8, 16, 4, (1.0, 2.0, 0.0)),
        PhasePlan(8, 24, 3, (0.0, 1.0, 1.0)),
        PhasePlan(8, 16, 5, (1, 1, 1)),
    ]
    plan = plan_of(three, tokenizer, phases, 3)
    whole, skipped = (Lane(plan, number, first_cursors(3, 3)[number]) for _ in range(2))
    for before in range(step):
        rows_of_step([whole], before)
        skipped.skip(plan.step_at(before))
    assert skipped.cursors == whole.cursors
    stored = json.loads(json.dumps([cursor.to_json() for cursor in whole.cursors]))
    resumed = Lane(plan, number, tuple(map(Cursor.from_json, stored)))
    for after in range(step, 24):
        assert digest_of(rows_of_step([resumed], after)) == digest_of(rows_of_step([whole], after))
        assert resumed.cursors == whole.cursors


def test_skips_of_a_mixed_lane_name_their_corpus_and_are_reported_once(
    three: tuple[Index, ...], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    copies = [load_index(shutil.copytree(index.folder, tmp_path / str(n))) for n, index in enumerate(three)]
    flip(copies[0], 2)
    flip(copies[2], 5)
    plan = plan_of(copies, tokenizer, [PhasePlan(60, 16, 1, (1.0, 1.0, 1.0))], 1, skips_bad=True)
    lane = Lane(plan, 0, first_cursors(1, 3)[0])
    told = []
    for step in range(60):
        assert len(rows_of_step([lane], step)) == 1
        told += lane.skipped()
    assert lane.skipped() == []
    assert len({(skip.corpus, skip.number) for skip in told}) == len(told)
    assert {(skip.corpus, block_of(plan, skip.corpus, skip.number)) for skip in told} == {(0, 2), (2, 5)}


def test_the_rate_of_a_step_is_that_of_the_plan(small: Index, tokenizer: Tokenizer) -> None:
    phases = [PhasePlan(6, 32, 3), PhasePlan(3, 64, 2, mask_rate=0.5), PhasePlan(6, 16, 4)]
    plan = plan_of([small], tokenizer, phases, 2, masking=Masking(rate=0.4, final_rate=0.1))
    lane = Lane(plan, 1, first_cursors(2)[1])
    for step in range(plan.total_steps):
        rows = rows_of_step([lane], step)
        maskable = tokenizer.is_maskable[rows.tokens].sum(axis=1)
        assert rows.chosen.sum(axis=1).tolist() == plan.rule_at(step).count(maskable).tolist()
