"""A pickle that would run code is refused in every kind of file of a checkpoint, by whatever reads it, and runs nothing.

Who puts it there also writes its digest into the manifest: digests are against accidents.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from transformers import BertConfig, BertForMaskedLM

from maskloom.cli import main
from maskloom.errors import UserError
from maskloom.models.warm_start import load_checkpoint, open_checkpoint
from maskloom.train.checkpoint.digests import digest
from maskloom.train.engine.files import full_precision_weights, safe_loading

from .conftest import train_in_ranks

REFUSED = "holds what no checkpoint of maskloom does, and was not loaded"
LAYOUTS = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "BF16_Optimizer": {"zero_stage": 1, "precision": "bf16"},
    "stage 3": {"zero_stage": 3},
}


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trap}",)


def zipped(bomb: Bomb, file: Path) -> None:
    torch.save(bomb, file)


def unzipped(bomb: Bomb, file: Path) -> None:
    content = {"module": {"weight": torch.zeros(2)}, "optimizer_state_dict": {"state": bomb}}
    torch.save(content, file, _use_new_zipfile_serialization=False)


def bare(bomb: Bomb, file: Path) -> None:
    file.write_bytes(pickle.dumps(bomb))


CANNOT = "cannot be read: mmap can only be used"
WRITERS = (zipped, unzipped, bare)


@pytest.fixture(scope="module")
def runs(corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps in each layout, with its configuration beside it."""
    folder = tmp_path_factory.mktemp("runs")
    configs = []
    for name, engine in LAYOUTS.items():
        tree = {
            "run_dir": str(folder / name),
            "tokenizer": str(tokenizer_dir),
            "data": {"train": str(corpus_dir), "lanes": 2, "workers": 0},
            "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
            "phases": [{"steps": 2, "seq_len": 32, "global_batch_rows": 4, "micro_batch_rows": 2}],
            "engine": engine,
        }
        configs.append(folder / f"{name}.yaml")
        configs[-1].write_text(json.dumps(tree))
    train_in_ranks(configs, 1, folder / "training.log")
    return folder


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def with_bomb(run: Path, copy: Path, name: str, write: Callable[[Bomb, Path], None], trap: Path) -> Path:
    """A copy of the run whose checkpoint has a bomb for the file `name`; returns the checkpoint's folder."""
    shutil.copytree(run, copy)
    (folder,) = (copy / "checkpoints").glob("step-*")
    write(Bomb(trap), folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = digest(folder / name)._asdict()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def refusal(action: Callable[[], object], name: str) -> str:
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert name in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_file_of_a_checkpoint_runs_code(layout: str, runs: Path, trap: Path, tmp_path: Path) -> None:
    (folder,) = (runs / layout / "checkpoints").glob("step-*")
    names = sorted(file.name for file in folder.glob("*.pt"))
    assert len(names) == (1 if layout == "stage 0" else 2)
    for name in names:
        for write in WRITERS:
            copy = tmp_path / f"{name}-{write.__name__}"
            bad = with_bomb(runs / layout, copy, name, write, trap)
            said = refusal(lambda bad=bad: full_precision_weights(bad), name)
            assert REFUSED in said or CANNOT in said
            assert write is not zipped or "the class or function posix.system" in said
            assert not trap.exists()


@pytest.mark.parametrize(
    ("layout", "ranks"), [("stage 0", 1), ("stage 1", 1), ("stage 1", 2), ("stage 3", 1), ("stage 3", 2)]
)
def test_a_resume_runs_no_code(layout: str, ranks: int, runs: Path, trap: Path, tmp_path: Path) -> None:
    """Also where the state is spread anew over another number of ranks, by code of ours."""
    (folder,) = (runs / layout / "checkpoints").glob("step-*")
    name = max(file.name for file in folder.glob("*.pt"))
    with_bomb(runs / layout, tmp_path / "run", name, zipped, trap)
    tree = json.loads((runs / f"{layout}.yaml").read_text())
    tree |= {"run_dir": str(tmp_path / "run"), "phases": [{**tree["phases"][0], "steps": 3}]}
    (tmp_path / "again.yaml").write_text(json.dumps(tree))
    output = train_in_ranks([tmp_path / "again.yaml"], ranks, tmp_path / "resume.log", expect=1)
    assert f"{name} {REFUSED}" in output
    assert "Traceback" not in output
    assert not trap.exists()


def test_the_stage_in_a_checkpoint_asks_for_no_function_on_any_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11.2, Debian 12's, pickles a member of an Enum as `getattr(class, name)`."""
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", lambda self, protocol: (getattr, (ZeroStageEnum, self.name)))
    torch.save({"zero_stage": ZeroStageEnum.weights}, tmp_path / "a.pt")
    with safe_loading():
        assert torch.load(tmp_path / "a.pt")["zero_stage"] is ZeroStageEnum.weights


def test_export_and_eval_run_no_code(
    runs: Path, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    with_bomb(runs / "stage 1", tmp_path / "run", name, zipped, trap)
    for command in (["export", tmp_path / "run", tmp_path / "out"], ["eval", tmp_path / "run"]):
        assert main([str(part) for part in command]) == 1
        assert f"{name} {REFUSED}" in capsys.readouterr().err
        assert not trap.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_refused_here_would_run_otherwise(
    write: Callable[[Bomb, Path], None], trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Bomb(trap), tmp_path / "a.pt")
    # The variable by which torch may be told to trust every file does not reach here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match=REFUSED), safe_loading():
        torch.load(tmp_path / "a.pt", weights_only=False)
    assert not trap.exists()
    if write is bare:
        pickle.loads((tmp_path / "a.pt").read_bytes())
    else:
        torch.load(tmp_path / "a.pt", weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize("write", WRITERS)
def test_a_model_to_start_from_runs_no_code(write: Callable[[Bomb, Path], None], trap: Path, tmp_path: Path) -> None:
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64).save_pretrained(
        tmp_path
    )
    write(Bomb(trap), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.init here holds a pickle of more than tensors, and was not loaded"):
        load_checkpoint(open_checkpoint(str(tmp_path), "model.init here"))
    assert not trap.exists()


def test_no_pickle_is_read_beside_safetensors(trap: Path, tmp_path: Path) -> None:
    shape = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertForMaskedLM(shape).save_pretrained(tmp_path)
    zipped(Bomb(trap), tmp_path / "pytorch_model.bin")
    _, missing, _ = load_checkpoint(open_checkpoint(str(tmp_path), "model.init here"))
    assert not missing
    assert not trap.exists()
