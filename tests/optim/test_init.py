"""The table of optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch

from maskloom import config as config_module
from maskloom.config import Optimizer, OptimizerSection, RunConfig
from maskloom.config_file import dump_config, parse_config
from maskloom.errors import UserError
from maskloom.optim import OPTIMIZERS, add, parameter_groups
from maskloom.optim.kind import Group, OptimizerKind, Spread
from tests.trees import tree_with


def test_the_configuration_knows_the_same_names_and_settings() -> None:
    """config.py is below this package: it knows names and settings alone."""
    assert {kind.name: kind.section for kind in OPTIMIZERS.values()} == config_module.OPTIMIZERS
    assert all(name == kind.name for name, kind in OPTIMIZERS.items())


class Settings(OptimizerSection):
    """Of an optimizer that the tests add."""

    cycles: int = 2

    @classmethod
    def faults(cls, optimizer: Optimizer) -> list[str]:
        return [] if optimizer.gradient_clipping else ["name added needs gradient_clipping: set it to 1.0"]


@pytest.fixture
def added() -> Iterator[OptimizerKind]:
    """One more row, with settings of its own; gone afterwards."""
    kind = OptimizerKind("added", lambda groups, *_: torch.optim.SGD(groups), 8, "Added", section=Settings)
    add(kind)
    yield kind
    del OPTIMIZERS["added"], config_module.OPTIMIZERS["added"], Optimizer.model_fields["added"]
    config_module.ADDED.remove("added")
    for model in (Optimizer, RunConfig):
        model.model_rebuild(force=True)


def test_a_row_is_named_by_configurations_with_settings_of_its_own(added: OptimizerKind) -> None:
    config = parse_config(tree_with(optimizer={"name": "added", "added": {"cycles": 3}}), "here")
    assert config.optimizer.added == Settings(cycles=3)
    assert "  added:\n    cycles: 3\n" in dump_config(config)
    assert parse_config(config.model_dump(mode="json", by_alias=True), "here") == config


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"name": "added", "added": {"cycle": 3}}, "unknown key 'optimizer.added.cycle': did you mean 'cycles'?"),
        ({"added": {}}, "optimizer: added means nothing for name adamw: remove it, or set name to added"),
        ({"name": "added", "gradient_clipping": 0.0}, "optimizer: name added needs gradient_clipping: set it to 1.0"),
        (
            {"name": "adden"},
            "optimizer.name = 'adden': should be one of adamw, lamb, muon, stable_adamw, added; one of your own needs",
        ),
    ],
)
def test_its_settings_are_checked_as_ours_are(optimizer: dict, said: str, added: OptimizerKind) -> None:
    with pytest.raises(UserError) as error:
        parse_config(tree_with(optimizer=optimizer), "here")
    assert said in str(error.value)


def test_a_run_of_another_optimizer_does_not_hear_of_it(added: OptimizerKind) -> None:
    assert "added" not in dump_config(parse_config(tree_with(), "here"))


@pytest.mark.parametrize("name", ["adamw", "lr", "copy", "_own", "not a name", ""])
def test_a_name_that_is_taken_or_is_none_is_refused(name: str) -> None:
    kind = OptimizerKind(name, lambda groups, *_: torch.optim.SGD(groups), 8, "None")
    with pytest.raises(ValueError, match="cannot be named"):
        add(kind)
    assert OPTIMIZERS.keys() == config_module.OPTIMIZERS.keys() == {"adamw", "lamb", "muon", "stable_adamw"}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (lambda weight, bias: [{"params": [weight, bias], "weight_decay": 0.0}], "needs params, weight_decay and rate"),
        (lambda weight, bias: [{"params": [weight], "weight_decay": 0.0, "rate": 1.0}], "bias is 0 times in them"),
        (lambda weight, bias: [{"params": [weight, bias, bias], "weight_decay": 0.0, "rate": 1.0}], "bias is 2 times"),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    groups: Callable[..., list[Group]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = dataclasses.replace(OPTIMIZERS["adamw"], groups=lambda model, settings: groups(model.weight, model.bias))
    monkeypatch.setitem(OPTIMIZERS, "adamw", kind)
    with pytest.raises(UserError, match=said):
        parameter_groups(torch.nn.Linear(2, 2), Optimizer())


def test_only_muon_does_not_go_with_a_way_to_spread() -> None:
    ways = [
        Spread(stage, precision, more) for stage in range(4) for precision in ("fp32", "bf16") for more in (False, True)
    ]
    refused = {(name, way) for name, kind in OPTIMIZERS.items() for way in ways if kind.refusal(way)}
    assert refused == {("muon", Spread(2, "bf16", True))}
