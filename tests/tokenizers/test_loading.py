"""Tokenizers as they come: found in a folder or on the Hub, and read; what cannot be read says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskloom.config_file import parse_config
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import find_tokenizer, load_tokenizer
from maskloom.tokenizers.training import train_tokenizer

from .vocabularies import TOKENS, write


def test_tokenizer_json_goes_before_the_vocabulary(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path, TOKENS)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("names", "said", "not_said"),
    [
        (["merges.txt"], "or vocab.json is needed: name a folder", "Convert"),
        (["sentencepiece.bpe.model"], "of a SentencePiece tokenizer. Convert it", "maskloom tokenizer"),
        (["spiece.model", "config.json"], "of a SentencePiece tokenizer. Convert it", "maskloom tokenizer"),
        (["config.json", "model.safetensors"], "copy that of the model there", "maskloom tokenizer"),
        ([], "train one with `maskloom tokenizer CORPUS", "Convert"),
    ],
)
def test_a_folder_without_a_tokenizer_says_what_to_do(
    names: list[str], said: str, not_said: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert "tokenizer.json or vocab.txt or vocab.json is needed" in str(error.value)
    assert said in str(error.value)
    assert not_said not in str(error.value)


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "spm.model"])
def test_a_sentencepiece_model_names_the_packages_and_the_command(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x0a\xff")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UserError) as error:
            load_tokenizer(source)
        assert "`pip install sentencepiece protobuf`, then `python -c " in str(error.value)
        assert f"AutoTokenizer.from_pretrained('{tmp_path}').save_pretrained('OTHER')" in str(error.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's copies on this machine, and no way to the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str) -> Path:
    """Where the files of a model are in the Hub's cache, as huggingface_hub lays it out."""
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("name", ["bert-tiny-of-ours", "our-group/bert-tiny"])
def test_a_name_on_the_hub_is_a_tokenizer(name: str, hub: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(cached(hub, name) / "tokenizer.json")
    assert load_tokenizer(name).fingerprint == tokenizer.fingerprint


def test_a_vocabulary_on_the_hub_comes_with_its_settings(hub: Path) -> None:
    write(cached(hub, "our-group/cased"), TOKENS, do_lower_case=False)
    tokenizer = load_tokenizer("our-group/cased")
    assert tokenizer.encode(["River"])[0].tolist() == [TOKENS.index("River")]


def test_a_name_that_is_nowhere_says_so(hub: Path) -> None:
    with pytest.raises(UserError) as error:
        load_tokenizer("bert-base-uncased")
    assert "no file or folder here has this name, and from the Hub neither" in str(error.value)
    assert "maskloom tokenizer" not in str(error.value)  # which would make another one, under the name of this


def test_a_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskloom.tokenizers.loading._from_hub", lambda name: pytest.fail(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="train one with `maskloom tokenizer CORPUS data/tok`"):
        find_tokenizer("data/tok")
    for path in (tmp_path / "none", tmp_path / "none" / "vocab.txt", Path("a/b/c"), Path("./a")):
        with pytest.raises(UserError, match=f"no tokenizer at .*{path.name}.*name a folder that holds"):
            find_tokenizer(str(path) if path.name != "a" else "./a")


def config(**more: object) -> dict:
    return {"run_dir": "run", "data": {"train": "corpus"}, "phases": [{"steps": 2}]} | more


def test_a_run_takes_the_tokenizer_of_the_model_it_starts_from() -> None:
    assert parse_config(config(model={"init": "my_model"}), "here").tokenizer == "my_model"
    assert parse_config(config(model={"init": "my_model"}, tokenizer="own"), "here").tokenizer == "own"
    assert parse_config(config(model={"init": "my_model"}, tokenizer=None), "here").tokenizer == "my_model"
    for tree in (
        config(),
        config(model={}),
        config(model={"init": None}),
        config(tokenizer=" "),
        config(tokenizer=None),
    ):
        with pytest.raises(UserError, match=r"tokenizer: it is missing: .*or model\.init"):
            parse_config(tree, "here")


def test_a_vocabulary_on_the_hub_comes_with_its_merges(hub: Path) -> None:
    folder = cached(hub, "our-group/bytes")
    tree = json.loads(train_tokenizer(["the river"] * 9, 270, kind="byte-bpe").definition)
    (folder / "vocab.json").write_text(json.dumps(tree["model"]["vocab"]))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"vocab\.json needs merges\.txt beside it"):
        load_tokenizer("our-group/bytes")
    (folder / "merges.txt").write_text("".join(" ".join(pair) + "\n" for pair in tree["model"]["merges"]))
    tokenizer = load_tokenizer("our-group/bytes")
    assert tokenizer.decode(tokenizer.encode(["the river"])[0].tolist()) == "the river"
