"""What each section takes and refuses, alone and beside the others."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from maskloom.config import ModernBert, Roberta, RunConfig, Section
from maskloom.config_file import dump_config, load_config, parse_config
from maskloom.errors import UserError
from tests.trees import tree_with


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
        "phases.0.global_batch_rows 10 is not a multiple of data.lanes 4",
        "phases.1.global_batch_rows 9 is not a multiple of data.lanes 4",
        "phases.0.seq_len 640 is more than model.max_position_embeddings 512",
        "evaluation.seq_len 513 is more than",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"hidden_size": 100, "num_attention_heads": 12},
            "hidden_size 100 is not a multiple of num_attention_heads 12",
        ),
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
            "phases.1.batch_warmup.from_rows 12 is not a multiple of data.lanes 8",
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
        (
            {"rewarm_up": {"lr": 1.0, "warmup_steps": 3, "schedule": "1-sqrt", "decay_steps": 3}},
            {},
            "phases.1.rewarm_up.warmup_steps 3 and phases.1.rewarm_up.decay_steps 3 are together more than its 5 steps",
        ),
        ({"rewarm_up": {"lr": 1.0, "schedule": "wsd"}}, {}, "phases.1.rewarm_up: schedule wsd needs decay_steps"),
        ({"rewarm_up": {"lr": 1.0, "decay_steps": 2}}, {}, "phases.1.rewarm_up: decay_steps needs schedule beside it"),
        (
            {"rewarm_up": {"lr": 1.0, "schedule": "constant", "final_lr_share": 0.1}},
            {},
            "phases.1.rewarm_up: final_lr_share 0.1 means nothing for schedule constant",
        ),
        (
            {"gradient_clipping": 1.0},
            {"optimizer": {"name": "muon", "gradient_clipping": 0}},
            "phases.1.gradient_clipping: name muon needs gradient_clipping 0",
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


RECIPES = sorted([*CONFIGS.glob("bert_*.yaml"), *CONFIGS.glob("roberta_*.yaml")])


def test_the_base_recipe_is_mosaics_baseline() -> None:
    """70,000 steps of 4,096 rows of 128 are 286.72 million rows; Composer's weight decay of 1e-5 is AdamW's times the rate."""
    config = load_config(CONFIGS / "bert_base.yaml")
    settings, (phase,) = config.optimizer, config.phases
    assert (phase.steps * phase.global_batch_rows, phase.seq_len) == (286_720_000, 128)
    assert settings.warmup_steps == round(0.06 * phase.steps)
    assert (settings.name, settings.schedule, settings.lr, settings.final_lr_share) == ("adamw", "linear", 5e-4, 0.02)
    assert settings.weight_decay * settings.lr == pytest.approx(1e-5)
    assert (settings.beta1, settings.beta2, settings.eps, settings.gradient_clipping) == (0.9, 0.98, 1e-6, 0.0)
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (768, 12)


def test_the_large_recipe_is_devlins() -> None:
    config = load_config(CONFIGS / "bert_large.yaml")
    settings = config.optimizer
    assert [(phase.steps, phase.seq_len, phase.global_batch_rows) for phase in config.phases] == [
        (900_000, 128, 256),
        (100_000, 512, 256),
    ]
    assert (settings.name, settings.schedule, settings.lr, settings.warmup_steps) == ("adamw", "linear", 1e-4, 10_000)
    assert (settings.beta1, settings.beta2, settings.eps, settings.final_lr_share) == (0.9, 0.999, 1e-6, 0.0)
    assert (settings.weight_decay, settings.gradient_clipping) == (0.01, 1.0)
    shape = config.model
    assert (shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads) == (1024, 24, 16)


def test_the_roberta_recipe_is_the_papers() -> None:
    """Table 9 of the paper, for the base model; 514 positions are for 512 tokens."""
    config = load_config(CONFIGS / "roberta_base.yaml")
    settings, (phase,) = config.optimizer, config.phases
    assert (phase.steps, phase.seq_len, phase.global_batch_rows) == (500_000, 512, 8192)
    assert (settings.name, settings.schedule, settings.lr, settings.warmup_steps) == ("adamw", "linear", 6e-4, 24_000)
    assert (settings.beta1, settings.beta2, settings.eps, settings.final_lr_share) == (0.9, 0.98, 1e-6, 0.0)
    assert (settings.weight_decay, settings.gradient_clipping) == (0.01, 0.0)
    assert config.model == Roberta(vocab_multiple=64)
    shape = (config.model.hidden_size, config.model.num_hidden_layers, config.model.num_attention_heads)
    assert (*shape, config.model.intermediate_size, config.model.max_position_embeddings) == (768, 12, 12, 3072, 514)
    assert (config.model.type_vocab_size, config.model.layer_norm_eps) == (1, 1e-5)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_its_source_and_what_differs(path: Path) -> None:
    """Beside them what all of them share: 15 % of the tokens, dropout 0.1 on hidden states and none on attention weights."""
    comment = " ".join(line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"arXiv:\d{4}\.\d{5}", comment)
    assert "As there" in comment or "As in" in comment
    differs = comment[comment.index("Differs: ") :]
    config = load_config(path)
    assert config.masking.rate == 0.15
    assert config.model.hidden_dropout_prob == 0.1
    assert config.model.attention_probs_dropout_prob == 0.0
    assert "no attention dropout (0.1 there)" in differs
    assert "set model.attention_probs_dropout_prob=0.1" in differs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_has_composers_weight_decay(path: Path) -> None:
    """Which is AdamW's times the highest rate: 1e-5 would be next to nothing."""
    assert load_config(path).optimizer.weight_decay >= 1e-3


def test_the_lamb_recipe_is_nvidias() -> None:
    """7,038 steps of 65,536 rows of 128 at 6e-3, then 1,563 of 32,768 of 512 at 4e-3, each with a warm-up of its own."""
    config = load_config(CONFIGS / "bert_large_lamb.yaml")
    assert (config.optimizer.name, config.optimizer.schedule, config.optimizer.power) == ("lamb", "polynomial", 0.5)
    assert [(part.steps, part.lr, part.warmup_steps) for part in config.schedules] == [
        (7038, 6e-3, round(0.2843 * 7038)),
        (1563, 4e-3, round(0.128 * 1563)),
    ]
    assert [(phase.seq_len, phase.global_batch_rows) for phase in config.phases] == [(128, 65536), (512, 32768)]


def test_the_modernbert_recipe_is_its_papers() -> None:
    """Counted in tokens, from the rows of every step."""
    config = load_config(CONFIGS / "modernbert_base.yaml")
    first, second, third = config.phases
    assert first.batch_warmup
    growing, rest = first.batch_warmup.steps, first.steps - first.batch_warmup.steps
    grown = growing * (first.batch_warmup.from_rows + first.global_batch_rows) / 2 * first.seq_len
    # Rows are multiples of the lanes, so half a lane's rows are missing in the mean step.
    assert grown == pytest.approx(50e9, rel=4e-2)
    step_tokens = second.global_batch_rows * second.seq_len
    assert third.global_batch_rows * third.seq_len == first.global_batch_rows * first.seq_len == step_tokens
    assert rest * step_tokens == pytest.approx(1669e9, rel=1e-3)
    assert second.steps * step_tokens == pytest.approx(250e9, rel=1e-3)
    assert third.steps * step_tokens == pytest.approx(50e9, rel=1e-3)
    slope = (first.global_batch_rows - first.batch_warmup.from_rows) / growing
    warm = config.optimizer.warmup_steps
    warm_tokens = (warm * first.batch_warmup.from_rows + slope * warm**2 / 2) * first.seq_len
    assert warm_tokens == pytest.approx(3e9, rel=1e-1)
    assert [part.lr for part in config.schedules] == [8e-4, 3e-4, 3e-4]
    assert (config.optimizer.name, config.optimizer.schedule) == ("stable_adamw", "constant")
    assert third.rewarm_up and (third.rewarm_up.schedule, third.rewarm_up.final_lr_share) == ("1-sqrt", 0.001)
    assert config.optimizer.weight_decay * config.optimizer.lr == pytest.approx(1e-5)
    assert config.optimizer.gradient_clipping == 0.0
    assert [(phase.seq_len, phase.global_rope_theta) for phase in config.phases] == [
        (1024, 1e4),
        (8192, 16e4),
        (8192, None),
    ]
    assert (config.masking.rate, config.evaluation.mask_rate) == (0.3, 0.15)
    assert config.model == ModernBert(vocab_multiple=64)


@pytest.mark.parametrize("name", ["", " ", "~/runs/first", "~", "two\nlines", "nul\0", "bell\a"])
def test_a_folder_that_is_not_what_it_looks_like_is_refused(name: str) -> None:
    rest = {"tokenizer": "t", "data": {"train": "d"}, "phases": [{"steps": 9, "seq_len": 8, "global_batch_rows": 1}]}
    for values in ({"run_dir": name}, {"run_dir": "runs/a", "from": name}):
        with pytest.raises(
            UserError, match=r"(run_dir|from): '.*' (does not name a folder|has a line break)|~ is not expanded here"
        ):
            parse_config({**rest, **values}, "run.yaml")
    assert parse_config({**rest, "run_dir": "Läufe/erster lauf~"}, "run.yaml").run_dir == "Läufe/erster lauf~"


@pytest.mark.parametrize(
    "key",
    [
        *("data.lanes", "data.workers", "data.prefetch_steps", "data.storage.attempts"),
        *("model.hidden_size", "model.num_hidden_layers", "model.num_attention_heads", "model.intermediate_size"),
        *("model.max_position_embeddings", "phases.0.steps", "phases.0.seq_len", "phases.0.global_batch_rows"),
        *("phases.0.micro_batch_rows", "optimizer.warmup_steps", "optimizer.decay_steps", "evaluation.every_steps"),
        *("checkpoint.every_steps", "checkpoint.keep_last", "checkpoint.keep_every_steps", "guard.window_steps"),
        *("guard.rollbacks", "guard.skips_before_rollback", "logging.every_steps"),
    ],
)
@pytest.mark.parametrize("value", ["1e18", "1e30", "9223372036854775808"])
def test_a_count_that_nobody_means_is_refused_by_its_key(key: str, value: str, tmp_path: Path) -> None:
    """Each would fill the memory, or be a figure without sense, long after the start."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree_with()))
    with pytest.raises(UserError, match=rf"{re.escape(key)} = .*less than or equal to"):
        load_config(path, [f"{key}={value}"])


def test_what_needs_evaluations_says_so() -> None:
    needing = {"patience": 3, "probe": {"data": "labelled.csv"}}
    given = {"evaluation": needing, "checkpoint": {"keep_best": True}}
    with pytest.raises(UserError) as error:
        parse_config(tree_with(**given), "here")
    for name in ("checkpoint.keep_best", "evaluation.patience", "evaluation.probe"):
        assert f"{name} needs evaluations: set evaluation.every_steps" in str(error.value)
    config = parse_config(tree_with(**{**given, "evaluation": {**needing, "every_steps": 10}}), "here")
    assert config.needs_evaluation == ["checkpoint.keep_best", "evaluation.patience", "evaluation.probe"]
    assert parse_config(tree_with(), "here").needs_evaluation == []


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"every_steps": 10, "min_delta": 0.1}, "min_delta 0.1 means nothing without patience"),
        ({"every_steps": 10, "patience": 0}, "evaluation.patience = 0"),
        (
            {"every_steps": 10, "probe": {"data": "a.csv", "every_steps": 25}},
            "probe.every_steps 25 is not a multiple of every_steps 10",
        ),
    ],
)
def test_settings_of_an_evaluation_that_do_not_go_together(evaluation: dict, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        parse_config(tree_with(evaluation=evaluation), "here")


def test_a_step_has_a_bound_of_slots() -> None:
    largest = {"steps": 5, "global_batch_rows": 1 << 21, "seq_len": 512}
    parse_config(tree_with(phases=[largest]), "here")
    with pytest.raises(UserError, match=r"phases\.0: global_batch_rows 2097152 \* seq_len 1024 .* lower one of them"):
        parse_config(tree_with(phases=[{**largest, "seq_len": 1024}], model={"max_position_embeddings": 1024}), "here")
