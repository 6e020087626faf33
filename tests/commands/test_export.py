"""`maskloom export`: Hugging Face loads the folder and computes what the run's model computes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from maskloom.cli import main
from maskloom.commands.loading import load_run
from maskloom.data.batch import make_micro_batch
from maskloom.data.index.loading import load_index
from maskloom.data.masking import MaskRule
from maskloom.data.stream import held_out_rows
from maskloom.distributed import World
from maskloom.tokenizers.base import Tokenizer

from .conftest import Command


@pytest.fixture(scope="module")
def copied_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that may be damaged."""
    return shutil.copytree(trained_run, tmp_path_factory.mktemp("copied") / "run")


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def largest_file(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda file: file.stat().st_size)


def test_hugging_face_computes_the_runs_logits(
    trained_run: Path, tokenizer: Tokenizer, documents: list[str], tmp_path: Path, succeeds: Command
) -> None:
    out = tmp_path / "new" / "model"
    assert "the model of step 12" in succeeds("export", trained_run, out)
    model = AutoModelForMaskedLM.from_pretrained(out).eval()
    assert type(model) is BertForMaskedLM
    loaded = load_run(trained_run, None)
    index = load_index(loaded.config.data.train)
    rule = MaskRule(0.15)
    rows = next(iter(held_out_rows(index, tokenizer, 128, rule, World())))
    batch = make_micro_batch(rows, len(rows), rule.most(128), tokenizer)
    with torch.no_grad():
        hidden = loaded.model.encode(batch).view(len(rows), 128, -1)
        compared = 0
        for row in range(len(rows)):
            begins = rows.starts[row].nonzero()[0].tolist()
            for begin, end in zip(begins, [*begins[1:], 128], strict=True):
                if rows.tokens[row, begin] == tokenizer.pad_id:
                    continue
                piece = torch.from_numpy(rows.input_ids[row : row + 1, begin:end]).long()
                expected = loaded.model.cls(hidden[row : row + 1, begin:end])
                torch.testing.assert_close(model(input_ids=piece).logits, expected, atol=1e-5, rtol=0)
                compared += 1
    assert compared >= len(rows)

    exported = AutoTokenizer.from_pretrained(out)
    for text, ids in zip(documents[:20], tokenizer.encode(documents[:20]), strict=True):
        assert exported(text)["input_ids"] == [tokenizer.cls_id, *ids.tolist(), tokenizer.sep_id]
    names = ("pad", "unk", "cls", "sep", "mask")
    for name in names:
        assert getattr(exported, f"{name}_token_id") == getattr(tokenizer, f"{name}_id")
    assert exported.model_max_length == model.config.max_position_embeddings


def test_an_earlier_step_is_another_model(trained_run: Path, tmp_path: Path, succeeds: Command) -> None:
    assert "the model of step 8" in succeeds("export", f"{trained_run}@8", tmp_path / "earlier")
    succeeds("export", trained_run, tmp_path / "newest")
    succeeds("export", trained_run, tmp_path / "again")
    earlier, newest, again = ((tmp_path / name / "model.safetensors") for name in ("earlier", "newest", "again"))
    assert newest.read_bytes() == again.read_bytes() != earlier.read_bytes()


def test_a_folder_that_exists_is_refused(trained_run: Path, tmp_path: Path, fails: Command) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    assert f"{out} exists" in fails("export", trained_run, out)
    assert not list(out.iterdir())


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(
    trained_run: Path, tmp_path: Path, fails: Command
) -> None:
    message = fails("export", trained_run, tmp_path / "out", "--step", 5)
    assert "no checkpoint of step 5; it has those of 8, 12" in message


def test_what_is_not_a_run_is_refused(tmp_path: Path, fails: Command) -> None:
    assert "is not a run" in fails("export", tmp_path, tmp_path / "out")


def test_damaged_checkpoints_are_not_exported(
    copied_run: Path, tmp_path: Path, fails: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = copied_run / "checkpoints"
    newest = largest_file(checkpoints / "step-00000012")
    flip_byte(newest)
    message = fails("export", copied_run, tmp_path / "out", "--step", 12)
    assert f"is damaged: the content of {newest.name} is not what was written" in message
    # Without a step asked for, the one before serves, loudly.
    assert main(["export", str(copied_run), str(tmp_path / "before")]) == 0
    printed = capsys.readouterr()
    assert "WARNING" in printed.err
    assert newest.name in printed.err
    assert "the model of step 8" in printed.out

    largest_file(checkpoints / "step-00000008").unlink()
    message = fails("export", copied_run, tmp_path / "out")
    assert "No good checkpoint is left" in message
    assert "is missing" in message
    assert not (tmp_path / "out").exists()
