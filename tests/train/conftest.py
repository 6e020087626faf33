"""Run directories, begun and closed again."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from maskloom.config import RunConfig
from maskloom.config_file import parse_config
from maskloom.distributed import World
from maskloom.models.build import build_model
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.run_dir import RunDir

ALONE = World()


@pytest.fixture
def config(run_config: dict) -> RunConfig:
    return parse_config(run_config, "run.yaml")


@pytest.fixture
def begin(tokenizer: Tokenizer) -> Callable[..., RunDir]:
    """Open a run directory and make it a run, as at its first step."""

    def begun(config: RunConfig, world: World = ALONE, step: int = 0) -> RunDir:
        run = RunDir(config, world)
        run.meet()
        model, _ = build_model(config.model, tokenizer, 0)
        run.begin(config, model, tokenizer, world, step)
        return run

    return begun


@pytest.fixture
def started(config: RunConfig, begin: Callable[..., RunDir]) -> RunConfig:
    """A run that was begun and closed again."""
    begin(config).close()
    return config


Change = Callable[..., RunConfig]


@pytest.fixture
def changed(run_config: dict) -> Change:
    """The configuration with some dotted keys set otherwise."""

    def change(**settings: object) -> RunConfig:
        tree = json.loads(json.dumps(run_config))
        for key, value in settings.items():
            node, *parents = tree, *key.split("__")
            for name in parents[:-1]:
                node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
            node[parents[-1]] = value
        return parse_config(tree, "run.yaml")

    return change
