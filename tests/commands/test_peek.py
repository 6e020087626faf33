"""`maskloom peek` shows the rows that training sees; its digest is one for every way of reading them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskloom.config_file import parse_config
from maskloom.data.cursors import first_cursors
from maskloom.data.plan import open_corpora
from maskloom.data.stream import Step, read_steps
from maskloom.distributed import World
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from tests.conftest import plan_for
from tests.data.corpora import corpus_of, flip

from .conftest import Command


@pytest.fixture
def config(run_config: dict, write_config: Callable[[dict], Path]) -> Path:
    return write_config(run_config)


@pytest.fixture
def steps(run_config: dict) -> list[Step]:
    """The first three steps, read by one rank."""
    config = parse_config(run_config, "run.yaml")
    plan = plan_for(config, open_corpora(config.data), load_tokenizer(config.tokenizer))
    return list(read_steps(plan, World(), first_cursors(plan.lanes), 0, 3))


def digest_of(steps: list[Step]) -> str:
    digest = hashlib.sha256()
    for step in steps:
        step.rows.update(digest)
    return digest.hexdigest()


def test_text_shows_every_token_and_what_became_of_it(
    config: Path, steps: list[Step], tokenizer: Tokenizer, succeeds: Command
) -> None:
    lines = succeeds("peek", config, "--steps", "0:2", "--rows", 12).splitlines()
    for step in steps[:2]:
        rows = step.rows
        heading, *shown = lines[:13]
        del lines[:13]
        assert heading == f"step {step.number}: 12 rows of 32, {rows.chosen.sum()} predicted tokens"
        for number, line in enumerate(shown):
            words = line.removeprefix(f"  row {number}: ").split(" ")
            padding = int((rows.tokens[number] == tokenizer.pad_id).sum())
            if padding:
                assert words.pop() == f"[PAD]*{padding}"
            assert len(words) == 32 - padding
            for slot, word in enumerate(words):
                token, given = (tokenizer.token(int(ids[number, slot])) for ids in (rows.tokens, rows.input_ids))
                if not rows.chosen[number, slot]:
                    assert word == token
                elif given == "[MASK]":
                    assert word == f"[MASK]{{{token}}}"
                else:
                    assert word == (f"{{{token}}}" if given == token else f"{{{token}>{given}}}")
    assert not lines


def test_text_shows_four_rows_of_the_first_step_by_default(config: Path, succeeds: Command) -> None:
    lines = succeeds("peek", config).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["step 0", "row 0", "row 1", "row 2", "row 3"]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_digest_is_that_of_the_rows_for_every_world(
    world: int, config: Path, steps: list[Step], succeeds: Command
) -> None:
    assert succeeds("peek", config, "--steps", "0:3", "--world", world, "--digest").strip() == digest_of(steps)


def test_the_digest_does_not_depend_on_workers(config: Path, steps: list[Step], succeeds: Command) -> None:
    printed = succeeds("peek", config, "--steps", "0:3", "--world", 2, "--workers", 2, "--digest")
    assert printed.strip() == digest_of(steps)


def test_json_says_what_the_text_says(config: Path, steps: list[Step], tokenizer: Tokenizer, succeeds: Command) -> None:
    text = succeeds("peek", config, "--steps", "0:2", "--rows", 12)
    printed = succeeds("peek", config, "--steps", "0:2", "--rows", 12, "--json")
    assert printed.count("\n") == 1
    found = json.loads(printed)
    assert found["digest"] == digest_of(steps[:2]) == succeeds("peek", config, "--steps", "0:2", "--digest").strip()
    assert found["ids"]["mask"] == tokenizer.mask_id
    lines = text.splitlines()
    for of_step, step in zip(found["steps"], steps, strict=False):
        count = of_step["predicted_tokens"]
        assert (
            lines.pop(0)
            == f"step {of_step['step']}: {of_step['rows']} rows of {of_step['seq_len']}, {count} predicted tokens"
        )
        for row in of_step["shown"]:
            number = row["row"]
            assert lines.pop(0) == f"  row {number}: {as_text(row, tokenizer)}"
            assert row["tokens"] == step.rows.tokens[number].tolist()
            begins = [slot for slot, position in enumerate(row["positions"]) if position == 0]
            assert begins == np.flatnonzero(step.rows.starts[number]).tolist()
            pieces = [piece for piece in row["pieces"] if piece >= 0]
            assert pieces == sorted(pieces)
            assert {*pieces} == {*range(len([slot for slot in begins if row["pieces"][slot] >= 0]))}
    assert not lines
    assert [step["shown"] for step in json.loads(succeeds("peek", config, "--json", "--digest"))["steps"]] == [[]]


def as_text(row: dict, tokenizer: Tokenizer) -> str:
    """A row of --json as the text form has it."""
    words = []
    for token, given, label, piece in zip(
        *(row[key] for key in ("tokens", "input_ids", "labels", "pieces")), strict=True
    ):
        assert label in (token, -100)
        if piece < 0:
            continue
        name = tokenizer.token(token)
        if label == -100:
            words.append(name)
        elif given == tokenizer.mask_id:
            words.append(f"[MASK]{{{name}}}")
        else:
            words.append(f"{{{name}}}" if given == token else f"{{{name}>{tokenizer.token(given)}}}")
    padding = row["pieces"].count(-1)
    return " ".join(words) + (f" [PAD]*{padding}" if padding else "")


def test_later_steps_are_reached_without_the_earlier_ones(config: Path, steps: list[Step], succeeds: Command) -> None:
    assert succeeds("peek", config, "--steps", "2:3", "--digest").strip() == digest_of(steps[2:])


def test_a_run_shows_what_its_configuration_shows(trained_run: Path, succeeds: Command) -> None:
    arguments = ("--steps", "7:11", "--digest")  # over the checkpoint of step 8
    later = ("--steps", "9:11", "--digest")  # from it
    config = trained_run / "config.yaml"
    assert succeeds("peek", trained_run, *arguments) == succeeds("peek", config, *arguments)
    assert succeeds("peek", trained_run, *later) == succeeds("peek", config, *later)


def test_overrides_act_before_and_after_options(config: Path, succeeds: Command) -> None:
    plain = succeeds("peek", config, "--digest")
    before = succeeds("peek", config, "seed=9", "--digest")
    after = succeeds("peek", config, "--digest", "seed=9")
    assert before == after != plain


def test_steps_beyond_the_run_are_refused(config: Path, fails: Command) -> None:
    assert "--steps 11:13: the run has 12 steps" in fails("peek", config, "--steps", "11:13")


def test_more_ranks_than_lanes_are_refused(config: Path, fails: Command) -> None:
    assert "7 ranks are more than the 6 lanes" in fails("peek", config, "--world", 7)


def test_an_unknown_key_is_named_with_the_right_one(config: Path, fails: Command) -> None:
    assert "did you mean 'seed'?" in fails("peek", config, "sede=1")


@pytest.mark.parametrize("steps", ["3", "3:3", "5:2", "a:b", "-1:2"])
def test_what_is_not_a_range_is_wrong_usage(steps: str, config: Path, succeeds: Command) -> None:
    with pytest.raises(SystemExit, match="2"):
        succeeds("peek", config, f"--steps={steps}")


def test_a_run_whose_corpus_changed_is_refused(
    trained_run: Path, documents: list[str], tmp_path: Path, succeeds: Command, fails: Command
) -> None:
    (tmp_path / "other.txt").write_text("\n\n".join(documents[:50]))
    succeeds("shards", tmp_path / "other.txt", tmp_path / "other", "--blank-line", "--processes", 1)
    message = fails("peek", trained_run, f"data.train={tmp_path / 'other'}", "--steps", "9:10")
    assert "corpus 0:" in message
    assert "does not fit this run" in message


HOSTILE = {
    "WDS_REWRITE": "tar=nothing",
    "WDS_CACHE": "/nowhere",
    "WDS_CACHE_SIZE": "1",
    "WDS_VERBOSE_CACHE": "1",
    "WDS_SECURE": "1",
    "WDS_SEED": "99",
    "WDS_SHOW_SEED": "1",
    "WDS_PYTORCH_WEIGHTS_ONLY": "1",
    "GOPEN_REWRITE": "/tmp=/nowhere;.tar=.none",
    "GOPEN_BUFFER": "1",
    "GOPEN_VERBOSE": "1",
    "USE_AIS_FOR": "file:http:s3",
    "WORKER": "3",
    "NUM_WORKERS": "7",
    "PYTHONHASHSEED": "77",
}


def test_variables_that_webdataset_obeys_change_nothing(
    config: Path, steps: list[Step], maskloom: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    arguments = ("peek", config, "--steps", "0:3", "--world", 2, "--digest")
    done = maskloom(*arguments, env={**os.environ, **HOSTILE})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest_of(steps)


def test_skipped_blocks_are_the_same_for_every_world(
    run_config: dict,
    documents: list[str],
    tmp_path: Path,
    write_config: Callable[[dict], Path],
    succeeds: Command,
    fails: Command,
) -> None:
    index = corpus_of(tmp_path / "corpus", documents[:60], 3)
    for block in (3, 20, 41, 42):
        flip(index, block)
    run_config["data"] |= {"train": index.folder, "on_bad_data": "skip"}
    config = write_config(run_config)
    printed = {succeeds("peek", config, "--steps", "0:6", "--world", world, "--digest") for world in (1, 5)}
    assert len(printed) == 1
    message = fails("peek", config, "--steps", "0:12", "--digest", "data.on_bad_data=raise")
    assert ".tar: the block at offset" in message


def test_several_corpora_are_mixed(
    run_config: dict,
    corpus_dir: Path,
    documents: list[str],
    tmp_path: Path,
    write_config: Callable[[dict], Path],
    succeeds: Command,
) -> None:
    other = corpus_of(tmp_path / "other", ["river " * 20] * 40)
    run_config["data"]["train"] = [{"path": str(corpus_dir), "weight": 1.0}, {"path": other.folder, "weight": 3.0}]
    config = write_config(run_config)
    digests = {succeeds("peek", config, "--steps", "3:9", "--world", world, "--digest") for world in (1, 2, 3)}
    assert len(digests) == 1
    lines = succeeds("peek", config, "--steps", "0:12", "--rows", 12).splitlines()
    rows = [line for line in lines if "row " in line]
    mixed = sum("mountain" not in line and line.count("river") >= 15 for line in rows)
    assert abs(mixed - 12 * 12 * 3 / 4) <= 1  # all lanes together are within a row of their share


def is_inside_of_a_word(before: str, token: str) -> bool:
    """Whether two tokens surely are of one word: letters without a sign for a blank between them."""
    return token.isascii() and token.isalpha() and before[-1:].isascii() and before[-1:].isalpha()


@pytest.mark.parametrize(("kind", "size"), [("byte-bpe", 320), ("unigram", 60)])
def test_every_kind_masks_whole_words_and_spans_from_text_and_from_token_shards(
    kind: str,
    size: int,
    corpus_dir: Path,
    run_config: dict,
    write_config: Callable[[dict], Path],
    tmp_path: Path,
    succeeds: Command,
) -> None:
    folder = tmp_path / "tokenizer"
    succeeds("tokenizer", corpus_dir, folder, "--kind", kind, "--vocab-size", size)
    succeeds("shards", corpus_dir, tmp_path / "tokens", "--tokenizer", folder, "--processes", 1)
    tokenizer, checked = load_tokenizer(folder), 0
    assert tokenizer.kind == kind
    for unit in ("whole_word", "span"):
        tree = run_config | {"tokenizer": str(folder), "masking": {"unit": unit, "rate": 0.3}}
        digest = succeeds("peek", write_config(tree), "--steps", "0:3", "--digest")
        from_tokens = tree | {"data": tree["data"] | {"train": str(tmp_path / "tokens")}}
        assert succeeds("peek", write_config(from_tokens), "--steps", "0:3", "--digest", "--world", 2) == digest
        config = parse_config(tree, "run.yaml")
        plan = plan_for(config, open_corpora(config.data), tokenizer)
        read = list(read_steps(plan, World(), first_cursors(plan.lanes), 0, 3))
        assert digest.strip() == digest_of(read)
        assert "<mask>{" in succeeds("peek", write_config(tree), "--steps", "0:1", "--rows", 12)
        for step in read:
            assert step.rows.chosen.any()
            for row, chosen in zip(step.rows.tokens.tolist(), step.rows.chosen.tolist(), strict=True):
                for place in range(1, len(row)):
                    if is_inside_of_a_word(tokenizer.token(row[place - 1]), tokenizer.token(row[place])):
                        assert chosen[place] == chosen[place - 1]
                        checked += 1
    assert checked > 100
