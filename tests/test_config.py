from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import (
    QUERY_LEFT_OUT,
    RunConfig,
    Section,
    _apply,
    differences,
    dump_config,
    load_config,
    parse_config,
    saved_form,
)
from maskloom.data.plan import open_corpora
from maskloom.errors import UserError


def tree_with(**more: Any) -> dict[str, Any]:
    """The least that a configuration says, and `more`."""
    return {"run_dir": "run", "tokenizer": "tok", "data": {"train": "corpus"}, "phases": [{"steps": 5}]} | more


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


def test_nothing_can_be_changed_after_reading() -> None:
    config = parse_config(tree_with(), "here")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.optimizer.lr = 1.0


def test_every_field_that_is_a_plain_value_says_its_default_once() -> None:
    """A default stands in the class: what a file leaves out is what the class says, in every section."""
    sections = [field.default for field in RunConfig.model_fields.values() if isinstance(field.default, Section)]
    assert sections
    for section in sections:
        assert section == type(section)()


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
        "'tokenizer' is missing",
    ):
        assert said in text
    assert len(text.splitlines()) == 1 + 7


@pytest.mark.parametrize("stage", [0, 1])
def test_whole_gradients_are_not_reduced_each_micro_batch(stage: int) -> None:
    for chosen in (2, 3):
        assert parse_config(tree_with(engine={"zero_stage": chosen, "reduce": "micro_batch"}), "here")
    with pytest.raises(UserError, match=f"stage {stage} holds whole gradients.*Set engine.reduce=step"):
        parse_config(tree_with(engine={"zero_stage": stage, "reduce": "micro_batch"}), "here")


def test_stage_0_does_not_overlap() -> None:
    assert parse_config(tree_with(engine={"zero_stage": 0, "overlap": False}), "here")
    with pytest.raises(UserError, match=r"stage 0 sends gradients after the backward\. Set engine\.overlap=false"):
        parse_config(tree_with(engine={"zero_stage": 0, "overlap": True}), "here")


def test_faults_across_sections_are_named_at_once() -> None:
    tree = tree_with(
        phases=[{"steps": 2, "seq_len": 640, "global_batch_rows": 10}, {"steps": 3, "global_batch_rows": 9}],
        optimizer={"warmup_steps": 5},
        data={"train": "corpus", "lanes": 4},
        evaluation={"seq_len": 513},
    )
    with pytest.raises(UserError) as error:
        parse_config(tree, "here")
    for said in (
        "optimizer.warmup_steps 5 must be less than the run's 5 steps",
        "phases.0.global_batch_rows 10 is no multiple of data.lanes 4",
        "phases.1.global_batch_rows 9 is no multiple of data.lanes 4",
        "phases.0.seq_len 640 is more than model.max_position_embeddings 512",
        "evaluation.seq_len 513 is more than",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"hidden_size": 100, "num_attention_heads": 12}, "hidden_size 100 is no multiple of num_attention_heads 12"),
        ({"init": "bert", "hidden_size": 768}, "remove hidden_size"),
        ({"hidden_act": "swish"}, "model.hidden_act = 'swish'"),
    ],
)
def test_an_impossible_model_is_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_config(tree_with(model=model), "here")


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_no_number_is_infinite_or_none(value: float) -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        parse_config(tree_with(optimizer={"lr": value}), "here")


def test_no_phase_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="phases"):
        parse_config(tree_with(phases=[]), "here")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10**6), st.floats(1e-12, 1e3), st.sampled_from(["fp32", "bf16"]))
def test_an_override_says_the_same_as_the_file(steps: int, lr: float, precision: str) -> None:
    tree = tree_with()
    for override in (f"phases.0.steps={steps}", f"optimizer.lr={lr!r}", f"engine.precision={precision}"):
        _apply(tree, override)
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
    _apply(tree, override)
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


TWO = {"train": [{"path": "a", "weight": 3}, {"path": "b"}]}


def test_one_corpus_and_several_are_a_list_of_corpora() -> None:
    one = parse_config(tree_with(), "here").data.corpora
    assert [(corpus.path, corpus.weight) for corpus in one] == [("corpus", 1.0)]
    several = parse_config(tree_with(data=TWO), "here").data.corpora
    assert [(corpus.path, corpus.weight) for corpus in several] == [("a", 3.0), ("b", 1.0)]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([], "data.train"),
        ([{"path": "a", "weight": 0}], "data.train"),
        ([{"path": "a", "weight": -1.0}], "data.train"),
        ([{"weight": 1.0}], "data.train"),
        (
            [{"path": "a", "weight": 1e7}],
            "data.train.0.weight = 10000000.0: input should be less than or equal to 1000000",
        ),
        ([{"path": "a"}, {"path": "b"}, {"path": "a"}], "data.train: a is listed twice: list it once"),
        (3, "data.train"),
        ([{"path": "a", "wieght": 1.0}], "did you mean 'weight'?"),
    ],
)
def test_corpora_that_cannot_be_mixed_are_refused(train: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(tree_with(data={"train": train}), "here")
    assert said in str(error.value)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0], []])
def test_the_weights_of_a_phase_are_one_a_corpus(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"phases\.0\.weights .*: 2 weight\(s\) are needed"):
        parse_config(tree_with(data=TWO, phases=[{"steps": 5, "weights": weights}]), "here")


def test_the_weights_of_a_phase_are_bounded() -> None:
    with pytest.raises(
        UserError, match=r"phases\.0\.weights\.1 = 1e\+308: input should be less than or equal to 1000000"
    ):
        parse_config(tree_with(data=TWO, phases=[{"steps": 5, "weights": [1.0, 1e308]}]), "here")


def test_the_weights_of_a_phase_may_leave_a_corpus_out() -> None:
    config = parse_config(tree_with(data=TWO, phases=[{"steps": 5, "weights": [0.0, 2.0]}]), "here")
    assert config.phases[0].weights == (0.0, 2.0)


@pytest.mark.parametrize(
    ("masking", "phase", "said"),
    [
        ({"rate": 0.01}, {}, "masking.rate 0.01 predicts no token of a row of phases.0.seq_len 32"),
        ({"final_rate": 0.01}, {}, "masking.final_rate 0.01 predicts no token"),
        ({}, {"mask_rate": 0.01}, "phases.0.mask_rate 0.01 predicts no token"),
        ({"rate": 0.0}, {}, "masking.rate = 0.0"),
        ({"final_rate": 1.5}, {}, "masking.final_rate = 1.5"),
    ],
)
def test_rates_that_predict_nothing_are_refused(masking: dict, phase: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(tree_with(masking=masking, phases=[{"steps": 5, "seq_len": 32, **phase}]), "here")
    assert said in str(error.value)


def test_a_rate_of_a_phase_stands_for_those_of_masking() -> None:
    phases = [{"steps": 5, "seq_len": 32, "mask_rate": 0.15}]
    assert parse_config(tree_with(masking={"rate": 0.01}, phases=phases), "here").phases[0].mask_rate == 0.15


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"muon": {"lr": 0.02}}, "optimizer: muon means nothing for name adamw: remove it, or set name to muon"),
        ({"name": "lamb", "muon": {}}, "muon means nothing for name lamb"),
        ({"decay_steps": 2}, "decay_steps means nothing for schedule linear: remove it, or set schedule to wsd"),
        (
            {"schedule": "cosine", "power": 0.5},
            "power means nothing for schedule cosine: remove it, or set schedule to poly",
        ),
        ({"schedule": "wsd"}, "schedule wsd needs decay_steps: set it, for example to a tenth of the run's steps"),
        ({"schedule": "polynomial"}, "schedule polynomial needs power: set it, for example to 0.5"),
        ({"name": "muon"}, "name muon needs gradient_clipping 0"),
        ({"name": "adam"}, "optimizer.name = 'adam'"),
        ({"final_lr_share": 1.1}, "optimizer.final_lr_share = 1.1"),
        (
            {"name": "muon", "gradient_clipping": 0, "muon": {"momentun": 0.9}},
            "'optimizer.muon.momentun': did you mean 'momentum'?",
        ),
        (
            {"schedule": "wsd", "decay_steps": 4, "warmup_steps": 2},
            "optimizer.warmup_steps 2 and optimizer.decay_steps 4 are together more than the run's 5 steps",
        ),
    ],
)
def test_optimizers_that_do_not_go_together_are_refused(optimizer: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(tree_with(optimizer=optimizer), "here")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"schedule": "wsd", "decay_steps": 3, "warmup_steps": 2},
        {"name": "lamb", "schedule": "polynomial", "power": 0.5},
        {"name": "muon", "gradient_clipping": 0.0, "muon": {"lr": 0.02}},
        {"name": "muon", "gradient_clipping": 0.0},
    ],
)
def test_what_goes_together_is_taken_and_reads_back(optimizer: dict) -> None:
    config = parse_config(tree_with(optimizer=optimizer), "here")
    assert parse_config(yaml.safe_load(dump_config(config)), "dump") == config


CONFIGS = Path(__file__).parents[1] / "configs"
REWARMS = {"rewarm_up": {"lr": 1.0, "warmup_steps": 3}}


@pytest.mark.parametrize(
    ("phase", "more", "said"),
    [
        ({"batch_warmup": {"from_rows": 256, "steps": 2}}, {}, "from_rows 256 must be less than global_batch_rows 256"),
        ({"batch_warmup": {"from_rows": 8, "steps": 5}}, {}, "steps 5 must be less than the phase's 5 steps"),
        (
            {"batch_warmup": {"from_rows": 12, "steps": 2}},
            {"data": {"train": "corpus", "lanes": 8}},
            "phases.1.batch_warmup.from_rows 12 is no multiple of data.lanes 8",
        ),
        (
            {"rewarm_up": {"lr": 1.0, "warmup_steps": 5}},
            {},
            "phases.1.rewarm_up.warmup_steps 5 must be less than its 5 steps",
        ),
        (
            REWARMS,
            {"optimizer": {"schedule": "wsd", "decay_steps": 3}},
            "phases.1.rewarm_up.warmup_steps 3 and optimizer.decay_steps 3 are together more than its 5 steps",
        ),
        (REWARMS, {"optimizer": {"warmup_steps": 4}}, "optimizer.warmup_steps 4 must be less than its 4 steps"),
        (REWARMS, {"phases": [{"steps": 4, **REWARMS}]}, "phases.0.rewarm_up: the first phase has optimizer.lr"),
    ],
)
def test_warm_ups_that_do_not_fit_are_refused(phase: dict, more: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(tree_with(**({"phases": [{"steps": 4}, {"steps": 5, **phase}]} | more)), "here")
    assert said in str(error.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration(path: Path) -> None:
    assert load_config(path).total_steps > 0


def test_the_lamb_recipe_is_nvidias() -> None:
    """7,038 steps of 65,536 rows of 128 at 6e-3, then 1,563 of 32,768 of 512 at 4e-3, each with a warm-up of its own."""
    config = load_config(CONFIGS / "bert_large_lamb.yaml")
    assert (config.optimizer.name, config.optimizer.schedule, config.optimizer.power) == ("lamb", "polynomial", 0.5)
    assert [(part.steps, part.lr, part.warmup_steps) for part in config.schedules] == [
        (7038, 6e-3, round(0.2843 * 7038)),
        (1563, 4e-3, round(0.128 * 1563)),
    ]
    assert [(phase.seq_len, phase.global_batch_rows) for phase in config.phases] == [(128, 65536), (512, 32768)]


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
