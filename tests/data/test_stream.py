"""The global batches of a run: one digest for every number of ranks and readers, from the start or resumed anywhere."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import Masking
from maskloom.data import stream
from maskloom.data.cursors import Cursor, LaneCursors, first_cursors
from maskloom.data.index.corpus import Index
from maskloom.data.index.indexing import index_tars
from maskloom.data.index.loading import load_index
from maskloom.data.masking import MaskRule
from maskloom.data.plan import DataPlan, Growth, PhasePlan
from maskloom.data.rows import Rows
from maskloom.data.stream import held_out_rows, read_steps, skip_steps
from maskloom.data.writing.shards import finish
from maskloom.data.writing.token_shards import tokenize_corpus
from maskloom.data.writing.work import JobPart
from maskloom.distributed import World
from maskloom.errors import DataFault, UserError
from maskloom.tokenizers.base import Tokenizer
from tests.conftest import sentences

from .corpora import (
    GlobalStep,
    block_of,
    corpus_of,
    digest_of,
    flip,
    global_steps,
    plan_of,
    text_tokens,
    tokens_of,
)

multiprocessing.set_forkserver_preload([stream.__name__])

LANES = 6
LENGTHS = ((6, 16, 2), (5, 64, 1), (7, 16, 3), (4, 32, 2))  # steps, sequence length, rows a lane and step
STEPS = sum(steps for steps, _, _ in LENGTHS)
WEIGHTS = ((0.5, 0.3, 0.2), (0.0, 1.0, 1.0), (2.0, 0.0, 1.0), (1.0, 1.0, 1.0))
KINDS = ("one corpus", "three corpora", "moving rates", "bad blocks", "growing batches")


def phases_of(weights: tuple[tuple[float, ...], ...], rates: tuple[float | None, ...] = (None,) * 4) -> list[PhasePlan]:
    return [PhasePlan(*length, weight, rate) for length, weight, rate in zip(LENGTHS, weights, rates, strict=True)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, ...]:
    """Corpora of 25, 9 and 14 blocks: the steps of a run cross several epochs of them."""
    rng = random.Random(8)
    return tuple(
        corpus_of(tmp_path_factory.mktemp("small"), [sentences(rng, rng.choice([3, 10, 40])) for _ in range(size)], 5)
        for size in (25, 9, 14)
    )


@pytest.fixture(scope="module")
def damaged(small: tuple[Index, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, ...]:
    """Copies of the first two: a flipped bit, a shard cut short in its last block but one, a shard that is gone."""
    folder = tmp_path_factory.mktemp("damaged")
    copies = [load_index(shutil.copytree(index.folder, folder / str(n))) for n, index in enumerate(small[:2])]
    flip(copies[0], 7)
    _, url, offset = copies[0].place(13)
    Path(url).write_bytes(Path(url).read_bytes()[: offset + 700])
    Path(copies[0].url(copies[0].shards[4])).unlink()
    flip(copies[1], 0)
    return tuple(copies)


BAD = {(0, 7), (0, 13), (0, 14), *((0, block) for block in range(20, 25)), (1, 0)}


@pytest.fixture(scope="module", params=KINDS)
def plan(
    request: pytest.FixtureRequest, small: tuple[Index, ...], damaged: tuple[Index, ...], tokenizer: Tokenizer
) -> DataPlan:
    match request.param:
        case "one corpus":
            return plan_of(small[:1], tokenizer, phases_of(((1.0,),) * 4), LANES)
        case "three corpora":
            return plan_of(small, tokenizer, phases_of(WEIGHTS), LANES)
        case "growing batches":
            phases = phases_of(WEIGHTS)
            phases[0] = replace(phases[0], lane_rows=5, growth=Growth(1, 4))
            phases[2] = replace(phases[2], growth=Growth(1, 6))
            return plan_of(small, tokenizer, phases, LANES)
        case "moving rates":
            masking = Masking(rate=0.4, final_rate=0.1, unit="whole_word")
            phases = phases_of(((1.0, 1.0),) * 4, (None, 0.5, None, None))
            return plan_of(small[:2], tokenizer, phases, LANES, masking=masking)
        case _:
            return plan_of(damaged, tokenizer, phases_of(((3.0, 1.0),) * 4), LANES, skips_bad=True)


@pytest.fixture(scope="module")
def one_corpus(small: tuple[Index, ...], tokenizer: Tokenizer) -> DataPlan:
    return plan_of(small[:1], tokenizer, phases_of(((1.0,),) * 4), LANES)


def start_of(plan: DataPlan) -> list[LaneCursors]:
    return first_cursors(plan.lanes, len(plan.corpora))


@pytest.fixture(scope="module")
def alone(plan: DataPlan) -> list[GlobalStep]:
    """What one rank without reader processes reads from the first step to the last."""
    return list(global_steps(plan, 1, start_of(plan)))


def test_the_runs_used_here_cross_epochs_and_lengths(plan: DataPlan, alone: list[GlobalStep]) -> None:
    cursors = [lane for step in alone for lane in step.cursors]
    for corpus, index in enumerate(plan.corpora):
        assert max(lane[corpus].number for lane in cursors) > len(index.train_blocks)
        assert any(len(lane[corpus].reads) > 1 for lane in cursors)
    assert len({step.digest for step in alone}) == len(alone) == STEPS


@pytest.mark.parametrize("size", range(2, LANES + 1))
def test_every_number_of_ranks_reads_the_same_global_batches(
    plan: DataPlan, alone: list[GlobalStep], size: int
) -> None:
    assert list(global_steps(plan, size, start_of(plan))) == alone


@pytest.mark.parametrize(("size", "workers"), [(1, 2), (2, 1)])
def test_reader_processes_change_nothing_and_what_they_read_ahead_is_not_counted(
    plan: DataPlan, alone: list[GlobalStep], size: int, workers: int
) -> None:
    steps = global_steps(plan, size, start_of(plan), workers=workers)
    assert list(itertools.islice(steps, 13)) == alone[:13]


def test_a_growing_batch_reads_the_rows_of_a_constant_one_each_once(
    small: tuple[Index, ...], tokenizer: Tokenizer
) -> None:
    """Lane by lane: 1, 1, 2, 2, 3, 4, 4 rows are the 17 rows of 17 steps, of the same corpora and with the same masks."""
    grows = PhasePlan(7, 16, 4, WEIGHTS[0], growth=Growth(1, 5))
    assert [grows.rows_at(done) for done in range(7)] == [1, 1, 2, 2, 3, 4, 4]
    sequences = []
    for phase in (grows, PhasePlan(17, 16, 1, WEIGHTS[0])):
        plan = plan_of(small, tokenizer, [phase], LANES)
        parts: list[list[Rows]] = [[] for _ in range(LANES)]
        for step in read_steps(plan, World(), start_of(plan), 0):
            rows = plan.lane_rows(step.number)
            assert len(step.rows) == LANES * rows
            for lane in range(LANES):
                parts[lane].append(step.rows.take(slice(lane * rows, (lane + 1) * rows)))
        sequences.append([digest_of(Rows.concatenate(part)) for part in parts])
    assert sequences[0] == sequences[1]


def test_more_readers_than_lanes_are_as_many_as_lanes(one_corpus: DataPlan) -> None:
    two_lanes = replace(one_corpus, lanes=2)
    expected = list(global_steps(two_lanes, 1, start_of(two_lanes), 0, 2))
    assert list(global_steps(two_lanes, 1, start_of(two_lanes), 0, 2, workers=5)) == expected


@settings(max_examples=12, deadline=None)
@given(st.integers(0, STEPS), st.integers(1, LANES))
def test_a_run_resumed_anywhere_at_any_world_size_continues_exactly(
    plan: DataPlan, alone: list[GlobalStep], step: int, size: int
) -> None:
    """Over the borders of epochs and phases, after skipped blocks, from what JSON holds."""
    before = alone[step - 1].cursors if step else start_of(plan)
    stored = json.loads(json.dumps([[cursor.to_json() for cursor in lane] for lane in before]))
    cursors = [tuple(map(Cursor.from_json, lane)) for lane in stored]
    last = min(step + 4, plan.total_steps)
    assert list(global_steps(plan, size, cursors, step, last)) == alone[step:last]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, STEPS), st.integers(0, STEPS))
def test_steps_are_skipped_without_being_read(plan: DataPlan, alone: list[GlobalStep], first: int, last: int) -> None:
    first, last = min(first, last), max(first, last)
    places = [start_of(plan), *(step.cursors for step in alone)]
    assert skip_steps(plan, places[first], first, last) == places[last]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, STEPS - 1), st.integers(1, STEPS), st.integers(1, LANES), st.sampled_from([0, 2]))
def test_lanes_jump_before_a_step_for_any_reader_and_any_start(
    plan: DataPlan, alone: list[GlobalStep], step: int, behind: int, size: int, workers: int
) -> None:
    """Behind any step of the run, over borders of phases too: the steps before are as ever."""
    jumping = replace(plan, jumps={step: alone[behind - 1].cursors})
    first = max(0, step - 2)
    whole = list(
        global_steps(
            jumping, 1, start_of(plan) if first == 0 else alone[first - 1].cursors, first, min(step + 2, STEPS)
        )
    )
    assert whole[: step - first] == alone[first:step]
    assert whole[step - first :] == list(global_steps(plan, 1, alone[behind - 1].cursors, step, min(step + 2, STEPS)))
    cursors = skip_steps(jumping, start_of(plan), 0, step)
    assert list(global_steps(jumping, size, cursors, step, min(step + 2, STEPS), workers)) == whole[step - first :]
    if step + 1 < STEPS:
        assert skip_steps(jumping, start_of(plan), 0, step + 1) == whole[step - first].cursors


@pytest.mark.parametrize("plan", ["bad blocks"], indirect=True)
def test_every_bad_occurrence_that_a_lane_skips_is_reported_in_its_step(
    plan: DataPlan, alone: list[GlobalStep], damaged: tuple[Index, ...]
) -> None:
    skips = [skip for step in alone for skip in step.skips]
    reached = [
        (corpus, number)
        for lane, cursors in enumerate(alone[-1].cursors)
        for corpus, cursor in enumerate(cursors)
        for number in range(lane, cursor.number + 1, LANES)
        if (corpus, block_of(plan, corpus, number)) in BAD
    ]
    assert sorted((skip.corpus, skip.number) for skip in skips) == sorted(reached)
    kinds = {(skip.corpus, block_of(plan, skip.corpus, skip.number)): skip.kind for skip in skips}
    wrong = {(0, 7): "checksum", (1, 0): "checksum", (0, 13): "truncated", (0, 14): "truncated"}
    assert kinds == dict.fromkeys(BAD, "missing") | wrong
    for skip in skips:
        index = damaged[skip.corpus]
        _, url, offset = index.place(block_of(plan, skip.corpus, skip.number))
        assert (skip.epoch, skip.shard, skip.offset) == (skip.number // len(index.train_blocks), url, offset)
        assert url in skip.message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_block_stops_the_run_with_its_name(
    damaged: tuple[Index, ...], one_corpus: DataPlan, workers: int
) -> None:
    """From whichever process met it; every step that was given before is right."""
    steps = global_steps(replace(one_corpus, corpora=damaged[:1]), 1, first_cursors(LANES), workers=workers)
    good = global_steps(one_corpus, 1, first_cursors(LANES))
    with pytest.raises(DataFault) as caught:
        for one, other in zip(steps, good, strict=True):
            assert one == other
    fault = caught.value
    assert (fault.shard, fault.offset) in {damaged[0].place(block)[1:] for corpus, block in BAD if corpus == 0}
    assert fault.kind in ("checksum", "truncated", "missing")
    assert fault.shard in str(fault)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_of_which_every_block_is_bad_ends_with_a_reason(
    small: tuple[Index, ...], tokenizer: Tokenizer, tmp_path: Path, workers: int
) -> None:
    copy = load_index(shutil.copytree(small[1].folder, tmp_path / "bad"))
    for shard in copy.shards:
        Path(copy.url(shard)).write_bytes(b"")
    plan = plan_of([small[0], copy], tokenizer, phases_of(((1.0, 0.1),) * 4), LANES, skips_bad=True)
    with pytest.raises(
        UserError, match="has no token for training: no text to learn; the last that was skipped: shard"
    ):
        list(global_steps(plan, 2, start_of(plan), workers=workers))


def test_a_corpus_with_weight_0_in_a_phase_is_not_opened(
    small: tuple[Index, ...], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    copy = load_index(shutil.copytree(small[1].folder, tmp_path / "bad"))
    for shard in copy.shards:
        Path(copy.url(shard)).unlink()
    plan = plan_of([small[0], copy], tokenizer, phases_of(((1.0, 0.0),) * 4), LANES)
    sound = plan_of(small[:2], tokenizer, phases_of(((1.0, 0.0),) * 4), LANES)
    assert list(global_steps(plan, 2, start_of(plan))) == list(global_steps(sound, 1, start_of(sound)))


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, seed=6),
        lambda plan: replace(plan, masking=Masking(rate=0.2)),
        lambda plan: replace(plan, lanes=3),
        lambda plan: replace(plan, masking=Masking(final_rate=0.3)),
    ],
)
def test_another_seed_rate_or_number_of_lanes_gives_other_batches(
    one_corpus: DataPlan, change: Callable[[DataPlan], DataPlan]
) -> None:
    digests = [
        next(itertools.islice(global_steps(plan, 1, start_of(plan)), 3, None)).digest
        for plan in (one_corpus, change(one_corpus))
    ]
    assert digests[0] != digests[1]


def test_a_corpus_of_three_documents_gives_rows_without_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """More lanes than blocks: every rank has its batches all the same, and each document comes round equally often."""
    documents = ["one river", "two mountains and a stone", "three"]
    plan = plan_of([corpus_of(tmp_path, documents)], tokenizer, [PhasePlan(30, 16, 1)], 4, masking=Masking(rate=0.5))
    single = list(global_steps(plan, 1, first_cursors(4)))
    assert list(global_steps(plan, 3, first_cursors(4))) == single
    assert len(single) == 30
    seen: Counter[int] = Counter()
    for step in read_steps(plan, World(), first_cursors(4), 0):
        seen += text_tokens(step.rows, tokenizer)
    once = tokens_of(documents, tokenizer)
    epochs = 4 * 30 // 3  # a row is a document here
    assert seen == Counter({token: count * epochs for token, count in once.items()})


def test_more_ranks_than_lanes_are_refused(one_corpus: DataPlan) -> None:
    with pytest.raises(UserError, match=r"7 ranks are more than the 6 lanes .* at most 6 ranks, or set data\.lanes"):
        next(read_steps(one_corpus, World(0, 7), first_cursors(LANES), 0))


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


def test_a_bad_held_out_block_is_refused_or_left_out_with_a_warning(
    index: Index, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = load_index(shutil.copytree(index.folder, tmp_path / "bad"))
    bad = int(copy.held_out_blocks[0])
    flip(copy, bad)
    rule = MaskRule(0.15)
    with pytest.raises(DataFault, match="crc32"):
        list(held_out_rows(copy, tokenizer, 64, rule, World()))
    left = [digest_of(rows) for rows in held_out_rows(copy, tokenizer, 64, rule, World(), skips_bad=True)]
    assert "left out of the evaluation: shard" in capsys.readouterr().err
    assert left == [digest_of(rows) for rows in held_out_rows(index, tokenizer, 64, rule, World())][1:]


def tokenized(index: Index, tokenizer: Tokenizer, out: Path) -> Index:
    """The token shards of a corpus."""
    tokenize_corpus(index, out, tokenizer, JobPart(), 1, lambda name, total: lambda amount: None)
    return finish(out)[0]


@pytest.fixture(scope="module", params=["splits of their own", "split by hash", "with bad documents"])
def text_and_tokens(
    request: pytest.FixtureRequest,
    index: Index,
    documents: list[str],
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Index, Index]:
    """A corpus as text and as token shards: of blocks of several documents, empty ones among them."""
    folder = tmp_path_factory.mktemp("text")
    if request.param != "splits of their own":
        lines = [json.dumps({"text": text}) for text in [*documents, "", " "]]
        if request.param == "with bad documents":
            lines[5::40] = ["{"] * len(lines[5::40])
        with webdataset.TarWriter(str(folder / "0.tar"), mtime=0) as tar:
            for number in range(0, len(lines), 9):
                tar.write({"__key__": f"{number:04d}", "jsonl": "\n".join(lines[number : number + 9]).encode()})
        skip_bad = request.param == "with bad documents"
        index = index_tars([folder / "0.tar"], folder, block_bytes=4096, fraction=0.2, skip_bad=skip_bad)
        assert (index.header["bad_documents"] > 0) is skip_bad
    return index, tokenized(index, tokenizer, folder / "tokens")


def test_token_shards_give_the_rows_of_their_text(text_and_tokens: tuple[Index, Index], tokenizer: Tokenizer) -> None:
    """Over phases and epochs, mixed with another corpus, and for validation; nothing tells the two apart but their URLs."""
    text, tokens = text_and_tokens
    assert (text.digest, text.tokenizer_fingerprint) == (tokens.digest, None)
    assert tokens.tokenizer_fingerprint == tokenizer.fingerprint
    phases = [PhasePlan(4, 32, 9, (2.0, 1.0)), PhasePlan(3, 128, 5, (1.0, 0.0)), PhasePlan(4, 64, 3, (1.0, 1.0))]
    plans = [plan_of([first, text], tokenizer, phases, LANES) for first in (text, tokens)]
    one, other = (list(global_steps(plan, 1, start_of(plan))) for plan in plans)
    assert one == other
    rule = MaskRule(0.15)
    one, other = (
        [digest_of(rows) for rows in held_out_rows(index, tokenizer, 64, rule, World())] for index in (text, tokens)
    )
    assert one
    assert one == other


def test_a_run_changes_from_text_to_token_shards_and_back(
    text_and_tokens: tuple[Index, Index], tokenizer: Tokenizer
) -> None:
    plans = [plan_of([index], tokenizer, [PhasePlan(12, 32, 9)], LANES) for index in text_and_tokens]
    whole = list(global_steps(plans[0], 1, start_of(plans[0])))
    cursors, found = start_of(plans[0]), []
    for first in range(0, 12, 3):
        found += global_steps(plans[first // 3 % 2], 2, cursors, first, first + 3)
        cursors = found[-1].cursors
    assert found == whole


def test_a_damaged_token_block_is_skipped_as_its_text_would_be(
    small: tuple[Index, ...], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = load_index(shutil.copytree(small[0].folder, tmp_path / "text"))
    tokens = tokenized(text, tokenizer, tmp_path / "tokens")
    for block in (3, 12):
        flip(text, block)
        flip(tokens, block)
    phases = phases_of(((1.0,),) * 4)
    plans = [plan_of([index], tokenizer, phases, LANES, skips_bad=True) for index in (text, tokens)]
    one, other = (list(global_steps(plan, 1, start_of(plan))) for plan in plans)
    assert [step.digest for step in one] == [step.digest for step in other]
    assert [step.cursors for step in one] == [step.cursors for step in other]
    numbers = [[sorted(skip.number for skip in step.skips) for step in steps] for steps in (one, other)]
    assert numbers[0] == numbers[1]
    assert any(numbers[0])


def test_token_shards_give_no_text(small: tuple[Index, ...], tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = tokenized(small[0], tokenizer, tmp_path / "tokens")
    with pytest.raises(UserError, match="holds token shards, which have no text"):
        tokens.documents(0, "train")
