"""Real runs that keep their best checkpoint, end early, and probe their encoder: killed and resumed, forked, at ZeRO-3."""

from __future__ import annotations

import functools
import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskloom.cli import main
from maskloom.status import read_status, why_not_again
from maskloom.train.checkpoint import damage, read_state
from maskloom.train.checkpoint.state import folder_of, saved_folders, step_of
from maskloom.train.held_out import best_of

from .conftest import final_weights, losses, train_in_ranks
from .test_rope_theta import die_after

STEPS, EVERY, SAVE_EVERY = 60, 3, 5
SHORT = 7
PATIENCE, MIN_DELTA = 3, 0.05


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty texts of two classes that share some words."""
    rng = random.Random(1)
    words = {"water": "the a river wind large".split(), "stone": "some tree stone value large".split()}
    examples = [(rng.choices(words[label], k=8), label) for label in rng.choices(list(words), k=60)]
    file = tmp_path_factory.mktemp("labelled") / "examples.jsonl"
    file.write_text("".join(json.dumps({"text": " ".join(text), "label": label}) + "\n" for text, label in examples))
    return file


@pytest.fixture(scope="module")
def runs(corpus_dir: Path, tokenizer_dir: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with these runs of two ranks:

    whole   evaluates, keeps the best checkpoint, probes, and ends early
    killed  the same, killed before its end and resumed
    plain   without evaluations, and no longer than `whole` came
    third, plain-third  a few steps at ZeRO-3, the one with evaluations and probes, the other without
    fork    begun from `whole` before its end
    """
    folder = tmp_path_factory.mktemp("held_out")
    evaluation = {"every_steps": EVERY, "seq_len": 64, "probe": {"data": str(labelled)}}
    patience = {**evaluation, "patience": PATIENCE, "min_delta": MIN_DELTA}

    def write(name: str, steps: int, **more: Any) -> Path:
        phase = {"steps": steps, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 6}
        tree = {
            "run_dir": str(folder / name),
            "seed": 3,
            "tokenizer": str(tokenizer_dir),
            "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
            # The rate does not depend on the number of steps: the runs differ in what they evaluate alone.
            "optimizer": {"lr": 0.02, "warmup_steps": 2, "schedule": "wsd", "decay_steps": 1},
            "phases": [phase],
            "checkpoint": {"every_steps": SAVE_EVERY},
            "logging": {"every_steps": 1},
            **more,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    best = {"every_steps": SAVE_EVERY, "keep_best": True}
    third = {"zero_stage": 3}
    train_in_ranks(
        [
            write("whole", STEPS, evaluation=patience, checkpoint=best),
            write("third", SHORT, evaluation=evaluation, engine=third),
            write("plain-third", SHORT, engine=third),
        ],
        2,
        folder / "log",
    )
    killed = write("killed", STEPS, evaluation=patience, checkpoint=best)
    end = end_of(folder / "whole")
    # After the best checkpoint, and amid the evaluations that bring no lower loss.
    patch = functools.partial(die_after, end - 1)
    train_in_ranks([killed], 2, folder / "log", expect=-signal.SIGKILL, patch=patch)
    origin = f"{folder / 'whole'}@{step_of(saved_folders(folder / 'whole')[1])}"
    fork = write("fork", end, evaluation=evaluation, checkpoint=best, **{"from": origin})
    train_in_ranks([killed, write("plain", end + 1), fork], 2, folder / "log")
    return folder


def end_of(run: Path) -> int:
    status = read_status(run)
    assert status is not None
    return status.step


def lines(run: Path) -> dict[int, dict[str, float]]:
    """The evaluations, by step."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in found if "evaluation_loss" in line}


def test_a_run_evaluates_before_its_first_step_and_ends_early(runs: Path) -> None:
    found = lines(runs / "whole")
    status = read_status(runs / "whole")
    assert status is not None
    assert list(found) == list(range(0, status.step + 1, EVERY))
    assert status.state == "done"
    assert PATIENCE * EVERY < status.step < STEPS
    assert status.last_good_checkpoint == f"step-{status.step:08d}"
    assert "stopped early: in 3 evaluations" in status.reason
    assert "schedule of the learning rate was not finished" in status.reason
    assert why_not_again(status, [0]) == "it is done"
    waited = list(found.values())[-PATIENCE:]
    before = min(line["evaluation_loss"] for step, line in found.items() if step <= status.step - PATIENCE * EVERY)
    assert all(line["evaluation_loss"] >= before - MIN_DELTA for line in waited)


def test_the_best_checkpoint_is_kept_and_found(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "whole"
    found = lines(run)
    step = min((step for step in found if step), key=lambda step: found[step]["evaluation_loss"])
    best = best_of(run)
    assert best is not None
    assert (best.step, best.loss) == (step, found[step]["evaluation_loss"])
    assert damage(folder_of(run, step)) is None
    assert main(["status", str(run)]) == 0
    assert f"best:            step-{step:08d}, held-out loss {best.loss:.4f}" in capsys.readouterr().out
    assert main(["export", str(run), str(tmp_path / "model"), "--best"]) == 0
    assert f"the model of step {step}" in capsys.readouterr().out
    assert main(["eval", str(run), "--step", "best", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["evaluation_loss"] == pytest.approx(best.loss, rel=1e-5)


def test_a_run_that_is_killed_keeps_the_same_best_and_ends_at_the_same_step(runs: Path) -> None:
    whole, killed = runs / "whole", runs / "killed"
    assert losses(killed) == losses(whole)
    assert lines(killed) == lines(whole)
    assert [folder.name for folder in saved_folders(killed)] == [folder.name for folder in saved_folders(whole)]
    assert best_of(killed) == best_of(whole)
    for folder in saved_folders(whole):
        assert read_state(folder).held_out == read_state(killed / "checkpoints" / folder.name).held_out
    one, other = final_weights(whole), final_weights(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluations_and_probes_do_not_change_the_training(runs: Path) -> None:
    whole, plain = losses(runs / "whole"), losses(runs / "plain")
    assert whole == {step: plain[step] for step in whole}
    assert losses(runs / "third") == losses(runs / "plain-third")
    one, other = final_weights(runs / "third"), final_weights(runs / "plain-third")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_probe_has_figures_at_each_evaluation(runs: Path) -> None:
    for run, steps in (("whole", list(range(0, end_of(runs / "whole") + 1, EVERY))), ("third", [0, 3, 6, SHORT])):
        found = lines(runs / run)
        assert list(found) == steps
        for line in found.values():
            assert 0.0 <= line["evaluation_probe_macro_f1"] <= 1.0
        assert found[3]["evaluation_probe_accuracy"] > 0.7  # the words of the classes differ
    # The same encoder at both stages, before the first step.
    assert (
        lines(runs / "third")[0]["evaluation_probe_accuracy"] == lines(runs / "whole")[0]["evaluation_probe_accuracy"]
    )


def test_a_fork_evaluates_where_it_begins_and_its_origin_has_no_part_in_its_best(runs: Path) -> None:
    begun = step_of(saved_folders(runs / "whole")[1])
    found = lines(runs / "fork")
    assert min(found) == begun
    best = best_of(runs / "fork")
    assert best is not None
    assert best.step > begun


def test_the_same_command_does_not_train_on_unless_patience_is_raised(runs: Path) -> None:
    end = end_of(runs / "whole")
    run = shutil.copytree(runs / "whole", runs / "again")
    tree = yaml.safe_load((runs / "whole.yaml").read_text()) | {"run_dir": str(run)}
    same, patient = runs / "same.yaml", runs / "patient.yaml"
    same.write_text(yaml.safe_dump(tree))
    tree["evaluation"]["patience"] = PATIENCE + 1
    patient.write_text(yaml.safe_dump(tree))
    output = train_in_ranks([same, patient], 1, runs / "log")
    assert f"done: step {end} of {STEPS}; stopped early" in output
    assert f"resuming after step {end} of {STEPS}" in output
    assert end_of(run) > end
    assert list(losses(run)) == list(range(1, end_of(run) + 1))
