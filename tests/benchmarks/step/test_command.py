"""`python benchmarks/step.py`: two systems measured and kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from step.command import main

from maskloom.errors import UserError

SYSTEMS = ("maskloom-eager", "hf-sdpa")


def refused(*arguments: object) -> str:
    """Why the command refuses these."""
    with pytest.raises(UserError) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


def test_steps_are_measured_and_added_to_the_file(
    corpus_dir: Path, tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "step.json"
    text = ("--corpus", corpus_dir, "--tokenizer", tokenizer_dir, "--device", "cpu", "--threads", 1, "--out", out)
    out.parent.mkdir()
    out.write_text(json.dumps({"device": "cpu", "cases": {"other": {}}}))
    chosen = ("--cases", "tiny", "--systems", ",".join(SYSTEMS), "--steps", 2, "--rounds", 1)
    assert main([str(argument) for argument in ("--only", "step", "--no-profile", *chosen, *text)]) == 0
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["cases"].keys() == {"other", "tiny"}
    measured = results["cases"]["tiny"]
    assert tuple(measured["systems"]) == SYSTEMS
    assert not measured["failures"]
    for name, system in measured["systems"].items():
        assert f"`{name}`" in printed
        (turn,) = system["turns"]
        assert len(turn["step_s"]) == 2
        assert turn["facts"]["rows"] == 2 * 8
        assert turn["facts"]["all_slots"] == 2 * 8 * 32
        assert turn["facts"]["text_tokens"] < turn["facts"]["slots"] <= turn["facts"]["all_slots"]
        assert turn["graphs_compiled"] == 0
    assert measured["stamp"]["command"].startswith(
        "python benchmarks/step.py --only step --device cpu --cases tiny --systems"
    )
    assert measured["limits"]["flops"] > 1e6
    out.write_text(json.dumps({"device": "nvidia-h200"}))
    assert "holds results of another device, nvidia-h200" in refused("--only", "step", *chosen, *text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "step", "--seeds", "2"), "--seeds is for --only loss or curves"),
        (("--only", "curves", "--systems", "hf-sdpa"), "--systems is not for --only curves"),
        (("--only", "curves", "--device", "cpu", "--steps", "5"), "--steps 5: the warm-up alone takes 60 steps"),
        (("--only", "loss", "--no-profile"), "--no-profile is for --only step"),
        (("--only", "loss", "--micro-batch-rows", "4"), "--micro-batch-rows is for --only step"),
        (("--steps", "5"), "--steps is not the same for steps and for a loss"),
        (("--corpus", "data"), "--corpus and --tokenizer go together"),
        (("--device", "cpu", "--cases", "huge"), "--cases huge: on a CPU there are mini-128"),
        (("--only", "loss", "--device", "cpu", "--steps", "5"), "--steps 5: the warm-up alone takes 100 steps"),
        (("--device", "cuda"), "torch finds no GPU here"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nope", "cannot be read as results"),
        ("[1, 2]", "something else than a benchmark"),
        ('{"a": 3}', "something else than a benchmark"),
        ('{"device": "cpu", "cases": 3}', "something else than a benchmark"),
        ('{"device": "nvidia-h200"}', "results of another device, nvidia-h200"),
    ],
)
def test_a_file_of_something_else_is_refused_before_anything_is_measured(
    content: str, message: str, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    out.write_text(content)
    assert message in refused("--device", "cpu", "--cases", "tiny", "--out", str(out))
    assert out.read_text() == content
