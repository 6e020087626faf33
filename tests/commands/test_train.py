"""`maskloom train`: what it checks before it starts, and the DeepSpeed configuration that it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertForMaskedLM

from maskloom.config_file import load_config
from maskloom.launch.doctor.look import Request
from maskloom.launch.doctor.machine import as_a_rank
from maskloom.models.masked_lm import count_parameters
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.resume import check_model
from tests.models.test_bert import tiny_config

from .conftest import Command


@pytest.fixture
def config(run_config: dict, write_config: Callable[[dict], Path]) -> Path:
    return write_config(run_config)


def test_the_deepspeed_configuration_is_shown_and_nothing_written(
    config: Path, run_config: dict, succeeds: Command
) -> None:
    shown = json.loads(succeeds("train", config, "--show-deepspeed", "--processes", 3, "engine.zero_stage=2"))
    # Of 12 rows on 6 lanes a rank has 4: one micro-batch, which may hold 4.
    assert shown["train_micro_batch_size_per_gpu"] == 4
    assert shown["zero_optimization"]["stage"] == 2
    assert shown["gradient_clipping"] == 1.0
    assert not Path(run_config["run_dir"]).exists()


def test_what_is_passed_through_stands_beside_what_is_derived(config: Path, succeeds: Command) -> None:
    given = "deepspeed={zero_optimization: {reduce_bucket_size: 1000}, wall_clock_breakdown: true}"
    shown = json.loads(succeeds("train", config, given, "--show-deepspeed"))
    assert shown["zero_optimization"] == {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert shown["wall_clock_breakdown"] is True


def test_every_clash_with_what_is_derived_is_named(config: Path, fails: Command) -> None:
    given = "deepspeed={zero_optimization: {stage: 3}, train_batch_size: 8}"
    message = fails("train", config, given, "--show-deepspeed")
    assert "zero_optimization.stage" in message
    assert "train_batch_size" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--processes", "7"], "7 ranks are more than the 6 lanes"),
        (["phases.0.stepz=3"], "did you mean 'steps'?"),
        (["data.train=/nowhere"], "no index at /nowhere"),
        (["tokenizer=/nowhere"], "no tokenizer at /nowhere"),
        (["engine.precision=fp16"], "engine.precision"),
        (["seed"], "'seed' is not key=value"),
        (
            ["model={init: /nowhere/bert}", "tokenizer=null"],
            "model.init /nowhere/bert cannot be loaded: there is no such folder",
        ),
        (["model.num_hidden_layers=4096", "model.hidden_size=65536"], "lower model.num_hidden_layers"),
        (["phases.0.global_batch_rows=1e18"], "phases.0.global_batch_rows"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: list[str], expected: str, config: Path, run_config: dict, fails: Command
) -> None:
    if "fp16" in arguments[-1]:
        from deepspeed.accelerator import get_accelerator

        if get_accelerator().is_fp16_supported():
            pytest.skip("this device computes in fp16")
    assert expected in fails("train", config, *arguments)
    assert not Path(run_config["run_dir"]).exists()


def test_another_configuration_for_a_run_is_refused(trained_run: Path, fails: Command) -> None:
    message = fails("train", trained_run / "config.yaml", "seed=4", "optimizer.lr=1")
    assert "seed: 3 in the run, 4 now" in message
    assert "optimizer.lr: 0.005 in the run, 1.0 now" in message


class TestModelToStartFrom:
    """What is wrong with it is said before a rank starts, and by the doctor."""

    @pytest.fixture
    def start(self, run_config: dict, tokenizer: Tokenizer, tmp_path: Path) -> dict:
        model = BertForMaskedLM(tiny_config(tokenizer.vocab_size))
        model.save_pretrained(tmp_path / "model")
        run_config["model"] = {"init": str(tmp_path / "model")}
        return run_config

    @pytest.fixture(autouse=True)
    def no_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def started(*arguments: object) -> None:
            raise AssertionError("a rank was started")

        monkeypatch.setattr("maskloom.train.__main__.main", started)
        monkeypatch.setattr("maskloom.launch.supervisor.supervise", started)

    @pytest.mark.parametrize(
        ("change", "setting", "said"),
        [
            ({"is_decoder": True}, None, "is_decoder is True"),
            ({"position_embedding_type": "relative_key"}, None, "position_embedding_type is 'relative_key'"),
            ({"model_type": "electra"}, None, "is a 'electra' model"),
            ({"num_attention_heads": 3}, None, "is not a multiple of num_attention_heads 3"),
            ({"num_hidden_layers": 3}, None, "is not a whole encoder: it lacks bert.encoder"),
            ({}, "evaluation.seq_len=128", "evaluation.seq_len 128: more than the 64 positions of model.init"),
            ({}, "model.init=/nowhere/at/all", "there is no such folder"),
        ],
    )
    @pytest.mark.parametrize("processes", [1, 2])
    def test_faults(
        self,
        change: dict,
        setting: str | None,
        said: str,
        processes: int,
        start: dict,
        write_config: Callable[[dict], Path],
        fails: Command,
    ) -> None:
        file = Path(start["model"]["init"]) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        config, overrides = write_config(start), [setting] if setting else []
        assert said in fails("train", config, *overrides, "--processes", processes)
        found = as_a_rank(Request(config=str(config), overrides=overrides, slots=processes, world_size=processes))
        assert said in found.refusal
        assert not Path(start["run_dir"]).exists()

    def test_the_doctor_counts_its_parameters(
        self, start: dict, write_config: Callable[[dict], Path], tokenizer: Tokenizer
    ) -> None:
        found = as_a_rank(Request(config=str(write_config(start)), slots=1))
        assert not found.refusal
        assert found.parameters == count_parameters(BertForMaskedLM(tiny_config(tokenizer.vocab_size)))

    def test_a_run_that_resumes_needs_it_no_more(
        self, trained_run: Path, tokenizer: Tokenizer, tmp_path: Path, fails: Command
    ) -> None:
        """Its own model counts: also where an evaluation would be longer than it has positions."""
        gone = load_config(trained_run / "config.yaml", [f"run_dir={trained_run}"])
        gone = gone.model_copy(update={"model": gone.model.model_copy(update={"init": "/gone"})})
        lengths = gone.seq_lens
        described = check_model(trained_run, None, gone.model, tokenizer, lengths)
        assert described is not None
        assert described.max_position_embeddings == 512
        assert check_model(tmp_path / "fork", f"{trained_run}@8", gone.model, tokenizer, lengths) is not None
        longer = gone.evaluation.model_copy(update={"seq_len": 513})
        with pytest.raises(ValueError, match=r"evaluation\.seq_len 513: more than the 512 positions of .*model"):
            check_model(
                trained_run,
                None,
                gone.model,
                tokenizer,
                gone.model_copy(update={"evaluation": longer}).seq_lens,
            )
