"""Positions: too few of them are found before a rank starts, and a checkpoint may be given more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from maskloom.config import MODELS
from maskloom.config_file import dump_config, parse_config, read_yaml
from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES, longest_piece_of
from maskloom.models.build import build_defined, build_model, save_definition
from maskloom.models.positions import position_tables, repeated
from maskloom.models.warm_start import check_init
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.resume import check_model, reconcile
from tests.models.parity import assert_is_hugging_faces, bucket, make_rows, pair

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
OLD, NEW = 40, 100
each_kind = pytest.mark.parametrize("kind", ARCHITECTURES)


def config_of(kind: str, tokenizer: Tokenizer, positions: int) -> PretrainedConfig:
    architecture = ARCHITECTURES[kind]
    dropouts = dict.fromkeys(architecture.dropouts, 0.0)
    return architecture.config(MODELS[kind](**TINY, **dropouts, max_position_embeddings=positions), tokenizer)


@pytest.fixture
def folders(tokenizer: Tokenizer, tmp_path: Path) -> dict[str, Path]:
    """A checkpoint of each architecture with few positions; every weight differs."""
    folders = {kind: tmp_path / kind for kind in ARCHITECTURES}
    for kind, folder in folders.items():
        _, theirs = pair(config_of(kind, tokenizer, OLD))
        theirs.save_pretrained(folder)
    return folders


def settings_of(kind: str, folder: Path, **more: Any) -> Any:
    section = MODELS[kind]
    return section(init=str(folder), **dict.fromkeys(section.dropouts, 0.0), **more)


def test_rows_behind_the_unused_ones_are_repeated() -> None:
    table = torch.arange(5.0)[:, None].expand(5, 3)
    assert repeated(table, 0, 12)[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert repeated(table, 2, 12)[:, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2]
    assert torch.equal(repeated(table, 2, 5), table)


@each_kind
def test_a_grown_checkpoint_computes_short_pieces_as_before(
    kind: str, folders: dict[str, Path], tokenizer: Tokenizer
) -> None:
    before, _ = build_model(settings_of(kind, folders[kind]), tokenizer, 0)
    after, line = build_model(settings_of(kind, folders[kind], max_position_embeddings=NEW), tokenizer, 0)
    most, unused = longest_piece_of(before.config), OLD - longest_piece_of(before.config)
    assert longest_piece_of(after.config) == NEW - unused
    assert f"; {NEW - unused} positions instead of {most}: " in line
    assert "\n" not in line
    lengths = [[most], [7, most - 7], [3]]
    batch = bucket(make_rows(lengths, tokenizer, seq_len=most), tokenizer)
    assert torch.equal(after.eval().masked_logits(batch), before.eval().masked_logits(batch))
    for name, weight in after.state_dict().items():
        if weight.shape == before.state_dict()[name].shape:
            assert torch.equal(weight, before.state_dict()[name]), name
        else:
            assert f"{name} is repeated" in line
            assert torch.equal(weight[:OLD], before.state_dict()[name])
            assert torch.equal(weight[OLD : OLD + most], before.state_dict()[name][unused : unused + NEW - OLD])
    assert ("no weight depends on them" in line) == (position_tables(before.config, after.config) == [])


@each_kind
def test_a_grown_checkpoint_is_hugging_faces_over_its_whole_length(
    kind: str, folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ours, _ = build_model(settings_of(kind, folders[kind], max_position_embeddings=NEW), tokenizer, 0)
    ours.save_pretrained(tmp_path / "export")
    theirs = ARCHITECTURES[kind].hf_class.from_pretrained(tmp_path / "export").eval()
    most = longest_piece_of(theirs.config)
    assert_is_hugging_faces(ours.eval(), theirs, [[most], [50, most - 50]], tokenizer, seq_len=most)
    save_definition(ours, tokenizer, tmp_path / "run")
    again = build_defined(tmp_path / "run")
    again.load_state_dict(ours.state_dict())
    assert again.config.max_position_embeddings == NEW


@each_kind
def test_it_may_be_given_beside_init_and_is_kept(
    kind: str, folders: dict[str, Path], run_config: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run_config["model"] = {"architecture": kind, "init": str(folders[kind]), "max_position_embeddings": NEW}
    config = parse_config(run_config, "run.yaml")
    again = parse_config(read_yaml(dump_config(config), "saved"), "saved")
    assert again.model == config.model
    assert again.model.given_beside_init() == {"max_position_embeddings": NEW}
    described = check_model(tmp_path, None, config.model, tokenizer, {"phases.0.seq_len": 64})
    assert described.max_position_embeddings == NEW
    del run_config["model"]["max_position_embeddings"]
    config = parse_config(run_config, "run.yaml")
    assert "max_position_embeddings" not in dump_config(config)
    with pytest.raises(UserError, match=r"phases\.0\.seq_len 64: more than .* or set model\.max_position_embeddings"):
        check_model(tmp_path, None, config.model, tokenizer, {"phases.0.seq_len": 64})


@each_kind
def test_a_grown_run_resumes_with_the_same_positions_alone(
    kind: str, folders: dict[str, Path], run_config: dict[str, Any]
) -> None:
    run_config["model"] = {"init": str(folders[kind]), "max_position_embeddings": NEW}
    started = reconcile(parse_config(run_config, "run.yaml"))
    assert started.model.architecture == kind
    run = Path(started.run_dir)
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(started))
    again = reconcile(parse_config(run_config, "run.yaml"))
    assert (again.model, again.model.given_beside_init()) == (started.model, {"max_position_embeddings": NEW})
    run_config["model"]["max_position_embeddings"] = NEW + 1
    with pytest.raises(UserError, match=rf"model\.max_position_embeddings: {NEW} in the run, {NEW + 1} now"):
        reconcile(parse_config(run_config, "run.yaml"))


def test_a_longer_row_than_grown_positions_is_refused(folders: dict[str, Path], run_config: dict[str, Any]) -> None:
    run_config["model"] = {
        "init": str(folders["bert"]),
        "max_position_embeddings": run_config["phases"][0]["seq_len"] - 1,
    }
    with pytest.raises(UserError, match=r"phases\.0\.seq_len .* is more than model\.max_position_embeddings"):
        parse_config(run_config, "run.yaml")


@each_kind
def test_fewer_are_refused(kind: str, folders: dict[str, Path], tokenizer: Tokenizer) -> None:
    said = f"model.max_position_embeddings {OLD - 1} is less than the {OLD} of model.init {folders[kind]}: leave it out"
    with pytest.raises(UserError) as error:
        check_init(str(folders[kind]), tokenizer, {}, max_position_embeddings=OLD - 1)
    assert said in str(error.value)
    with pytest.raises(UserError) as error:
        build_model(settings_of(kind, folders[kind], max_position_embeddings=OLD - 1), tokenizer, 0)
    assert said in str(error.value)
    _, line = build_model(settings_of(kind, folders[kind], max_position_embeddings=OLD), tokenizer, 0)
    assert "positions instead" not in line


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_a_description_without_a_position_is_refused(kind: str, folders: dict[str, Path], tokenizer: Tokenizer) -> None:
    file = folders[kind] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": OLD - 1}))
    said = f"max_position_embeddings {OLD}, which leaves no position for a token: the first {OLD} are"
    with pytest.raises(UserError, match=said):
        check_init(str(folders[kind]), tokenizer, {})
