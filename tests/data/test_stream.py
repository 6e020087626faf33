from __future__ import annotations

import hashlib
import itertools
import json
import math
import multiprocessing
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import parse_config
from maskloom.data import stream
from maskloom.data.index import Index, index_shard, load_index, write_index
from maskloom.data.masking import MaskRule
from maskloom.data.order import Cursor, first_cursors
from maskloom.data.stream import DataPlan, Lane, Rows, held_out_rows, read_steps, skip_steps
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.tokenizer import Tokenizer
from tests.conftest import sentences

multiprocessing.set_forkserver_preload([stream.__name__])

LANES = 6
PHASES = ((6, 16, 2), (5, 64, 1), (7, 16, 3), (4, 32, 2))  # steps, sequence length, rows a lane and step
STEPS = sum(steps for steps, _, _ in PHASES)


def corpus_of(folder: Path, documents: list[str]) -> Index:
    """A corpus with every document in a block of its own."""
    with webdataset.TarWriter(str(folder / "0.tar"), mtime=0) as tar:
        for number, text in enumerate(documents):
            tar.write({"__key__": f"{number:04d}", "txt": text})
    return write_index(
        folder, [index_shard(folder / "0.tar", 1, "text", "train")], text_key="text", block_bytes=1, threshold=0
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """25 blocks: the steps of `PHASES` cross several epochs of them."""
    rng = random.Random(8)
    return corpus_of(tmp_path_factory.mktemp("small"), [sentences(rng, rng.choice([3, 10, 40])) for _ in range(25)])


@pytest.fixture(scope="module")
def plan(small: Index, tokenizer: Tokenizer) -> DataPlan:
    return DataPlan(small, tokenizer, 5, LANES, PHASES, MaskRule(0.15))


def digest_of(rows: Rows) -> str:
    digest = hashlib.sha256()
    rows.update(digest)
    return digest.hexdigest()


def global_steps(
    plan: DataPlan, size: int, cursors: list[Cursor], first: int = 0, last: int | None = None, workers: int = 0
) -> Iterator[tuple[str, list[Cursor]]]:
    """Digest of the global batch and where all lanes stand after it, for every step that `size` ranks read together."""
    ranks = [read_steps(plan, World(rank, size), cursors, first, last, workers) for rank in range(size)]
    for number, parts in enumerate(zip(*ranks, strict=True), start=first):
        assert {part.number for part in parts} == {number}
        after = {lane: cursor for part in parts for lane, cursor in part.cursors.items()}
        rows = Rows.concatenate([part.rows for part in parts])
        yield digest_of(rows), [after[lane] for lane in range(plan.lanes)]


@pytest.fixture(scope="module")
def alone(plan: DataPlan) -> list[tuple[str, list[Cursor]]]:
    """What one rank without reader processes reads from the first step to the last."""
    return list(global_steps(plan, 1, first_cursors(LANES)))


def text_tokens(rows: Rows, tokenizer: Tokenizer) -> Counter[int]:
    tokens = rows.tokens.reshape(-1)
    added = np.isin(tokens, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id])
    return Counter(tokens[~added].tolist())


def tokens_of(documents: list[str], tokenizer: Tokenizer) -> Counter[int]:
    return Counter(np.concatenate(tokenizer.encode(documents)).tolist())


def test_the_run_used_here_crosses_epochs_and_lengths(alone: list[tuple[str, list[Cursor]]], small: Index) -> None:
    cursors = [cursor for _, after in alone for cursor in after]
    assert max(cursor.number for cursor in cursors) >= 2 * len(small.train_blocks)
    assert any(len(cursor.reads) > 1 for cursor in cursors)
    assert len({digest for digest, _ in alone}) == len(alone) == STEPS


@pytest.mark.parametrize("size", range(2, LANES + 1))
def test_every_number_of_ranks_reads_the_same_global_batches(
    plan: DataPlan, alone: list[tuple[str, list[Cursor]]], size: int
) -> None:
    assert list(global_steps(plan, size, first_cursors(LANES))) == alone


@pytest.mark.parametrize(("size", "workers"), [(1, 2), (2, 1)])
def test_reader_processes_change_nothing_and_what_they_read_ahead_is_not_counted(
    plan: DataPlan, alone: list[tuple[str, list[Cursor]]], size: int, workers: int
) -> None:
    steps = global_steps(plan, size, first_cursors(LANES), workers=workers)
    assert list(itertools.islice(steps, 13)) == alone[:13]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, STEPS), st.integers(1, LANES))
def test_a_run_resumed_anywhere_at_any_world_size_goes_on_exactly(
    plan: DataPlan, alone: list[tuple[str, list[Cursor]]], step: int, size: int
) -> None:
    before = alone[step - 1][1] if step else first_cursors(LANES)
    stored = json.loads(json.dumps([cursor.to_json() for cursor in before]))
    cursors = [Cursor.from_json(items) for items in stored]
    last = min(step + 4, plan.total_steps)
    assert list(global_steps(plan, size, cursors, step, last)) == alone[step:last]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, STEPS), st.integers(0, STEPS))
def test_skipping_steps_stands_where_reading_them_stands(
    plan: DataPlan, alone: list[tuple[str, list[Cursor]]], first: int, last: int
) -> None:
    first, last = min(first, last), max(first, last)
    places = [first_cursors(LANES), *(after for _, after in alone)]
    assert skip_steps(plan, places[first], first, last) == places[last]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 7),
    st.lists(st.tuples(st.sampled_from([16, 24, 64]), st.integers(1, 9)), min_size=1, max_size=5),
)
def test_every_epoch_holds_every_documents_tokens_once_over_all_lanes(
    small: Index, tokenizer: Tokenizer, seed: int, lanes: int, stretches: list[tuple[int, int]]
) -> None:
    """Whatever the seed, the number of lanes and the changes of the sequence length."""
    plan = DataPlan(small, tokenizer, seed, lanes, PHASES, MaskRule(0.15))
    blocks, epochs = len(small.train_blocks), 2
    seen = [Counter[int]() for _ in range(epochs)]
    for cursor in first_cursors(lanes):
        lane = Lane(plan, cursor)
        for seq_len, count in itertools.cycle(stretches):
            for _ in range(count):
                rows = lane.take(1, seq_len)
                epoch = lane.cursor.number // blocks
                if epoch < epochs:
                    seen[epoch] += text_tokens(rows, tokenizer)
            if epoch >= epochs:
                break
    expected = tokens_of(
        [text for block in small.train_blocks for text in small.documents(int(block), "train")], tokenizer
    )
    assert seen == [expected] * epochs


def test_a_row_is_masked_anew_in_every_epoch(small: Index, tokenizer: Tokenizer) -> None:
    """Blocks of one short document give one row, the same in every epoch."""
    plan = DataPlan(small, tokenizer, 0, 1, PHASES, MaskRule(0.15))
    lane = Lane(plan, Cursor(0))
    masks: dict[bytes, list[bytes]] = {}
    epochs = 6
    while True:
        rows = lane.take(1, 512)
        if lane.cursor.number >= epochs * len(small.train_blocks):
            break
        masks.setdefault(rows.tokens.tobytes(), []).append(rows.chosen.tobytes())
    assert len(masks) == len(small.train_blocks)
    for tokens, drawn in masks.items():
        assert len(drawn) == epochs
        maskable = int(tokenizer.is_maskable[np.frombuffer(tokens, np.int32)].sum())
        count = int(plan.rule.count(np.asarray([maskable]))[0])
        if math.comb(maskable, count) > 1000:  # six equal draws: once in 1000^5
            assert len(set(drawn)) > 1


def test_rows_taken_together_or_one_by_one_are_the_same(plan: DataPlan) -> None:
    together, single = Lane(plan, Cursor(2)), Lane(plan, Cursor(2))
    rows = together.take(40, 32)
    assert digest_of(rows) == digest_of(Rows.concatenate([single.take(1, 32) for _ in range(40)]))
    assert together.cursor == single.cursor


@pytest.mark.parametrize("change", [{"seed": 6}, {"rule": MaskRule(0.2)}])
def test_another_seed_or_rate_gives_other_batches(
    plan: DataPlan, alone: list[tuple[str, list[Cursor]]], change: dict[str, Any]
) -> None:
    other = next(global_steps(replace(plan, **change), 1, first_cursors(LANES)))
    assert other[0] != alone[0][0]


def test_a_corpus_of_three_documents_goes_on_for_ever(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """More lanes than blocks: every rank has its batches all the same, and each document comes round equally often."""
    documents = ["one river", "two mountains and a stone", "three"]
    plan = DataPlan(corpus_of(tmp_path, documents), tokenizer, 0, 4, ((30, 16, 1),), MaskRule(0.5))
    single = list(global_steps(plan, 1, first_cursors(4)))
    assert list(global_steps(plan, 3, first_cursors(4))) == single
    assert len(single) == 30
    seen: Counter[int] = Counter()
    for step in read_steps(plan, World(), first_cursors(4), 0):
        seen += text_tokens(step.rows, tokenizer)
    once = tokens_of(documents, tokenizer)
    epochs = 4 * 30 // 3  # a row is a document here
    assert seen == Counter({token: count * epochs for token, count in once.items()})


def test_a_corpus_without_a_token_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plan = DataPlan(corpus_of(tmp_path, [" ", "\n"]), tokenizer, 0, 1, ((1, 16, 1),), MaskRule(0.15))
    with pytest.raises(UserError, match="no token for training"):
        next(read_steps(plan, World(), first_cursors(1), 0))


def test_blocks_without_a_token_are_passed_over(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plan = DataPlan(corpus_of(tmp_path, [" ", "text", "\n"]), tokenizer, 0, 2, ((5, 16, 2),), MaskRule(0.15))
    for step in read_steps(plan, World(), first_cursors(2), 0):
        assert tokenizer.decode(step.rows.tokens[0]).startswith("[CLS]")
        assert step.rows.starts[:, 0].all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_block_stops_the_run_with_its_name(
    small: Index, plan: DataPlan, tmp_path: Path, workers: int
) -> None:
    """From whichever process met it; every step that was given before is right."""
    folder = tmp_path / "damaged"
    shutil.copytree(small.folder, folder)
    index = load_index(folder)
    data = bytearray((folder / "0.tar").read_bytes())
    number = 20
    offset = int(index.columns["offset"][number])
    data[offset + 600] ^= 1
    (folder / "0.tar").write_bytes(data)
    steps = global_steps(replace(plan, index=index), 1, first_cursors(LANES), workers=workers)
    good = global_steps(plan, 1, first_cursors(LANES))
    with pytest.raises(UserError, match=rf"0\.tar: the block at offset {offset} .*crc32"):
        for one, other in zip(steps, good, strict=True):
            assert one == other


def test_more_ranks_than_lanes_are_refused(plan: DataPlan) -> None:
    with pytest.raises(UserError, match=r"7 ranks are more than the 6 lanes .* at most 6 ranks, or set data\.lanes"):
        next(read_steps(plan, World(0, 7), first_cursors(LANES), 0))


def test_a_plan_says_length_and_rows_of_every_step(plan: DataPlan) -> None:
    said = [plan.at(step) for step in range(plan.total_steps)]
    assert said == [(seq_len, rows) for steps, seq_len, rows in PHASES for _ in range(steps)]
    with pytest.raises(IndexError):
        plan.at(plan.total_steps)


@pytest.mark.parametrize("lanes", [None, 1, 3])
def test_a_plan_follows_the_configuration(small: Index, tokenizer: Tokenizer, lanes: int | None) -> None:
    config = parse_config(
        {
            "run_dir": "run",
            "tokenizer": "tok",
            "seed": 9,
            "data": {"train": "corpus", "lanes": lanes},
            "phases": [{"steps": 2, "seq_len": 32, "global_batch_rows": 6}, {"steps": 3, "global_batch_rows": 9}],
            "masking": {"rate": 0.3, "mask_share": 0.5, "random_share": 0.2},
        },
        "here",
    )
    plan = DataPlan.of(config, small, tokenizer)
    expected = lanes or 1  # 25 blocks allow one lane by default: a lane has at least sixteen
    assert (plan.lanes, plan.seed, plan.rule) == (expected, 9, MaskRule(0.3, 0.5, 0.2))
    assert plan.phases == ((2, 32, 6 // expected), (3, 128, 9 // expected))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_held_out_rows_are_every_held_out_document_once(index: Index, tokenizer: Tokenizer, size: int) -> None:
    rule = MaskRule(0.15)
    one = {digest_of(rows) for rows in held_out_rows(index, tokenizer, 64, rule, World())}
    parts = [rows for rank in range(size) for rows in held_out_rows(index, tokenizer, 64, rule, World(rank, size))]
    assert {digest_of(rows) for rows in parts} == one  # the same masks whoever reads them
    documents = [text for block in index.held_out_blocks for text in index.documents(int(block), "validation")]
    assert documents
    assert sum((text_tokens(rows, tokenizer) for rows in parts), Counter()) == tokens_of(documents, tokenizer)
    assert all(rows.chosen.any() for rows in parts)


def test_rows_are_cut_and_joined_without_loss(plan: DataPlan) -> None:
    rows = Lane(plan, Cursor(0)).take(10, 16)
    joined = Rows.concatenate([rows.take(slice(0, 3)), rows.take(slice(3, 3)), rows.take(slice(3, 99))])
    assert len(joined) == 10
    assert digest_of(joined) == digest_of(rows)
