"""Which settings a run that exists may be resumed with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskloom.config import MODELS, RunConfig
from maskloom.config_file import load_config, parse_config
from maskloom.errors import UserError
from maskloom.train.checkpoint.fit import FORK_KEEPS
from maskloom.train.resume import MAY_CHANGE, reconcile
from maskloom.train.run_dir import RunDir
from tests.train.conftest import Change

ROOT = Path(__file__).parents[2]


class TestReconcile:
    def test_a_new_folder_takes_the_configuration_as_it_is(self, config: RunConfig) -> None:
        assert reconcile(config) is config
        Path(config.run_dir).mkdir()
        assert reconcile(config) is config

    def test_the_same_configuration_resumes(self, started: RunConfig) -> None:
        assert reconcile(started) == started

    def test_every_refused_difference_is_listed(self, started: RunConfig, changed: Change) -> None:
        refused = {
            "seed": 4,
            "masking__rate": 0.3,
            "model__hidden_size": 64,
            "optimizer__lr": 2e-3,
            "phases__0__seq_len": 64,
            "phases__0__global_batch_rows": 24,
            "data__lanes": 3,
        }
        with pytest.raises(UserError) as error:
            reconcile(changed(**refused, data__workers=2))
        listed = [line.split(":")[0].strip() for line in str(error.value).splitlines() if line.startswith("  ")]
        assert listed == sorted(key.replace("__", ".") for key in refused)
        assert "  optimizer.lr: 0.001 in the run, 0.002 now" in str(error.value)

    @pytest.mark.parametrize(
        "setting",
        [
            {"data__workers": 3},
            {"data__prefetch_steps": 9},
            {"data__train": "/moved/shards"},
            {"data__train": [{"path": "/moved/shards", "weight": 2.0}]},
            {"data__on_bad_data": "skip"},
            {"data__max_bad_share": 0.5},
            {"data__storage": {"timeout_s": 5.0, "attempts": 2, "cache": "/fast/cache", "cache_bytes": 1000}},
            {"tokenizer": "/moved/tokenizer"},
            {"phases__0__micro_batch_rows": 2},
            {"logging__every_steps": 5},
            {"checkpoint__every_steps": 7},
            {"checkpoint__keep_last": 5},
            {"evaluation__every_steps": 2},
            {"engine__zero_stage": 2},
            {"phases__0__steps": 13},
        ],
        ids=lambda setting: next(iter(setting)),
    )
    def test_what_changes_no_row_may_change(
        self, setting: dict[str, object], started: RunConfig, changed: Change
    ) -> None:
        wanted = changed(**setting)
        assert wanted != started
        assert reconcile(wanted) == wanted

    @pytest.mark.parametrize(
        ("settings", "keys"),
        [
            ({"optimizer__name": "lamb"}, ["optimizer.name"]),
            ({"optimizer__schedule": "cosine"}, ["optimizer.schedule"]),
            (
                {"optimizer__schedule": "wsd", "optimizer__decay_steps": 3},
                ["optimizer.decay_steps", "optimizer.schedule"],
            ),
            ({"optimizer__final_lr_share": 0.1}, ["optimizer.final_lr_share"]),
            ({"phases__0__batch_warmup": {"from_rows": 6, "steps": 3}}, ["phases.0.batch_warmup"]),
        ],
    )
    def test_optimizer_schedule_and_batch_may_not_change(
        self, settings: dict[str, object], keys: list[str], started: RunConfig, changed: Change
    ) -> None:
        with pytest.raises(UserError) as error:
            reconcile(changed(**settings))
        listed = [line.split(":")[0].strip() for line in str(error.value).splitlines() if line.startswith("  ")]
        assert listed == keys

    def test_a_phase_that_follows_may_have_a_schedule_of_its_own(self, run_config: dict, started: RunConfig) -> None:
        rewarm_up = {"lr": 5e-4, "warmup_steps": 1}
        run_config["phases"].append({"steps": 4, "seq_len": 64, "global_batch_rows": 6, "rewarm_up": rewarm_up})
        wanted = parse_config(run_config, "run.yaml")
        assert reconcile(wanted) == wanted
        assert wanted.schedules[0] == started.schedules[0], "the steps that are done had these rates"

    def test_a_muon_run_resumes(self, run_config: dict, begin: Callable[..., RunDir]) -> None:
        run_config["optimizer"] = {"name": "muon", "gradient_clipping": 0.0, "muon": {"lr": 0.02}}
        wanted = parse_config(run_config, "run.yaml")
        begin(wanted).close()
        assert reconcile(wanted) == wanted
        run_config["optimizer"]["muon"]["momentum"] = 0.9
        with pytest.raises(UserError, match=r"optimizer\.muon\.momentum: 0\.95 in the run, 0\.9 now"):
            reconcile(parse_config(run_config, "run.yaml"))

    @pytest.fixture
    def mixed(self, run_config: dict, begin: Callable[..., RunDir]) -> dict:
        """A run of two corpora that was begun."""
        corpora = [{"path": "/corpora/a", "weight": 3.0}, {"path": "/corpora/b", "weight": 1.0}]
        run_config["data"]["train"] = corpora
        run_config["phases"][0]["weights"] = [1.0, 1.0]
        begin(parse_config(run_config, "run.yaml")).close()
        return run_config

    def test_a_corpus_of_a_list_may_move(self, mixed: dict) -> None:
        mixed["data"]["train"][1]["path"] = "/moved/b"
        wanted = parse_config(mixed, "run.yaml")
        assert reconcile(wanted) == wanted

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda tree: tree["data"]["train"][0].update(weight=2.0),
                r"data\.train\.0\.weight: 3\.0 in the run, 2\.0 now",
            ),
            (
                lambda tree: tree["phases"][0].update(weights=[1.0, 2.0]),
                r"phases\.0\.weights\.1: 1\.0 in the run, 2\.0 now",
            ),
            (lambda tree: tree["phases"][0].pop("weights"), r"phases\.0\.weights: \[1\.0, 1\.0\] in the run, None now"),
            (lambda tree: tree["phases"][0].update(mask_rate=0.3), r"phases\.0\.mask_rate: None in the run, 0\.3 now"),
            (lambda tree: tree.update(masking={"final_rate": 0.3}), r"masking\.final_rate: None in the run, 0\.3 now"),
        ],
    )
    def test_weights_and_rates_may_not_change(self, change: Callable[[dict], object], said: str, mixed: dict) -> None:
        change(mixed)
        wanted = parse_config(mixed, "run.yaml")
        with pytest.raises(UserError, match=said):
            reconcile(wanted)

    def test_another_number_of_corpora_is_refused(self, mixed: dict) -> None:
        mixed["data"]["train"].append({"path": "/corpora/c"})
        mixed["phases"][0]["weights"] = [1.0, 1.0, 0.0]
        with pytest.raises(UserError, match=r"data\.train\.2: None in the run"):
            reconcile(parse_config(mixed, "run.yaml"))

    def test_more_phases_may_follow(self, run_config: dict, started: RunConfig) -> None:
        run_config["phases"].append({"steps": 4, "seq_len": 64, "global_batch_rows": 6})
        wanted = parse_config(run_config, "run.yaml")
        assert reconcile(wanted) == wanted

    def test_fewer_steps_are_refused(self, started: RunConfig, changed: Change) -> None:
        with pytest.raises(UserError, match=r"phases\.0\.steps: 12 in the run, 11 now"):
            reconcile(changed(phases__0__steps=11))

    def test_a_run_in_tokens_resumes_with_more_of_them(
        self, run_config: dict, begin: Callable[..., RunDir], changed: Change
    ) -> None:
        """A run's folder has steps. So its own file, the same lengths in steps, and more tokens all resume it."""
        run_config["optimizer"] |= {"schedule": "wsd", "warmup_steps": 0, "warmup_tokens": 768, "decay_tokens": 1152}
        (phase,) = run_config["phases"]
        phase |= {"steps": None, "tokens": 4500}  # 384 a step
        counted = parse_config(run_config, "run.yaml")
        begin(counted).close()
        assert reconcile(parse_config(run_config, "run.yaml")) == counted
        assert (counted.total_steps, counted.optimizer.warmup_steps, counted.optimizer.decay_steps) == (12, 2, 3)
        phase |= {"steps": 12, "tokens": None}
        assert reconcile(parse_config(run_config, "run.yaml")) == counted
        phase |= {"steps": None, "tokens": 4609}
        assert reconcile(parse_config(run_config, "run.yaml")).total_steps == 13
        phase["tokens"] = 4224
        with pytest.raises(UserError, match=r"phases\.0\.steps: 12 in the run, 11 now"):
            reconcile(parse_config(run_config, "run.yaml"))

    def test_an_earlier_phase_keeps_its_steps(self, run_config: dict, begin: Callable[..., RunDir]) -> None:
        run_config["phases"].append({"steps": 4, "seq_len": 64, "global_batch_rows": 6})
        begin(parse_config(run_config, "run.yaml")).close()
        run_config["phases"][0]["steps"] += 1
        with pytest.raises(UserError, match=r"phases\.0\.steps"):
            reconcile(parse_config(run_config, "run.yaml"))
        run_config["phases"][0]["steps"] -= 1
        run_config["phases"].pop()
        with pytest.raises(UserError, match=r"phases\.1"):
            reconcile(parse_config(run_config, "run.yaml"))

    def test_what_was_derived_is_kept(self, started: RunConfig, changed: Change) -> None:
        assert started.data.lanes == 6
        assert reconcile(changed(data__lanes=None)).data.lanes == 6

    def test_auto_keeps_the_precision_and_chooses_kernels_anew(
        self, begin: Callable[..., RunDir], changed: Change
    ) -> None:
        """As of a run that began on a CPU, and resumes on a GPU."""
        begin(changed(engine__precision="fp32", engine__kernels="eager")).close()
        asked = reconcile(changed(engine__precision="auto", engine__kernels="auto")).engine
        assert (asked.precision, asked.kernels) == ("fp32", "auto")
        with pytest.raises(UserError, match=r"engine\.precision: 'fp32' in the run, 'bf16' now"):
            reconcile(changed(engine__precision="bf16"))

    def test_a_folder_that_is_not_a_run_is_refused(self, config: RunConfig) -> None:
        folder = Path(config.run_dir)
        folder.mkdir()
        (folder / "thesis.txt").write_text("years of work")
        with pytest.raises(UserError, match="not empty and holds no run"):
            reconcile(config)
        assert (folder / "thesis.txt").read_text() == "years of work"

    def test_a_file_is_refused(self, config: RunConfig) -> None:
        Path(config.run_dir).write_text("")
        with pytest.raises(UserError, match="is a file"):
            reconcile(config)


def leaves(value: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a configuration."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) and value else ()
    for key, below in items:
        yield from leaves(below, f"{prefix}{key}.")
    if not items:
        yield prefix[:-1]


class TestGuide:
    """The table of docs/resume.md is what the code does."""

    @pytest.fixture(scope="class")
    def keys(self) -> set[str]:
        config = load_config(ROOT / "configs/quickstart.yaml")
        return {key for key in leaves(config.model_dump(mode="json", by_alias=True)) if key != "from"}

    @pytest.fixture(scope="class")
    def rows(self, keys: set[str]) -> list[tuple[set[str], bool, bool]]:
        """(keys, whether they may change at a resume, in a fork) of each row that names keys."""
        page = (ROOT / "docs/resume.md").read_text()
        table = page.partition("| setting | at a resume |")[2].partition("\n\n")[0]
        rows = []
        for named, resume, fork in (line.strip("| ").split(" | ") for line in table.splitlines()[2:]):
            found = set()
            for key in re.findall(r"`([a-z][\w.*]+)`", named):
                pattern = re.escape(key).replace(r"\*", ".*").replace(".N", r".\d+")
                found |= (matching := {each for each in keys if re.fullmatch(pattern, each)})
                assert matching or key in ("deepspeed.*", "optimizer"), key
            rows.append((found, resume.startswith("yes"), fork.startswith("yes")))
        return rows

    def test_what_may_change_at_a_resume(self, keys: set[str], rows: list[tuple[set[str], bool, bool]]) -> None:
        for found, resume, _ in rows:
            assert {key: bool(MAY_CHANGE.fullmatch(key)) for key in found} == dict.fromkeys(found, resume)
        said = {key for found, resume, _ in rows for key in found if resume}
        assert {key for key in keys if MAY_CHANGE.fullmatch(key)} - said == {"model.init"}

    def test_what_may_change_in_a_fork(self, rows: list[tuple[set[str], bool, bool]]) -> None:
        kept = {f"model.{name}" for name in {"architecture", *MODELS["bert"].shape_fields()}}
        for found, _, fork in rows:
            assert {key: not (FORK_KEEPS.fullmatch(key) or key in kept) for key in found} == dict.fromkeys(found, fork)
