"""What is measured: names, selections, and the sizes that the comparison rests on."""

from __future__ import annotations

import typing

import pytest
from step.cases import CASES, SYSTEMS, choose_cases, choose_systems

from maskloom.config import Engine
from maskloom.errors import UserError


def test_every_choice_of_kernels_is_a_system() -> None:
    auto, *choices = typing.get_args(Engine.model_fields["kernels"].annotation)
    assert (auto, len(choices)) == ("auto", 3)
    assert [system.kernels for system in choose_systems([f"maskloom-{choice}" for choice in choices], "cpu")] == choices


def test_without_names_everything_runs_but_the_tiny_case_and_what_needs_a_gpu() -> None:
    bert, modern = ["mini-128", "mini-512", "base-128", "base-512"], ["tiny-128", "tiny-512", "mini-128", "mini-512"]
    others = [*(f"modernbert-{name}" for name in modern), "roberta-mini-128"]
    assert [case.name for case in choose_cases(None, "cpu")] == [*bert, *others]
    large = ["base-128", "base-512", "large-128", "large-512", "modernbert-base-1024"]
    assert [case.name for case in choose_cases(None, "cuda")] == large
    assert "maskloom-graphs" not in {system.name for system in choose_systems(None, "cpu")}
    on_gpu = [system for system in SYSTEMS if system.kernels != "onednn"]
    assert choose_systems(None, "cuda", architecture="modernbert") == on_gpu
    assert choose_systems(None, "cuda") == [system for system in on_gpu if not system.is_sparse]
    assert "hf-lines" not in {system.name for system in choose_systems(None, "cpu", leaving_out=("hf-lines",))}


def test_a_name_that_a_device_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(
        UserError, match="--cases large-512: on a CPU there are mini-128, mini-512, base-128, base-512, modernbert-tiny"
    ):
        choose_cases(["mini-128", "large-512"], "cpu")
    with pytest.raises(UserError, match="--systems maskloom-graphs: on a CPU there are maskloom-eager"):
        choose_systems(["maskloom-graphs"], "cpu")
    with pytest.raises(UserError, match="--systems hf-sparse: on a CPU there are maskloom-eager"):
        choose_systems(["hf-sparse"], "cpu")  # of a BERT


def test_a_system_that_is_named_runs_although_a_case_leaves_it_out() -> None:
    assert [system.name for system in choose_systems(["hf-lines"], "cpu", leaving_out=("hf-lines",))] == ["hf-lines"]


@pytest.mark.parametrize("case", CASES["cuda"][:-1], ids=lambda case: case.name)
def test_a_gpu_measures_a_hundred_steps_of_130_000_tokens(case) -> None:
    assert case.steps * case.rounds >= 100
    assert (
        0.9 * case.step_rows * case.seq_len >= 130_000
    )  # packed rows are 95 % full, and some of that is [CLS] and [SEP]
    assert case.micro_batches * case.micro_batch_rows == case.step_rows


def test_what_the_user_chose_replaces_the_defaults() -> None:
    case = choose_cases(["mini-128"], "cpu")[0]
    changed = case.changed(7, 2, 8)
    assert (changed.steps, changed.rounds, changed.micro_batches) == (7, 2, 4)
    assert case.changed(None, None, None) == case
    with pytest.raises(UserError, match="--micro-batch-rows 5: the 32 rows a step of mini-128 are no multiple of it"):
        case.changed(None, None, 5)
