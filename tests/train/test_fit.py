"""What of the model a run that begins from another's checkpoint has to leave as it is, for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskloom.config import MODELS, RunConfig
from maskloom.config_file import dump_config, parse_config
from maskloom.errors import UserError
from maskloom.train.checkpoint.fit import fit_origin
from tests.architectures import EACH, tiny

CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"intermediate_size": 96, "max_position_embeddings": 80} for name in MODELS},
    "roberta": {"type_vocab_size": 2, "layer_norm_eps": 1e-6},
    "modernbert": {
        "local_attention": 10,
        "local_rope_theta": 50.0,
        "norm_bias": True,
        "tie_word_embeddings": False,
        "classifier_activation": "silu",
        "global_attn_every_n_layers": 2,
    },
}


@pytest.fixture
def forked(run_config: dict, tmp_path: Path) -> Callable[..., RunConfig]:
    """The configuration of a fork from a run of an architecture, with another section `model`."""

    def fork(architecture: str, /, **model: Any) -> RunConfig:
        tree = {**run_config, "model": tiny(architecture)}
        origin = Path(tree["run_dir"])
        origin.mkdir(exist_ok=True)
        (origin / "config.yaml").write_text(dump_config(parse_config(tree, "run.yaml")))
        changed = {**tree, "run_dir": str(tmp_path / "fork"), "from": str(origin), "model": {**tree["model"], **model}}
        return parse_config(changed, "fork.yaml")

    return fork


@EACH
def test_dropouts_may_change_and_nothing_of_the_shape(architecture: str, forked: Callable[..., RunConfig]) -> None:
    config = forked(architecture, **dict.fromkeys(MODELS[architecture].dropouts, 0.25))
    assert fit_origin(config, {}).model == config.model
    for name, value in CHANGES[architecture].items():
        with pytest.raises(UserError, match=f"  model.{name}: .*, {value!r} now"):
            fit_origin(forked(architecture, **{name: value}), {})


def test_a_fork_counts_the_tokens_of_the_whole_run(run_config: dict, tmp_path: Path) -> None:
    """Those of the steps that were done before it among them."""
    origin = Path(run_config["run_dir"])
    origin.mkdir()
    (origin / "config.yaml").write_text(dump_config(parse_config(run_config, "run.yaml")))
    fork = {**run_config, "run_dir": str(tmp_path / "fork"), "from": f"{origin}@12"}
    fork["phases"] = [{**run_config["phases"][0], "steps": None, "tokens": 5000}]  # 384 a step
    assert fit_origin(parse_config(fork, "fork.yaml"), {}).total_steps == 14
    fork["phases"][0]["tokens"] = 4000
    with pytest.raises(UserError, match=r"steps: 12 done in .*, 11 in all now"):
        fit_origin(parse_config(fork, "fork.yaml"), {})


def test_a_run_of_another_architecture_is_refused(forked: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"  model.architecture: 'roberta' in .*, 'camembert' now"):
        fit_origin(forked("roberta", architecture="camembert"), {})
