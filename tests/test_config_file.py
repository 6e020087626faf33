"""From a file and the command line to a configuration and back; what is refused, and in which words."""

from __future__ import annotations

import copy
import os
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
    without_queries,
)
from maskloom.data.plan import open_corpora
from maskloom.errors import UserError
from maskloom.plain_yaml import read_yaml
from tests.trees import tree_with


def leaves(node: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key whose value is no section."""
    if isinstance(node, dict) and prefix != ("deepspeed",):
        return [path for key, value in node.items() for path in leaves(value, (*prefix, key))]
    if isinstance(node, list):
        return [path for place, value in enumerate(node) for path in leaves(value, (*prefix, str(place)))]
    return [prefix]


FULL = parse_config(tree_with(), "here").model_dump(mode="json", by_alias=True)


texts = st.sampled_from(["no", "1e3", "0123", "1:40", "~", "true", "a #b", "2026-11-28", "'", "a\u2028b"]) | st.text(
    min_size=1
)


PLAIN_VALUES = st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


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
            data={"train": draw(texts), "lanes": draw(st.sampled_from([None, lanes]))},
            masking={
                "rate": draw(st.floats(1 / 30, 1)),
                "mask_share": draw(st.floats(0, 0.5)),
                "protected": draw(st.lists(texts, max_size=3)),
            },
            model=draw(st.sampled_from([{}, {"hidden_size": 48, "num_attention_heads": 4}, {"init": "some/bert"}])),
            deepspeed=draw(
                st.dictionaries(
                    texts,
                    st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | texts,
                    max_size=2,
                )
            ),
        ),
        "here",
    )


@settings(max_examples=40, deadline=None)
@given(configurations())
def test_a_dumped_configuration_reads_back_equal(config: RunConfig) -> None:
    assert parse_config(read_yaml(dump_config(config), "dump"), "dump") == config
    assert parse_config(yaml.safe_load(dump_config(config)), "dump") == config


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "{a: [1, .inf]}"])
def test_the_deepspeed_block_holds_what_json_can(value: str, write_config: Any) -> None:
    """A run's config.yaml would not read back as it was."""
    with pytest.raises(UserError, match=r"(?s)deepspeed.*not finite"):
        load_config(write_config(tree_with()), [f"deepspeed.key={value}"])
    with pytest.raises(UserError, match=r"(?s)deepspeed.*not finite"):
        parse_config(tree_with(deepspeed={"key": [float("inf")]}), "here")


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


def test_a_value_instead_of_a_section_is_refused_with_its_keys() -> None:
    with pytest.raises(
        UserError, match=r"evaluation\.probe = 'topics\.csv' is not a section; its keys are data, test, text"
    ):
        parse_config(tree_with(evaluation={"every_steps": 5, "probe": "topics.csv"}), "here")


WRONG = """\
run_dir: runs/first
tokenizer: data/tokenizer
data: {train: data/shards}
phase:
  - steps: 100
optimizer:
  lr: -1
  beta3: 0.5
model:
  hidden_size: 100
  num_attention_heads: 7
deepspeed:
  zero_optimization:
    stage: 0x1
lr: 1
"""


def test_faults_name_their_lines_in_the_order_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "wrong.yaml", ["optimizer.beta1=2"])
    first, *faults = str(error.value).split("\n")
    assert first == f"{tmp_path / 'wrong.yaml'}:"
    assert [fault[: fault.index(": ")] for fault in faults] == [
        "  line 4", "  line 7", "  line 8", "  lines 10 and 11", "  line 14", "  line 15", "  command line"
    ]  # fmt: skip
    assert faults[0] == "  line 4: unknown key 'phase': did you mean 'phases'?"  # and it is not missing as well
    assert "'zero_optimization': 'stage': '0x1' is read in different ways" in faults[4]
    assert "'lr': did you mean 'optimizer.lr'? known here: run_dir, " in faults[5]
    assert "optimizer.beta1 = 2.0" in faults[6]


def test_all_settings_that_cannot_be_set_are_named_at_once(write_config: Any) -> None:
    with pytest.raises(UserError, match=r"(?s)^'foo' is not key=value.*\n'phases\.9\.steps': 'phases' is a list of 1"):
        load_config(write_config(tree_with()), ["foo", "phases.9.steps=1"])


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


def with_override(override: str, write_config: Any) -> RunConfig:
    return load_config(write_config(tree_with(seed=1)), [override])


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("run_dir", "runs/a #2", "runs/a #2"),
        ("run_dir", "  runs/a: b\t", "runs/a: b"),
        ("run_dir", "a=b", "a=b"),
        ("run_dir", "=x", "=x"),
        ("run_dir", "#2", "#2"),
        ("run_dir", "!!int 3", "!!int 3"),
        ("run_dir", "&a", "&a"),
        ("run_dir", "- a", "- a"),
        ("run_dir", "---", "---"),
        ("run_dir", "2026-11-28", "2026-11-28"),
        ("run_dir", "0123", "0123"),
        ("run_dir", "1e3", "1e3"),
        ("run_dir", "'off'", "off"),
        ("run_dir", '"a\\tb"', None),
        ("run_dir", "off", None),
        ("run_dir", "true", None),
        ("run_dir", "null", None),
        ("run_dir", "", None),
        ("run_dir", "\xa0", None),
        ("data.storage.cache", "off", None),
        ("seed", "12", 12),
        ("seed", "+12", 12),
        ("seed", "12.0", 12),
        ("seed", "1e3", 1000),
        ("seed", "9007199254740993.0", 9007199254740993),
        ("seed", str(2**63 - 1), 2**63 - 1),
        ("seed", str(2**63), None),
        ("seed", "9" * 5000, None),
        ("seed", "1e999999999", None),
        ("seed", "1e99999999999999999999", None),
        ("seed", "0123", None),
        ("seed", "0x1F", None),
        ("seed", "0o17", None),
        ("seed", "0b1", None),
        ("seed", "1_000", None),
        ("seed", "1:40", None),
        ("seed", "12 #3", None),
        ("seed", "2026-11-28", None),
        ("seed", "１２", None),
        ("seed", "'12'", None),
        ("seed", "true", None),
        ("seed", "1.5", None),
        ("seed", "[1]", None),
        ("seed", "", None),
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", ".5", 0.5),
        ("optimizer.lr", "1.", 1.0),
        ("optimizer.lr", "true", None),
        ("optimizer.lr", "1e999", None),
        ("optimizer.lr", "inf", None),
        ("optimizer.lr", ".inf", None),
        ("optimizer.lr", ".nan", None),
        ("optimizer.lr", "'1'", None),
        ("optimizer.lr", "1_0.5", None),
        ("timeouts.train_s", "1:40", None),
        ("engine.activation_checkpointing", "true", True),
        ("engine.activation_checkpointing", "False", False),
        ("engine.activation_checkpointing", "yes", None),
        ("engine.activation_checkpointing", "1", None),
        ("engine.activation_checkpointing", "'true'", None),
        ("engine.zero_stage", "2", 2),
        ("engine.zero_stage", "true", None),
        ("engine.overlap", "null", "nothing"),
        ("data.lanes", "", "nothing"),
        ("data.train", "data/a #1", "data/a #1"),
        ("data.train", "2026", "2026"),
        ("masking.protected", "[a, 7, 'no']", ("a", "7", "no")),
        ("masking.protected", "[a, no]", None),
        ("masking.protected", "[a] #b", None),
        ("optimizer", "lr: 3", None),
    ],
)
def test_a_value_on_the_command_line_is_what_it_says_or_refused(
    key: str, written: str, value: Any, write_config: Any
) -> None:
    if value is None:
        with pytest.raises(UserError, match=key):
            with_override(f"{key}={written}", write_config)
        return
    found: Any = with_override(f"{key}={written}", write_config)
    for name in key.split("."):
        found = getattr(found, name)
    expected = None if value == "nothing" else value
    assert (found, type(found)) == (expected, type(expected))


words = st.one_of(
    st.sampled_from(
        ["true", "No", "1e3", "0123", "0o7", "1:40", "2026-11-28", "~", "1_0", "5", "-0.5", ".5", "y", "x"]
    ),
    st.from_regex(r"[-+0-9._:eExob~yn]{1,6}", fullmatch=True),
)


@settings(max_examples=300, deadline=None)
@given(
    words,
    st.sampled_from(
        [
            "run_dir",
            "seed",
            "optimizer.lr",
            "engine.overlap",
            "checkpoint.keep_every_steps",
            "deepspeed.a",
            "model.init",
        ]
    ),
)
def test_a_word_means_the_same_in_a_file_and_on_the_command_line(word: str, key: str) -> None:
    try:
        in_file = read_yaml(f"value: {word}\n", "file")["value"]
    except UserError:  # no value of its own in YAML, such as `-:`
        return
    *sections, last = key.split(".")
    written = {last: in_file}
    for name in reversed(sections):
        written = {name: written}
    outcomes: list[Any] = []
    for tree, override in ((tree_with(**written), None), (tree_with(), f"{key}={word}")):
        try:
            if override:
                apply_override(tree, override)
            outcomes.append(parse_config(tree, "here"))
        except UserError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "written", ["0123", "1_000", "0x1F", "1:40", "yes", "y", "2026-11-28", "=", "9" * 500, "1e999"]
)
def test_what_versions_of_yaml_read_differently_is_refused_where_no_type_is_known(
    written: str, write_config: Any
) -> None:
    with pytest.raises(UserError, match=r"deepspeed.*'a': 'b': "):
        with_override(f"deepspeed.a.b={written}", write_config)
    assert with_override(f"deepspeed.a.b='{written}'", write_config).deepspeed == {"a": {"b": written}}


@pytest.mark.parametrize("key", ["no", "1", "0.5", "null", "~", "true", "y", "0123", "2026-11-28"])
def test_a_key_that_may_be_no_text_is_refused_where_no_key_is_known(key: str, write_config: Any) -> None:
    for tree, place in ((f"{{{key}: 1}}", ""), (f"{{a: [{{{key}: 1}}]}}", "'a': 0: ")):
        with pytest.raises(UserError) as error:
            with_override(f"deepspeed={tree}", write_config)
        said = f'{place}the key {key!r} is read in different ways, and keys are text. If it is text, write "{key}"'
        assert said in str(error.value)
    found = with_override(f"deepspeed={{'{key}': {{a_b: 1}}}}", write_config)
    assert found.deepspeed == {key: {"a_b": 1}}
    assert parse_config(read_yaml(dump_config(found), "here"), "here") == found
    assert {type(name) for name in found.deepspeed} == {str}


def test_messages_say_what_to_write(write_config: Any) -> None:
    for override, said in (
        ("seed=0123", "seed = '0123': not a whole number, such as 1000 or 1e3: write 123, or 83 if it is octal"),
        ("seed=0x1F", "write 31"),
        ("deepspeed={a: 2026-11-28}", 'a date in some versions of YAML, and JSON has none. If it is text, write "2026'),
        ("seed='3'", "seed = '3': text, and a whole number belongs here: write it without quotes"),
        ("optimizer.lr=1_0", "write 10"),
        ("engine.overlap=on", "engine.overlap = 'on': neither true nor false"),
        ("run_dir=off", """If it is text, write "off" with the quotes (in a shell: '"off"')"""),
        ("masking.protected=[x, on]", "item 1, 'on': text belongs here"),
    ):
        with pytest.raises(UserError) as error:
            with_override(override, write_config)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"seed": True}, "seed = True: not a whole number"),
        ({"seed": "3"}, "seed = '3': text"),
        ({"seed": 1.5}, "seed = 1.5: not a whole number"),
        ({"optimizer": {"lr": True}}, "optimizer.lr = True: not a number"),
        ({"optimizer": {"lr": "1"}}, "optimizer.lr = '1': text"),
        ({"engine": {"overlap": 1}}, "engine.overlap = 1: neither true nor false"),
        ({"engine": {"zero_stage": True}}, "engine.zero_stage = True: not a whole number"),
        ({"run_dir": 3}, "run_dir = 3: text belongs here"),
        ({"run_dir": False}, "run_dir = False: text belongs here"),
        ({"masking": {"protected": ["a", 3]}}, "item 1, 3: text belongs here"),
    ],
)
def test_no_type_passes_for_another(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(tree_with(**tree), "here")
    assert said in str(error.value)


def test_escape_sequences_in_keys_and_values_are_shown(write_config: Any) -> None:
    for override in (
        "a\x1bb=https://ada:S3CRET@host",
        "deepspeed.a\x1bb.key=S3CRET",
        "phases.\x1b.steps=3",
        "se\x1bed",
    ):
        with pytest.raises(UserError) as error:
            with_override(override, write_config)
        assert str(error.value).replace("\n", "").isprintable()
        assert r"\x1b" in str(error.value)
    with pytest.raises(UserError) as error:
        load_config(write_config({**tree_with(), "a\x1b[31mb": 1, "seed": "\x1b[31m"}), ["run_dir=\x1b[2J"])
    assert str(error.value).replace("\n", "").isprintable()
    assert r"a\x1b[31mb" in str(error.value)


def test_a_number_with_an_exponent_is_a_number_where_deepspeed_gets_it(write_config: Any) -> None:
    config = load_config(write_config(tree_with()), ["deepspeed.bucket=5e8"])
    assert config.deepspeed == {"bucket": 5e8}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("phases.0.steps", "is not key=value"),
        ("=3", "is not key=value"),
        ("phases.1.steps=3", "is a list of 1, which has no item '1'"),
        ("phases.-1.steps=3", "is a list of 1, which has no item '-1'"),
        ("phases.first.steps=3", "is a list of 1, which has no item 'first'"),
        ("phases.1={}", "is a list of 1, which has no item '1'"),
        ("phases.00.steps=3", "is a list of 1, which has no item '00'"),
        ("phases.٠.steps=3", "is a list of 1, which has no item '٠'"),
        (f"phases.{'9' * 5000}.steps=3", "is a list of 1, which has no item"),
        ("seed.=3", "a part of the key 'seed.' is empty"),
        (".seed=3", "a part of the key '.seed' is empty"),
        ("phases..steps=3", "a part of the key 'phases..steps' is empty"),
        ("deepspeed.a. .b=3", "a part of the key 'deepspeed.a. .b' is empty"),
        ("..=3", "a part of the key '..' is empty"),
        ("model.init=''", "model.init = ''"),
        ("seed.deep=3", "'seed' holds one value"),
        ("seed.very.deep=3", "'seed' holds one value"),
        ("optimizer.lr=[1", "not valid YAML"),
        ("optimizer.lrr=1", "did you mean 'lr'?"),
        ("phases.0.step=20", "did you mean 'steps'?"),
        ("optimizer.learning_rate=1", "did you mean 'lr'?"),
        ("max_steps=20", "did you mean 'phases.0.steps'?"),
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


def test_a_pipe_is_read_where_a_shell_gives_one_and_not_waited_for_elsewhere(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(UserError, match=r"run\.yaml is not a file: it is a named pipe"):
        load_config(tmp_path / "run.yaml")
    out, into = os.pipe()
    try:
        os.write(into, yaml.safe_dump(tree_with(seed=5)).encode())
        os.close(into)
        assert load_config(f"/dev/fd/{out}").seed == 5
    finally:
        os.close(out)


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
        assert "Set the environment variable" in message

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
        with pytest.raises(UserError, match=r"deepspeed\.wandb\.api_key: its name says that it is a secret") as error:
            load_config(write_config(run_config), ["deepspeed.wandb.api_key=S3CRET"])
        assert "S3CRET" not in str(error.value)
        with pytest.raises(UserError, match=r"the value of 'deepspeed\.x' is not valid YAML") as error:
            load_config(write_config(run_config), ["deepspeed.x=[S3CRET"])
        assert "S3CRET" not in str(error.value)

    def test_the_query_of_a_url_is_not_saved(self, run_config: dict) -> None:
        url = "https://host/shards?X-Amz-Signature=S3CRET"
        for train in (url, [{"path": url, "weight": 2.0}, {"path": "/local"}]):
            config = parse_config({**run_config, "data": {**run_config["data"], "train": train}}, "run.yaml")
            saved = dump_config(config.model_copy(update={"data": without_queries(config.data)}))
            assert "S3CRET" not in saved
            assert (
                parse_config(yaml.safe_load(saved), "saved").data.corpora[0].path
                == f"https://host/shards{QUERY_LEFT_OUT}"
            )
            with pytest.raises(UserError, match=r"the query of this URL was not saved with the run") as error:
                open_corpora(parse_config(yaml.safe_load(saved), "saved").data)
            assert "data.train=URL" in str(error.value)
        plain = parse_config(run_config, "x").data
        assert without_queries(plain) == plain
