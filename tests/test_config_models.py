"""The section `model`: each architecture has its own fields, and what phases may set of them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from maskloom.config import MODELS, ModernBert, RunConfig
from maskloom.config_file import dump_config, load_config, parse_config, rechecked
from maskloom.errors import UserError
from tests.trees import tree_with

FULL, WINDOW = "full_attention", "sliding_attention"
SMALL = {"architecture": "modernbert", "num_hidden_layers": 3}


def read(model: dict[str, Any], **more: Any) -> RunConfig:
    return parse_config(tree_with(model=model, **more), "here")


@pytest.mark.parametrize("name", MODELS)
def test_a_section_of_each_architecture_reads_back(name: str) -> None:
    config = read({"architecture": name, "num_hidden_layers": 3})
    assert type(config.model) is MODELS[name]
    assert parse_config(yaml.safe_load(dump_config(config)), "dump") == config


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"global_rope_theta": 1e4}, "it belongs to architecture modernbert, and model.architecture is bert"),
        (
            {"architecture": "roberta", "layer_types": [FULL]},
            "architecture modernbert, and model.architecture is roberta",
        ),
        ({"architecture": "modernbert", "hidden_act": "gelu"}, "and model.architecture is modernbert"),
        (
            {"architecture": "modernbert", "hidden_act": "gelu"},
            "belongs to architecture bert, roberta, xlm-roberta and camembert,",
        ),
        ({"architecture": "modernbert", "hidden_act": "gelu"}, "is modernbert; did you mean 'hidden_activation'?"),
        ({"architecture": "ModernBert"}, "there is no such architecture; did you mean 'modernbert'? there are bert,"),
        ({"architecture": "xlm_roberta"}, "did you mean 'xlm-roberta'?"),
        ({"architecture": "deberta"}, "there is no such architecture; there are bert,"),
        ({"architecture": "modernbert", "type_vocab_size": 2}, "it belongs to architecture roberta"),
        ({"init": "folder", "global_rope_theta": 1e4}, "it belongs to architecture modernbert"),
        ({"init": "folder", "architecture": "modernbert", "local_rope_theta": 1e4}, "remove local_rope_theta"),
        (SMALL | {"layer_types": [FULL, WINDOW]}, "layer_types names 2 layers, and num_hidden_layers is 3"),
        (SMALL | {"layer_types": [FULL, WINDOW, "window"]}, "model.layer_types.2 = 'window'"),
        (
            SMALL | {"layer_types": [FULL, WINDOW, FULL], "global_attn_every_n_layers": 2},
            "layer_types and global_attn_every_n_layers say the same: remove one of them",
        ),
        (SMALL | {"hidden_size": 36}, "hidden_size 36 / num_attention_heads 12 is odd"),
        (SMALL | {"hidden_size": 70}, "hidden_size 70 is not a multiple of num_attention_heads 12"),
        (SMALL | {"local_attention": 1}, "model.local_attention = 1"),
        (SMALL | {"global_rope_theta": 0}, "model.global_rope_theta = 0"),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        read(model)
    assert said in str(error.value)


def test_layer_types_stand_in_the_place_of_their_number(write_config: Any) -> None:
    types = (WINDOW, FULL, WINDOW)
    config = read(SMALL | {"layer_types": list(types)})
    assert isinstance(config.model, ModernBert)
    assert config.model.layer_types == types
    again = parse_config(yaml.safe_load(dump_config(config)), "dump")
    assert again == config
    assert "global_attn_every_n_layers" not in dump_config(config)
    path = write_config(tree_with(model=SMALL))
    assert load_config(path, [f"model.layer_types=[{', '.join(types)}]"]).model == config.model


def test_what_may_be_given_beside_init_is_kept_if_it_was_given() -> None:
    start = {"architecture": "modernbert", "init": "folder"}
    config = read(start | {"global_rope_theta": 1e6})
    again = rechecked(config, "dump")
    assert again == config
    assert config.model.given_beside_init() == again.model.given_beside_init() == {"global_rope_theta": 1e6}
    assert rechecked(read(start), "dump").model.given_beside_init() == {}


def phases(*thetas: float | None) -> list[dict[str, Any]]:
    return [{"steps": 5, "global_rope_theta": theta} for theta in thetas]


@pytest.mark.parametrize(
    ("thetas", "by_step"),
    [
        ((None, None, None), [{}] * 15),
        ((1e4, None, 16e4), [{"global_rope_theta": 1e4}] * 10 + [{"global_rope_theta": 16e4}] * 5),
        ((None, 16e4, None), [{}] * 5 + [{"global_rope_theta": 16e4}] * 10),
    ],
)
def test_what_a_phase_sets_holds_from_its_first_step_on(thetas: tuple[float | None, ...], by_step: list[Any]) -> None:
    config = read(SMALL, phases=phases(*thetas))
    assert [config.model_at(step) for step in range(1, 16)] == by_step
    assert config.model_at(0) == by_step[0]
    assert config.model_at(99) == by_step[-1]


def test_what_a_phase_sets_is_refused_for_a_model_that_does_not_have_it() -> None:
    said = r"phases\.1\.global_rope_theta 160000: architecture bert has no global_rope_theta: remove it"
    with pytest.raises(UserError, match=said):
        read({}, phases=phases(None, 16e4))
    with pytest.raises(UserError, match=said):
        read({"architecture": "bert", "init": "folder"}, phases=phases(None, 16e4))
    unknown = read(
        {"init": "folder"}, phases=phases(None, 16e4)
    )  # the checkpoint says what it is, and then it is checked
    with pytest.raises(UserError, match=said):
        rechecked(unknown, "dump")
