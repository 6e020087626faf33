"""What the data of a run follows from: phases, rates, capacities; the masks of the version."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models

from maskloom.config import Corpus, Data, Masking
from maskloom.config_file import parse_config
from maskloom.data.cursors import first_cursors
from maskloom.data.hashing import hash64
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.masking import MaskRule, mask_rows
from maskloom.data.plan import VERSIONS, Growth, PhasePlan, open_corpora
from maskloom.data.stream import read_steps
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from tests.conftest import plan_for, sentences

from .corpora import corpus_of, plan_of

PHASES = (PhasePlan(6, 16, 2), PhasePlan(5, 64, 1, mask_rate=0.5), PhasePlan(7, 16, 3))
STEPS = 18


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Index:
    rng = random.Random(9)
    return corpus_of(tmp_path_factory.mktemp("small"), [sentences(rng, rng.choice([3, 10, 40])) for _ in range(25)])


def config_of(**more: Any) -> Any:
    tree = {
        "run_dir": "run",
        "tokenizer": "tok",
        "seed": 9,
        "data": {"train": "corpus"},
        "phases": [{"steps": 2, "seq_len": 32, "global_batch_rows": 6}, {"steps": 3, "global_batch_rows": 9}],
    }
    return parse_config(tree | more, "here")


@pytest.mark.parametrize("lanes", [None, 1, 3])
def test_a_plan_follows_the_configuration(small: Index, tokenizer: Tokenizer, lanes: int | None) -> None:
    masking = {"rate": 0.3, "mask_share": 0.5, "random_share": 0.2}
    config = config_of(data={"train": "corpus", "lanes": lanes}, masking=masking)
    plan = plan_for(config, (small,), tokenizer)
    expected = lanes or 1  # 25 blocks allow one lane by default: a lane has at least sixteen
    assert (plan.lanes, plan.seed, plan.rule) == (expected, 9, MaskRule(0.3, 0.5, 0.2))
    assert plan.phases == (PhasePlan(2, 32, 6 // expected), PhasePlan(3, 128, 9 // expected))
    assert plan.skips_bad is False


def test_the_growth_of_a_batch_follows_the_configuration(small: Index, tokenizer: Tokenizer) -> None:
    grows = {"batch_warmup": {"from_rows": 4, "steps": 3}}
    phases = [{"steps": 9, "global_batch_rows": 12, **grows}, {"steps": 1, "global_batch_rows": 8}]
    config = config_of(data={"train": "corpus", "lanes": 2}, phases=phases)
    plan = plan_for(config, (small,), tokenizer)
    assert [phase.growth for phase in plan.phases] == [Growth(2, 3), None]
    # 2, then 4 more in three equal parts, rounded down to whole rows a lane.
    assert [plan.lane_rows(step) for step in range(10)] == [2, 3, 4, 6, 6, 6, 6, 6, 6, 4]


@pytest.mark.parametrize(("from_rows", "lanes"), [(32, 32), (16, 16), (6, 2)])
def test_the_default_lanes_divide_every_batch_that_occurs(from_rows: int, lanes: int, tokenizer: Tokenizer) -> None:
    """Of batches of 64 rows that grow from fewer, where the blocks would allow 64 lanes."""
    phases = [{"steps": 9, "global_batch_rows": 64, "batch_warmup": {"from_rows": from_rows, "steps": 8}}]
    plenty: Any = SimpleNamespace(train_blocks=range(64 * 16), check_tokenizer=lambda tokenizer: None, tokenizing=None)
    plan = plan_for(config_of(phases=phases), (plenty,), tokenizer)
    assert plan.lanes == lanes
    batches = [plan.lanes * plan.lane_rows(step) for step in range(9)]
    assert (batches[0], batches[-1]) == (from_rows, 64)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60), st.data())
def test_a_batch_grows_evenly_and_is_counted_right(first: int, more: int, steps: int, data: st.DataObject) -> None:
    phase = PhasePlan(steps + 5, 16, first + more, growth=Growth(first, steps))
    rows = [phase.rows_at(done) for done in range(phase.steps)]
    assert rows[0] == first
    assert rows[steps:] == [first + more] * 5
    assert all(0 <= after - before <= -(-more // steps) for before, after in itertools.pairwise(rows))
    done = data.draw(st.integers(0, phase.steps))
    assert phase.rows_before(done) == sum(rows[:done])


def test_weights_rates_and_skipping_follow_the_configuration(small: Index, tokenizer: Tokenizer) -> None:
    corpora = [{"path": "a", "weight": 3.0}, {"path": "b"}]
    phases = [
        {"steps": 2, "global_batch_rows": 6},
        {"steps": 3, "global_batch_rows": 6, "weights": [0.0, 1.0], "mask_rate": 0.4},
    ]
    config = config_of(data={"train": corpora, "lanes": 2, "on_bad_data": "skip"}, phases=phases)
    plan = plan_for(config, (small, small), tokenizer)
    assert [phase.weights for phase in plan.phases] == [(3.0, 1.0), (0.0, 1.0)]
    assert [phase.mask_rate for phase in plan.phases] == [None, 0.4]
    assert plan.skips_bad is True


def test_corpora_are_opened_in_the_order_given(corpus_dir: Path, small: Index) -> None:
    data = config_of(data={"train": [{"path": small.folder}, {"path": str(corpus_dir)}]}).data
    assert [index.folder for index in open_corpora(data)] == [small.folder, str(corpus_dir)]
    with pytest.raises(UserError, match="no index at"):
        open_corpora(config_of(data={"train": [{"path": small.folder}, {"path": "/nowhere"}]}).data)


def test_unknown_protected_tokens_are_refused(small: Index, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"masking\.protected: .*'rivver' \(near: 'river'\)"):
        plan_for(config_of(masking={"protected": ["rivver"]}), (small,), tokenizer)


def test_a_plan_says_phase_and_place_of_every_step(small: Index, tokenizer: Tokenizer) -> None:
    plan = plan_of([small], tokenizer, PHASES, 1)
    places = [plan.place(step) for step in range(plan.total_steps)]
    assert places == [(number, done) for number, phase in enumerate(PHASES) for done in range(phase.steps)]
    assert [plan.phase_of(step) for step in range(STEPS)] == [number for number, _ in places]
    for step, (number, done) in enumerate(places):
        step_plan = plan.step_at(step)
        assert (step_plan.phase, step_plan.done, step_plan.rule) == (PHASES[number], done, plan.rule_at(step))
    with pytest.raises(IndexError):
        plan.place(plan.total_steps)


def test_the_rate_goes_from_the_first_step_to_the_last_but_for_phases_with_their_own(
    small: Index, tokenizer: Tokenizer
) -> None:
    plan = plan_of([small], tokenizer, PHASES, 1, masking=Masking(rate=0.4, final_rate=0.1))
    rates = [plan.rule_at(step).rate for step in range(STEPS)]
    line = np.linspace(0.4, 0.1, STEPS)
    assert rates[:6] == pytest.approx(line[:6])
    assert rates[6:11] == [0.5] * 5
    assert rates[11:] == pytest.approx(line[11:])
    assert (rates[0], rates[-1]) == (0.4, pytest.approx(0.1, rel=1e-15))
    assert [plan.step_at(step).is_constant for step in range(STEPS)] == [False] * 6 + [True] * 5 + [False] * 7
    steady = plan_of([small], tokenizer, PHASES, 1)
    assert [steady.rule_at(step).rate for step in range(STEPS)] == [0.15] * 6 + [0.5] * 5 + [0.15] * 7
    assert all(steady.step_at(step).is_constant for step in range(STEPS))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.01, 1.0),
    st.none() | st.floats(0.01, 1.0),
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from([16, 64, 128]), st.none() | st.floats(0.01, 1)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["token", "whole_word", "span"]),
    st.sampled_from(["exact", "bernoulli"]),
)
def test_the_capacity_of_a_phase_is_that_of_its_richest_step(
    small: Index,
    tokenizer: Tokenizer,
    rate: float,
    final: float | None,
    phases: list[tuple[int, int, float | None]],
    unit: Any,
    draw: Any,
) -> None:
    planned = [PhasePlan(steps, seq_len, 1, mask_rate=own) for steps, seq_len, own in phases]
    masking = Masking(rate=rate, final_rate=final, unit=unit, draw=draw)
    plan = plan_of([small], tokenizer, planned, 1, masking=masking)
    for number, phase in enumerate(planned):
        steps = [step for step in range(plan.total_steps) if plan.phase_of(step) == number]
        assert plan.capacity(number) == max(plan.rule_at(step).most(phase.seq_len) for step in steps)


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_no_row_of_a_run_has_more_predicted_tokens_than_its_phases_capacity(
    small: Index, tokenizer: Tokenizer, unit: Any, draw: Any
) -> None:
    masking = Masking(rate=0.5, final_rate=0.1, unit=unit, draw=draw)
    plan = plan_of([small], tokenizer, PHASES, 6, masking=masking)
    predicted = []
    for step in read_steps(plan, World(), first_cursors(6), 0):
        rule = plan.rule_at(step.number)
        counts = step.rows.chosen.sum(axis=1)
        maskable = tokenizer.is_maskable[step.rows.tokens].sum(axis=1)
        assert counts.max() <= rule.most(step.rows.tokens.shape[1]) <= plan.capacity(plan.phase_of(step.number))
        if draw == "exact":
            assert (counts <= rule.count(maskable)).all()
            if unit == "token":
                assert (counts == rule.count(maskable)).all()
        predicted.append(counts.sum() / maskable.sum())
    # The shares follow the rates: the first third is richer than the last, and the phase of 0.5 richer than both.
    first, own, last = (np.mean(predicted[begin:end]) for begin, end in itertools.pairwise([0, 6, 11, 18]))
    assert own > last
    assert first > last


def test_a_pickled_plan_reads_the_same(small: Index, tokenizer: Tokenizer) -> None:
    plan = plan_of([small], tokenizer, PHASES, 2, masking=Masking(final_rate=0.3))
    copy = pickle.loads(pickle.dumps(plan))
    assert (copy.phases, copy.lanes, copy.masking, copy.rule) == (plan.phases, plan.lanes, plan.masking, plan.rule)
    one, other = (next(read_steps(each, World(), first_cursors(2), 0)) for each in (plan, copy))
    assert np.array_equal(one.rows.input_ids, other.rows.input_ids)
    assert len(pickle.dumps(plan)) < 100_000  # the columns of the index do not travel


def test_token_shards_of_another_tokenizer_are_refused(small: Index, tokenizer: Tokenizer) -> None:
    small.header["tokens"] = {"tokenizer": "f" * 64}
    try:
        with pytest.raises(UserError, match=re.escape(small.folder) + " were made with another tokenizer .*ffffffff"):
            plan_for(config_of(), (small,), tokenizer)
    finally:
        small.header["tokens"] = None


@pytest.fixture(scope="module")
def token_shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Index]:
    """A corpus of text under 0, and its token shards by each version of tokenizing. It has a stretch that is cut otherwise."""
    folder = tmp_path_factory.mktemp("versions")
    text = "the river " + "mountain,stone" * 6000 + " x"
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"{text} {number}"}) + "\n" for number in range(3)))
    options = Options(val_fraction=0, longest_document_bytes=1 << 20)
    made = {0: write_shards([str(folder / "text.jsonl")], folder / "text", options)[0]}
    for version in (1, 2):
        tokens = tokenizer.as_of(version)
        made[version] = write_shards([str(folder / "text.jsonl")], folder / f"{version}", options, tokenizer=tokens)[0]
    return made


def test_token_shards_say_by_which_version_of_tokenizing(token_shards: dict[int, Index], tokenizer: Tokenizer) -> None:
    assert [index.tokenizing for index in token_shards.values()] == [None, 1, 2]
    headers = [json.loads((Path(index.folder) / "index.json").read_text()) for index in token_shards.values()]
    assert headers[1]["tokens"] == {"tokenizer": tokenizer.fingerprint}  # as those before the second version
    assert headers[2]["tokens"] == {"tokenizer": tokenizer.fingerprint, "tokenizing": 2}
    assert [load_index(index.folder).tokenizing for index in token_shards.values()] == [None, 1, 2]
    text = token_shards[0]
    for version in (1, 2):
        ours = text.tokenized(0, "train", tokenizer.as_of(version)).ids
        assert np.array_equal(token_shards[version].tokenized(0, "train", tokenizer).ids, ours)
    assert len({index.digest for index in token_shards.values()}) == 1


def test_a_run_reads_text_as_its_token_shards_and_its_checkpoints_do(
    token_shards: dict[int, Index], tokenizer: Tokenizer
) -> None:
    text, first, second = token_shards.values()
    for corpus, begun, expected in ((text, None, 2), (second, None, 2), (first, None, 1), (text, 1, 1), (first, 1, 1)):
        assert plan_for(config_of(), (corpus,), tokenizer, begun).tokenizer.tokenizing == expected
    for corpus, begun in ((second, 1), (first, 2)):
        with pytest.raises(UserError, match=f"were made by version {3 - begun} of tokenizing, .*by version {begun}"):
            plan_for(config_of(), (corpus,), tokenizer, begun)
    with pytest.raises(UserError, match="were made by version 2 of tokenizing"):
        plan_for(config_of(), (first, second), tokenizer)


def test_a_tokenizer_that_gave_other_ids_refuses_old_runs_and_old_token_shards(
    token_shards: dict[int, Index], tokenizer: Tokenizer
) -> None:
    made = HFTokenizer.from_str(tokenizer.definition)
    made.add_special_tokens(["[PATIENT]"])
    own = tokenizer_of_definition(made.to_str(), "with a token of their own")
    text, first, _ = token_shards.values()
    assert plan_for(config_of(), (text,), own).tokenizer.tokenizing == 2
    with pytest.raises(UserError, match="gave other ids for with a token of their own"):
        plan_for(config_of(), (text,), own, 1)
    first.header["tokens"]["tokenizer"] = own.fingerprint
    try:
        with pytest.raises(UserError, match="were made by version 1 of tokenizing"):
            plan_for(config_of(), (first,), own)
    finally:
        first.header["tokens"]["tokenizer"] = tokenizer.fingerprint


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_words_that_nothing_marks_are_refused_before_anything_is_read(unit: str, small: Index) -> None:
    made = HFTokenizer(models.BPE(vocab={token: n for n, token in enumerate([*SPECIAL_TOKENS, "a"])}, merges=[]))
    with pytest.raises(UserError, match=f"masking.unit {unit} needs a tokenizer whose tokens say where a word begins"):
        plan_for(config_of(masking={"unit": unit}), (small,), tokenizer_of_definition(made.to_str(), "bytes"))


def test_masking_is_the_one_of_its_version() -> None:
    """Of every unit and draw; words of one to three tokens, pieces of 40."""
    vocabulary = np.arange(1000)
    ids: Any = SimpleNamespace(
        is_maskable=vocabulary >= 10,
        starts_word=lambda tokens, starts: (vocabulary % 3 != 0)[tokens],
        random_ids=vocabulary[10:].astype(np.int32),
        mask_id=4,
    )
    tokens = ((np.arange(40 * 128, dtype=np.int64) * 7919) % 1000).astype(np.int32).reshape(40, 128)
    starts = np.broadcast_to(np.arange(128) % 40 == 0, tokens.shape)
    keys = hash64(23, np.arange(40, dtype=np.uint64))
    digest = hashlib.sha256()
    for unit, draw, replace_unit in itertools.product(
        ("token", "whole_word", "span"), ("exact", "bernoulli"), ("token", "unit")
    ):
        rule = MaskRule(0.15, unit=unit, draw=draw, replace_unit=replace_unit, protected=(20, 21))  # type: ignore[arg-type]
        input_ids, chosen = mask_rows(tokens, starts, keys, rule, ids)
        digest.update(input_ids.astype("<i4").tobytes() + chosen.tobytes())
    assert (VERSIONS["masking"], digest.hexdigest()) == (
        2,
        "99002e06b7eccffbd7827885b78af17e4c91f66556b3aa9685ee7edb7d9b6dab",
    ), "raise VERSIONS['masking'] where this is on purpose: runs that exist must not resume with other masks"


def test_one_corpus_under_two_names_is_refused(tmp_path: Path) -> None:
    """Everything is keyed by the digest: each of its rows would come twice, with the same masks."""
    (tmp_path / "a").mkdir()
    corpus_of(tmp_path / "a", ["one", "two"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    data = Data(train=(Corpus(path=str(tmp_path / "a")), Corpus(path=str(tmp_path / "b"))))
    with pytest.raises(UserError, match=r"/a and .*/b are the same corpus"):
        open_corpora(data)


def test_a_missing_shard_is_found_at_the_start_or_skipped_later(tmp_path: Path) -> None:
    corpus_of(tmp_path, ["one", "two"])
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UserError, match="is missing"):
        open_corpora(Data(train=str(tmp_path)))
    assert len(open_corpora(Data(train=str(tmp_path), on_bad_data="skip"))) == 1
