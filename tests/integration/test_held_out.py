"""Real runs that keep their best checkpoint, end early, probe their encoder, fill sentences and show all of it in TensorBoard:
killed and resumed, forked, at ZeRO-3."""

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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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

    whole   evaluates, keeps the best checkpoint, probes, fills sentences, and ends early
    killed  the same, killed before its end and resumed
    plain   without evaluations, and no longer than `whole` came
    third, plain-third  a few steps at ZeRO-3, the one with evaluations and probes, the other without
    fork    begun from `whole` before its end
    """
    folder = tmp_path_factory.mktemp("held_out")
    sentences = ["the [MASK] reads a [MASK] stone", "water [MASK]"]
    evaluation = {"every_steps": EVERY, "seq_len": 64, "probe": {"data": str(labelled)}, "sentences": sentences}
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
    said = texts(run, "run/environment")[0]
    assert f"| unigram entropy | `{figures['unigram_entropy']:.3f} nats a token: " in said
    assert "| clipping norm | `1` |" in said


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


def board(run: Path, sub: str = "") -> EventAccumulator:
    """All points and texts that TensorBoard has of a run."""
    return EventAccumulator(str(run / "tensorboard" / sub), {"scalars": 0, "tensors": 0}).Reload()


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def texts(run: Path, tag: str) -> dict[int, str]:
    return {event.step: event.tensor_proto.string_val[0].decode() for event in board(run).Tensors(tag)}


def test_tensorboard_has_each_step_once_after_a_kill_that_lost_steps(runs: Path) -> None:
    """As if the run was never killed, but for what depends on time and memory, and the number of the attempt."""
    whole, killed = board(runs / "whole"), board(runs / "killed")
    tags = set(whole.Tags()["scalars"])
    assert tags == set(killed.Tags()["scalars"])
    steps = list(range(1, end_of(runs / "whole") + 1))
    for tag in tags - {"train_health/straggler_ratio", "train_health/attempt"}:
        if tag.startswith("utilization/") and "density" not in tag:
            assert [step for step, _ in points(killed, tag)] == steps, tag
        else:
            assert points(killed, tag) == points(whole, tag), tag
    held_out = board(runs / "killed", "held-out")
    assert points(held_out, "train/loss") == points(killed, "eval/loss")
    assert points(held_out, "train/accuracy") == points(killed, "eval/accuracy")
    assert list(texts(runs / "killed", "fill_mask")) == list(lines(runs / "whole"))
    # The attempt counts up where the run resumed.
    kept = next(step for step, attempt in points(killed, "train_health/attempt") if attempt == 2) - 1
    assert points(killed, "train_health/attempt") == [(step, 1.0 if step <= kept else 2.0) for step in steps]
    said = list(texts(runs / "killed", "run/restarts").values())[-1].splitlines()
    assert said[0].startswith("- attempt 1 begins with 2 ranks")
    assert said[1].startswith(f"- attempt 2 resumes behind step {kept} with 2 ranks")


def test_a_resume_after_the_last_step_doubles_nothing(runs: Path, tmp_path: Path) -> None:
    """The clean end: a second start of the same command has nothing to do."""
    run = shutil.copytree(runs / "third", tmp_path / "third")
    before = board(run)
    tree = yaml.safe_load((runs / "third.yaml").read_text()) | {"run_dir": str(run)}
    config = tmp_path / "again.yaml"
    config.write_text(yaml.safe_dump(tree))
    train_in_ranks([config], 1, tmp_path / "log")
    after = board(run)
    assert len(list((run / "tensorboard").glob("events*"))) == 2
    for tag in before.Tags()["scalars"]:
        assert points(after, tag) == points(before, tag)
    assert points(board(run, "held-out"), "train/loss") == points(before, "eval/loss")
    assert "resumes behind step 7 with 1 rank (before: 2)" in list(texts(run, "run/restarts").values())[-1]


def test_sentences_are_filled_at_each_evaluation_at_any_stage(runs: Path) -> None:
    whole, third = texts(runs / "whole", "fill_mask"), texts(runs / "third", "fill_mask")
    assert list(third) == [0, 3, 6, SHORT]
    # The same model at both stages, before the first step.
    assert whole[0] == third[0]
    rows = [line.split(" | ") for line in whole[0].splitlines()[2:]]
    assert [(row[0], row[2]) for row in rows] == [
        ("| `the [MASK] reads a [MASK] stone`", "1"),
        ("| ", "2"),
        ("| `water [MASK]`", "1"),
    ]
    assert whole[0] != whole[3]
    assert "[MASK]" not in (runs / "whole" / "metrics.jsonl").read_text()


def test_a_fork_says_in_tensorboard_where_it_comes_from(runs: Path) -> None:
    (said,) = texts(runs / "fork", "run/restarts").values()
    begun = step_of(saved_folders(runs / "whole")[1])
    assert said.splitlines()[0] == f"- forked from `{runs / 'whole'}@{begun}`"


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
