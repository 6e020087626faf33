"""The rows of the speedrun's table, and which result belongs to which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from speedrun.records import Record, keep_result, key_of, read_records, read_results, recipe_of

from maskloom.errors import UserError

RECORD = Record("first", "nothing", "configs/quickstart.yaml")


def test_every_record_can_be_loaded_and_is_evaluated_alike() -> None:
    for record in read_records():
        evaluation = record.loaded().evaluation
        assert (evaluation.seq_len, evaluation.mask_rate) == (64, 0.15)
        assert record.loaded().seed == 0  # so that seeds are the command's


def test_a_key_holds_all_that_decides_a_result(data: Path) -> None:
    key = key_of(RECORD, data, 0, 2)
    assert key_of(replace(RECORD, name="renamed", change="in other words"), data, 0, 2) == key
    others = {
        key_of(RECORD, data, 1, 2),
        key_of(RECORD, data, 0, 1),
        key_of(replace(RECORD, overrides=("optimizer.lr=1e-3",)), data, 0, 2),
    }
    (data / "shards" / "index.json").write_text("another corpus")
    others.add(key_of(RECORD, data, 0, 2))
    assert len(others | {key}) == 5


def test_the_folder_of_a_run_does_not_decide_it(data: Path) -> None:
    elsewhere = replace(RECORD, overrides=("run_dir=elsewhere",))
    assert key_of(elsewhere, data, 0, 2) == key_of(RECORD, data, 0, 2)


def test_how_text_is_read_is_part_of_a_recipe() -> None:
    """It costs CPU-seconds, so it decides whether a training is a record."""
    assert recipe_of(replace(RECORD, overrides=("data.train=elsewhere", "seed=7"))) == recipe_of(RECORD)
    assert recipe_of(replace(RECORD, overrides=("data.workers=3",))) != recipe_of(RECORD)


def test_results_are_kept_beside_the_others(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    assert read_results(file) == {}
    keep_result(file, "a", {"loss": 4.0})
    keep_result(file, "b", {"loss": 3.0})
    keep_result(file, "a", {"loss": 3.5})
    assert read_results(file) == {"a": {"loss": 3.5}, "b": {"loss": 3.0}}


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    row = "- {name: same, change: nothing, config: configs/quickstart.yaml}\n"
    (tmp_path / "records.yaml").write_text(row * 2)
    with pytest.raises(UserError, match="two records are named same"):
        read_records(tmp_path / "records.yaml")
