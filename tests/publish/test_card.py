"""The model card: what hubs read of it, and that each fact is the run's own."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from maskloom.cli import main
from maskloom.config_file import load_config
from maskloom.data.index.loading import load_index
from maskloom.publish.card import cell, evaluated_at, without_places
from maskloom.runs import read_metrics


def export(run: Path, out: Path, *options: str) -> str:
    assert main(["export", str(run), str(out), *options]) == 0
    return (out / "README.md").read_text()


@pytest.fixture(scope="module")
def card(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The card of the newest checkpoint of a run, and its folder."""
    out = tmp_path_factory.mktemp("cards") / "my-model"
    text = export(trained_run, out, "--license", "apache-2.0", "--language", "en", "--language", "de")
    return text, out


def test_hubs_read_the_metadata(card: tuple[str, Path], trained_run: Path) -> None:
    data = ModelCard(card[0]).data
    assert (data.license, data.language, data.pipeline_tag) == ("apache-2.0", ["en", "de"], "fill-mask")
    assert data.library_name == "transformers"
    assert data.mask_token == "[MASK]"
    assert {"bert", "maskloom"} <= set(data.tags)
    assert data.base_model is None
    logged = {name: value for name, value in read_metrics(trained_run)[-1].items() if name.startswith("evaluation_")}
    figures = {f"evaluation_{result.metric_type}": result.metric_value for result in data.eval_results}
    assert figures.keys() == {"evaluation_loss", "evaluation_perplexity", "evaluation_accuracy"}
    assert figures == {name: logged[name] for name in figures}


def test_digests_are_those_of_the_files(card: tuple[str, Path]) -> None:
    text, folder = card
    digests = dict(re.findall(r"^\| (\S+) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE))
    assert digests.keys() == {"model.safetensors", "config.json", "tokenizer.json"}
    for name, digest in digests.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_data_and_settings_are_the_runs(card: tuple[str, Path], trained_run: Path, corpus_dir: Path) -> None:
    text, _ = card
    header = load_index(corpus_dir).header
    assert f"| {corpus_dir.name} | {header['documents']:,} | {header['held_out_documents']:,} |" in text
    assert header["digest"][:16] in text
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    config = load_config(trained_run / "config.yaml")
    assert settings["optimizer"]["lr"] == config.optimizer.lr
    assert settings["phases"][0]["steps"] == config.phases[0].steps


def test_places_of_this_machine_are_left_out(card: tuple[str, Path], trained_run: Path, tokenizer_dir: Path) -> None:
    for place in (trained_run.parent, tokenizer_dir.parent, Path.home()):
        assert str(place) not in card[0]
    assert without_places({"a": ["/data/x/y", "~/z", "data/x", "s3://b/c", "https://u:p@host/a?key=1", 3, None]}) == {
        "a": ["y", "z", "data/x", "s3://b/c", "https://host/a", 3, None]
    }


def test_a_checkpoint_that_was_not_evaluated_says_so(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 8, "loss": 2.0}) + "\n")
    (run / "environment.json").write_text("[1")
    text = export(run, tmp_path / "out", "--step", "8")
    assert "This checkpoint was not evaluated in the run." in text
    assert ModelCard(text).data.eval_results is None
    assert evaluated_at(run, 8) == {}
    assert "step 8 of 12" in text
    assert "| ranks |" not in text


def test_a_corpus_that_was_moved_has_no_counts(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    tree: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    tree["data"]["train"] = str(tmp_path / "moved")
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert "| moved | ? | ? | ? |" in export(run, tmp_path / "out")


def test_a_name_stays_in_its_cell() -> None:
    assert cell("a|b\nc") == r"a\|b\nc"


@pytest.mark.parametrize("option", ["--license", "--language", "--name"])
def test_metadata_is_one_word(trained_run: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(trained_run), str(tmp_path / "out"), option, "a\nb: c"])
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()
