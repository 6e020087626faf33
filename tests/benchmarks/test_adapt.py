"""The walk of docs/adapt.md: what its table says, and that a walk which was stopped makes nothing again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskloom.errors import UserError

from .scripts import load

adapt = load("adapt")

MODELS = ("head", "plain", "mixed", "extended")
LOSSES = {"nats_per_byte": 2.5, "loss": 7.0, "word_accuracy": 0.1}


def _seed(plain: float) -> dict[str, Any]:
    domain = {model: dict(LOSSES) for model in MODELS}
    domain["plain"]["word_accuracy"] = plain
    return {"domain": domain}


def test_the_table_has_means_and_deviations_of_what_differs_between_seeds() -> None:
    lines = adapt.table([_seed(0.10), _seed(0.12), _seed(0.14)])
    assert lines[0] == "| 3 seed(s) | | head | plain | mixed | extended |"
    assert lines[2:] == [
        "| domain | nats a byte | 2.500 | 2.500 | 2.500 | 2.500 |",
        "| domain | loss a token | 7.00 | 7.00 | 7.00 | 7.00 |",
        "| domain | words right, % | 10.0 | 12.0 ± 2.0 | 10.0 | 10.0 |",
    ]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The commands that the walk would run. `export` makes the folder of its model."""
    calls: list[tuple[object, ...]] = []

    def pretend(*arguments: object, output: Any = None) -> None:
        calls.append(arguments)
        if arguments[0] == "export":
            Path(str(arguments[2])).mkdir()
        if output is not None:
            output.write('{"models": []}\n')

    monkeypatch.setattr(adapt, "_maskloom", pretend)
    return calls


def test_what_exists_is_not_made_again(tmp_path: Path, called: list[tuple[object, ...]]) -> None:
    settings = {"optimizer": {"lr": 1.0e-3}}
    for _ in range(2):
        adapt._train(tmp_path, "plain-1", 1, settings, 20)
        assert adapt._answer(tmp_path / "domain-1.json", "eval", "plain-1") == {"models": []}
    assert [arguments[0] for arguments in called] == ["train", "export", "eval"]


def test_a_walk_with_other_settings_is_refused(tmp_path: Path, called: list[tuple[object, ...]]) -> None:
    settings = {"optimizer": {"lr": 1.0e-3}}
    adapt._train(tmp_path, "plain-1", 1, settings, 20)
    with pytest.raises(UserError, match=r"plain-1\.yaml has other settings"):
        adapt._train(tmp_path, "plain-1", 1, settings, 30)
    assert len(called) == 2
