"""The Python interface: what each function does beside the command of its name, and that importing it costs nothing."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import maskloom
from maskloom import UserError, api, cli, masked_stream


@pytest.fixture(scope="module")
def folder(trained_run: Path, corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples of docstrings run: run.yaml, a run, a corpus, a tokenizer."""
    made = tmp_path_factory.mktemp("api")
    (made / "run").symlink_to(trained_run)
    (made / "shards").symlink_to(corpus_dir)
    (made / "tokenizer").symlink_to(tokenizer_dir)
    (made / "run.yaml").write_text((trained_run / "config.yaml").read_text())
    return made


def test_importing_maskloom_imports_no_torch() -> None:
    code = (
        "import sys, maskloom; assert set(maskloom.__all__) <= set(dir(maskloom));"
        "maskloom.load_config, maskloom.UserError;"
        "print(*(name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_every_public_name_is_there() -> None:
    assert maskloom.__all__ == sorted(maskloom.__all__)
    for name in maskloom.__all__:
        assert name == "__version__" or getattr(maskloom, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'MaskedSteam'"):
        maskloom.MaskedSteam  # noqa: B018


@pytest.mark.parametrize("module", [api, masked_stream])
def test_docstrings(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = doctest.testmod(module)
    assert found.attempted > 5
    assert not found.failed


def test_figures_are_those_of_the_command(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jsonl"
    words = ("the quiet machine reads a river", "every tree writes some paper before the batch")
    text.write_text(
        "".join(json.dumps({"text": f"{line} {number} water"}) + "\n" for number in range(20) for line in words)
    )
    assert cli.main(["eval", str(trained_run), "--data", str(text), "--seed", "5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (expected,) = printed["models"]
    found = maskloom.evaluate(trained_run, text, seed=5)
    assert {name: found[name] for name in expected} == expected
    model = maskloom.load_model(trained_run).train()
    in_memory = maskloom.evaluate(model, [text], tokenizer=maskloom.load_tokenizer(trained_run), seed=5)
    assert in_memory["nats_per_byte"] == found["nats_per_byte"]
    assert all(module.training for module in model.modules())


def test_an_export_is_that_of_the_command(trained_run: Path, tmp_path: Path) -> None:
    assert (
        cli.main(["export", f"{trained_run}@8", str(tmp_path / "theirs"), "--name", "some/model", "--language", "en"])
        == 0
    )
    out = maskloom.export(trained_run, tmp_path / "ours", step=8, name="some/model", languages=["en"])
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        theirs = (tmp_path / "theirs" / name).read_bytes()
        assert (out / name).read_bytes().replace(b"ours", b"theirs") == theirs, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: maskloom.load_config(run / "config.yaml", "seed=1"), "is not a list of texts"),
        (lambda run: maskloom.load_config(run / "config.yaml", ["sed=1"]), "seed"),
        (lambda run: maskloom.load_model(run / "none"), "none"),
        (lambda run: maskloom.load_tokenizer(run / "none"), "no tokenizer"),
        (lambda run: maskloom.evaluate(run / "model"), "is not a run, so it has no held-out text"),
        (lambda run: maskloom.evaluate(run, tokenizer="x"), "tokenizer is for a model in memory"),
        (lambda run: maskloom.evaluate(run, seed=1), "its section `evaluation` counts"),
        (lambda run: maskloom.evaluate(run, run, sead=1), "no option 'sead'.*seed"),
        (lambda run: maskloom.evaluate(run, run, documents=0), "documents=0"),
        (lambda run: maskloom.evaluate(run, run, mask_rate=2), "mask_rate=2"),
        (lambda run: maskloom.evaluate(torch.nn.Linear(2, 2), run), "model is a Linear"),
        (lambda run: maskloom.evaluate(maskloom.load_model(run), run), "needs its tokenizer"),
        (lambda run: maskloom.evaluate(maskloom.load_model(run), run, step=1), "step=1 is for a run"),
        (lambda run: maskloom.export(run, run), "exists"),
        (lambda run: maskloom.export(run, run / "x", name="a b"), "for the model's card"),
        (lambda run: maskloom.export(run, run / "x", languages="en"), "is a text"),
        (lambda run: maskloom.pretrain(run / "config.yaml", processes=0), "processes=0"),
        (lambda run: maskloom.pretrain(run / "config.yaml", max_restarts=-1), "max_restarts=-1"),
        (lambda run: maskloom.pretrain({}), "config={} is not a path"),  # type: ignore[arg-type]
        (lambda run: maskloom.load_tokenizer(""), "source='' is not a path"),
        (lambda run: maskloom.load_model(run, step=1.0), "step=1.0 is not a checkpoint"),  # type: ignore[arg-type]
        (lambda run: maskloom.evaluate(run, []), "data=.. has no text"),
    ],
)
def test_wrong_arguments(call: Callable[[Path], Any], message: str, trained_run: Path) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        call(trained_run)


def test_where_a_run_cannot_be_started(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            maskloom.pretrain(trained_run / "config.yaml")
        except UserError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="a launcher started this process as one of several"):
        maskloom.pretrain(trained_run / "config.yaml")


def test_a_run_that_fails_raises(
    run_config: dict, write_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its ranks end at once, with exit code 1."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    before = dict(os.environ)
    with pytest.raises(RuntimeError, match=rf"the run in {tmp_path / 'run'} failed.*exit code 1"):
        maskloom.pretrain(maskloom.load_config(write_config(run_config)), processes=2)
    assert dict(os.environ) == before
