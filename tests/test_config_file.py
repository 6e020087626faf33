"""From a file and the command line to a configuration and back; what is refused, and in which words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import RunConfig
from maskloom.config_file import (
    QUERY_LEFT_OUT,
    apply_override,
    differences,
    dump_config,
    load_config,
    parse_config,
    saved_form,
)
from maskloom.data.plan import open_corpora
from maskloom.errors import UserError
from tests.trees import tree_with


def leaves(node: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key whose value is no section."""
    if isinstance(node, dict) and prefix != ("deepspeed",):
        return [path for key, value in node.items() for path in leaves(value, (*prefix, key))]
    if isinstance(node, list):
        return [path for place, value in enumerate(node) for path in leaves(value, (*prefix, str(place)))]
    return [prefix]


FULL = parse_config(tree_with(), "here").model_dump(mode="json", by_alias=True)


@st.composite
def configurations(draw: st.DrawFn) -> RunConfig:
    lanes = draw(st.integers(1, 8))
    phases = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "steps": st.integers(1, 1000),
                    "seq_len": st.integers(32, 512),
                    "global_batch_rows": st.integers(1, 9).map(lambda rows: rows * lanes),
                }
            ),
            min_size=1,
            max_size=3,
        )
    )
    return parse_config(
        tree_with(
            seed=draw(st.integers(0, 2**63 - 1)),
            phases=phases,
            data={"train": draw(st.text("abc/ é'#:", min_size=1)), "lanes": draw(st.sampled_from([None, lanes]))},
            masking={"rate": draw(st.floats(1 / 30, 1)), "mask_share": draw(st.floats(0, 0.5))},
            model=draw(st.sampled_from([{}, {"hidden_size": 48, "num_attention_heads": 4}, {"init": "some/bert"}])),
            deepspeed=draw(st.dictionaries(st.text("abc", min_size=1), st.integers() | st.booleans(), max_size=2)),
        ),
        "here",
    )


@settings(max_examples=40, deadline=None)
@given(configurations())
def test_a_dumped_configuration_reads_back_equal(config: RunConfig) -> None:
    assert parse_config(yaml.safe_load(dump_config(config)), "dump") == config


def test_precedence_is_default_then_file_then_override(write_config: Any) -> None:
    path = write_config(tree_with(seed=4, logging={"every_steps": 7}))
    config = load_config(path, ["seed=5", "checkpoint.every_steps=9"])
    assert (config.seed, config.logging.every_steps, config.checkpoint.every_steps) == (5, 7, 9)
    assert config.optimizer == RunConfig.model_fields["optimizer"].default


@pytest.mark.parametrize("path", leaves(FULL), ids=".".join)
def test_a_misspelt_key_is_refused_with_the_right_one(path: tuple[str, ...]) -> None:
    tree = tree_with()
    node: Any = tree
    for name in path[:-1]:
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
    wrong = path[-1] + path[-1][-1]
    node[wrong] = 1
    with pytest.raises(UserError) as error:
        parse_config(tree, "here")
    assert f"unknown key '{'.'.join((*path[:-1], wrong))}': did you mean '{path[-1]}'?" in str(error.value)


def test_a_key_unlike_any_other_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown key 'masking\.qqq': known here: rate, final_rate, unit"):
        parse_config(tree_with(masking={"qqq": 1}), "here")


def test_all_faults_are_named_at_once() -> None:
    tree = tree_with(
        optimizer={"lr": -1.0, "beta3": 0.5},
        phases=[{"steps": 0}, {"steps": 3, "seq_len": "long"}],
        engine={"precision": "fp8"},
        masking={"mask_share": 0.8, "random_share": 0.3},
    )
    del tree["tokenizer"]
    with pytest.raises(UserError) as error:
        parse_config(tree, "my.yaml")
    text = str(error.value)
    assert text.startswith("my.yaml:")
    for said in (
        "optimizer.lr = -1.0",
        "'optimizer.beta3'",
        "phases.0.steps = 0",
        "phases.1.seq_len = 'long'",
        "engine.precision = 'fp8'",
        "mask_share 0.8 + random_share 0.3",
        "tokenizer: it is missing",
    ):
        assert said in text
    assert len(text.splitlines()) == 1 + 7


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10**6), st.floats(1e-12, 1e3), st.sampled_from(["fp32", "bf16"]))
def test_an_override_says_the_same_as_the_file(steps: int, lr: float, precision: str) -> None:
    tree = tree_with()
    for override in (f"phases.0.steps={steps}", f"optimizer.lr={lr!r}", f"engine.precision={precision}"):
        apply_override(tree, override)
    expected = tree_with(phases=[{"steps": steps}], optimizer={"lr": lr}, engine={"precision": precision})
    assert parse_config(tree, "a") == parse_config(expected, "b")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=1e-4", 1e-4),
        ("data.lanes=null", None),
        ("deepspeed.a.b=1", {"a": {"b": 1}}),
        ("data.train=", None),
    ],
)
def test_values_of_overrides_are_yaml(override: str, value: Any) -> None:
    tree = tree_with()
    apply_override(tree, override)
    first, second = override.partition("=")[0].split(".")[:2]
    node = tree[first] if first == "deepspeed" else tree[first][second]
    assert node == value


def test_a_number_with_an_exponent_is_a_number_where_deepspeed_gets_it(write_config: Any) -> None:
    config = load_config(write_config(tree_with()), ["deepspeed.bucket=5e8"])
    assert config.deepspeed == {"bucket": 5e8}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("phases.0.steps", "is not key=value"),
        ("=3", "is not key=value"),
        ("phases.1.steps=3", "'1' is no item of a list of 1"),
        ("phases.-1.steps=3", "'-1' is no item of a list of 1"),
        ("phases.first.steps=3", "'first' is no item of a list of 1"),
        ("phases.1={}", "'1' is no item of a list of 1"),
        ("seed.deep=3", "seed holds a plain value"),
        ("seed.very.deep=3", "is below a plain value"),
        ("optimizer.lr=[1", "not valid YAML"),
        ("optimizer.lrr=1", "did you mean 'lr'?"),
        ("phases.0.step=20", "did you mean 'steps'?"),
        ("seed=-1", "seed = -1"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last = 1"),
    ],
)
def test_a_bad_override_is_refused(override: str, said: str, write_config: Any) -> None:
    with pytest.raises(UserError) as error:
        load_config(write_config(tree_with(seed=1)), [override])
    assert said in str(error.value)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- 1\n- 2\n", b"", b"just text"])
def test_a_file_that_holds_no_settings_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_config(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no configuration file .*none\.yaml"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=str(tmp_path)):
        load_config(tmp_path)


@pytest.mark.parametrize("path", leaves(FULL), ids=".".join)
def test_differences_names_the_one_leaf_that_differs(path: tuple[str, ...]) -> None:
    other = copy.deepcopy(FULL)
    node: Any = other
    for name in path[:-1]:
        node = node[int(name)] if isinstance(node, list) else node[name]
    before = node[path[-1]]
    node[path[-1]] = "changed"
    assert differences(FULL, other) == {".".join(path): (before, "changed")}
    assert differences(FULL, FULL) == {}


def test_differences_names_phases_that_one_side_lacks() -> None:
    assert differences({"phases": [1]}, {"phases": [1, 2]}) == {"phases.1": (None, 2)}


class TestSecrets:
    def test_every_key_with_a_secret_is_named_and_no_value(self, run_config: dict) -> None:
        run_config["data"]["train"] = "https://ada:S3CRET@host/shards"
        run_config["deepspeed"] = {
            "comet": {"enabled": True, "api_key": "S3CRET"},
            "csv_monitor": {"password": "S3CRET"},
        }
        with pytest.raises(UserError) as error:
            parse_config(run_config, "run.yaml")
        message = str(error.value)
        assert "S3CRET" not in message
        assert [line.split(":")[0] for line in message.splitlines()] == [
            "run.yaml",
            "  data.train",
            "  deepspeed.comet.api_key",
            "  deepspeed.csv_monitor.password",
        ]
        assert "the variable of the environment" in message

    @pytest.mark.parametrize("place", ["tokenizer", "run_dir", "model__init", "data__storage__cache"])
    def test_a_url_with_a_password_is_refused_everywhere(self, place: str, run_config: dict) -> None:
        node, *parents = run_config, *place.split("__")
        for name in parents[:-1]:
            node = node.setdefault(name, {})
        node[parents[-1]] = "http://ada:S3CRET@host/x"
        with pytest.raises(UserError, match=rf"{place.replace('__', '.')}: a URL here holds no user") as error:
            parse_config(run_config, "run.yaml")
        assert "S3CRET" not in str(error.value)

    def test_on_the_command_line_too(self, run_config: dict, write_config: Callable[..., Path]) -> None:
        with pytest.raises(UserError, match=r"deepspeed\.wandb\.api_key: by its name a secret") as error:
            load_config(write_config(run_config), ["deepspeed.wandb.api_key=S3CRET"])
        assert "S3CRET" not in str(error.value)
        with pytest.raises(UserError, match=r"the value of 'deepspeed\.x' is not valid YAML") as error:
            load_config(write_config(run_config), ["deepspeed.x=[S3CRET"])
        assert "S3CRET" not in str(error.value)

    def test_the_query_of_a_url_is_not_saved(self, run_config: dict) -> None:
        url = "https://host/shards?X-Amz-Signature=S3CRET"
        for train in (url, [{"path": url, "weight": 2.0}, {"path": "/local"}]):
            config = parse_config({**run_config, "data": {**run_config["data"], "train": train}}, "run.yaml")
            saved = dump_config(saved_form(config))
            assert "S3CRET" not in saved
            assert (
                parse_config(yaml.safe_load(saved), "saved").data.corpora[0].path
                == f"https://host/shards{QUERY_LEFT_OUT}"
            )
            with pytest.raises(UserError, match=r"the query of this URL was not saved with the run") as error:
                open_corpora(parse_config(yaml.safe_load(saved), "saved").data)
            assert "data.train=URL" in str(error.value)
        assert saved_form(parse_config(run_config, "x")) == parse_config(run_config, "x")
