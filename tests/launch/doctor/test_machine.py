"""What this machine finds out about itself, and what a rank here would meet."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskloom.config_file import load_config, parse_config
from maskloom.hardware import ask_nvidia_smi
from maskloom.launch.doctor import machine
from maskloom.launch.doctor.look import FACTS, Facts, Line, Request, nearest
from maskloom.launch.doctor.machine import (
    COLUMNS,
    Rank,
    checkpoint_bytes,
    checkpoints_at_most,
    chosen_blocks,
    configuration,
    cores,
    disk,
    fused_adam,
    gpu_faults,
    gpu_health,
    look,
    look_at_corpora,
    memory,
    multiply,
    operator_builds,
    port,
    rank_bytes,
    room_for,
    run_dir,
    source_digest,
)
from maskloom.launch.probe import PORT_TRIES
from tests.trees import tree_with

GIB = 1 << 30
H100 = dict(zip(COLUMNS, ("GPU-1", "79000", "81559", "0", "0x0000000000000001"), strict=True))  # idle is no fault


def found(facts: Facts, check: str) -> list[Line]:
    return [line for name, line in facts.lines if name == check]


def test_facts_survive_json(run_config: dict, write_config: Callable[[dict], Path]) -> None:
    config = write_config(run_config)
    request = Request(config=str(config), run_dir=run_config["run_dir"], world_size=3, slots=3, port=14000)
    facts = look(request)
    assert FACTS.validate_python(json.loads(FACTS.dump_json(facts))) == facts
    assert {level for _, (level, _, _) in facts.lines} <= {"ok", "warn"}
    ((level, value, _),) = found(facts, "configuration")
    assert (level, value.startswith("3 rank(s), precision auto, ZeRO ")) == ("ok", True)
    assert facts.same["torch"] == torch.__version__
    corpus = f"data {run_config['data']['train']}"
    assert set(facts.same) >= {"python", "deepspeed", "maskloom", "maskloom's source", "CONFIG", "tokenizer", corpus}
    assert [line[0] for line in found(facts, corpus)] == ["ok"]
    for check in ("memory", "run_dir", "disk space", "port"):
        assert [line[0] for line in found(facts, check)] == ["ok"]
    assert not Path(run_config["run_dir"]).exists()
    assert [path.name for path in Path(run_config["run_dir"]).parent.iterdir()] == [config.name]  # nothing is left

    def refusal(**more: object) -> str:
        facts = look(Request(config=str(config), run_dir=run_config["run_dir"], **more))  # type: ignore[arg-type]
        ((level, value, remedy),) = found(facts, "configuration")
        assert (level, bool(remedy)) == ("fail", True)
        return value

    assert "engine.reduce_precision fp16" in refusal(overrides=("engine.reduce_precision=fp16",), world_size=3)
    assert "7 ranks are more than the 6 lanes" in refusal(world_size=7)


def test_gpus_that_torch_cannot_use_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100, 470.82.01'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    facts = look(Request())
    assert FACTS.validate_json(FACTS.dump_json(facts)) == facts
    assert facts.unusable_gpus is not None
    said, remedy = facts.unusable_gpus
    assert said.startswith("nvidia-smi shows 1 GPU(s) (NVIDIA A100, driver 470.82.01), and torch ")
    assert remedy.startswith("Update the driver to ")


def test_files_that_cannot_be_read_are_named(run_config: dict, write_config: Callable[[dict], Path]) -> None:
    unread = look(Request(config="/nowhere/run.yaml", run_dir=run_config["run_dir"]))
    assert [line[:2] for line in found(unread, "CONFIG")] == [("fail", "cannot be read")]
    assert found(unread, "tokenizer") == []  # nobody knows where it would be
    config = write_config(run_config)
    facts = look(Request(config=str(config), overrides=("tokenizer=/nowhere",), run_dir=run_config["run_dir"]))
    assert [line[:2] for line in found(facts, "tokenizer")] == [("fail", "cannot be read")]
    assert "CONFIG" in facts.same
    assert "tokenizer" not in facts.same


def test_what_the_asking_machine_cannot_read_either_is_not_said_twice() -> None:
    refused = Rank(refusal="run.yaml: bad")
    assert list(configuration(refused, Request())) == []
    assert [line[:2] for line in configuration(refused, Request(run_dir="/run"))] == [("fail", "run.yaml: bad")]
    fault = "shard /shards/0.tar is missing"
    known = Rank(refusal=fault, corpora=[("/shards", None, ("fail", fault, "mend it"))])
    assert list(configuration(known, Request(run_dir="/run"))) == []


def test_source_digests_tell_a_changed_file_and_a_changed_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    digests = [source_digest(tmp_path)]
    (tmp_path / "a.py").write_text("2")
    digests.append(source_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    digests.append(source_digest(tmp_path))
    (tmp_path / "cache.pyc").write_text("x")
    assert len(set(digests)) == 3
    assert source_digest(tmp_path) == digests[-1]


def test_blocks_are_the_first_the_last_and_others_from_host_to_host() -> None:
    assert chosen_blocks(40, Request(blocks=40)) == list(range(40))
    one, other = (chosen_blocks(40, Request(number=number, blocks=6)) for number in (0, 1))
    assert one != other
    assert len(set(one)) == len(set(other)) == 6
    assert {0, 39} <= set(one) & set(other)


def test_damaged_and_missing_shards(
    corpus_dir: Path, run_config: dict, write_config: Callable[[dict], Path], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(corpus_dir, shards)
    run_config["data"]["train"] = str(shards)
    config = load_config(write_config(run_config))
    skips = load_config(write_config(run_config), ["data.on_bad_data=skip"])
    first, *_, last = sorted(shards.glob("*.tar"))
    ((_, digest, (level, value, _)),) = look_at_corpora(config.data, Request())
    assert (level, value.endswith(" read and verified")) == ("ok", True)
    with first.open("r+b") as file:
        file.seek(600)
        file.write(b"\xff" * 64)
    ((path, still, (level, value, _)),) = look_at_corpora(config.data, Request())
    assert (path, still, level) == (str(shards), digest, "fail")
    assert first.name in value
    ((_, _, (level, _, _)),) = look_at_corpora(skips.data, Request())
    assert level == "warn"
    last.unlink()
    ((_, digest, (level, value, _)),) = look_at_corpora(config.data, Request())
    assert (digest, level) == (None, "fail")
    assert last.name in value


@pytest.mark.parametrize(
    ("lines", "level", "value"),
    [
        (gpu_faults(H100, [], "wrong", 0), "fail", "wrong"),
        (gpu_faults(H100 | {COLUMNS[3]: "3"}, [], None, 0), "fail", "3 uncorrected memory error(s)"),
        (gpu_faults(H100 | {COLUMNS[4]: "0x40"}, [], None, 0), "warn", "slowed down: hardware thermal"),
        (gpu_faults(H100 | {COLUMNS[4]: "0x48"}, [], None, 0), "warn", "hardware slowdown, hardware thermal"),
        (gpu_faults(H100, ["python (process 7)"], None, 0), "warn", "in use by python (process 7)"),
        (gpu_faults(H100 | {COLUMNS[1]: "61440"}, [], None, 0), "warn", "60.0 GiB of 79.6 GiB free"),
        (gpu_faults(H100 | {COLUMNS[1]: "1024"}, [], None, 2 * GIB), "fail", "1.0 GiB free"),
        (gpu_faults({}, [], "wrong", 2 * GIB), "fail", "wrong"),
        (cores(4, 4, 1), "warn", "4 for 8 processes (4 rank(s), 1 reader(s) each)"),
        (memory(2 * GIB, 3 * GIB), "fail", "2.0 GiB free, weights, gradients and moments are 3.0 GiB"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(lines: list[Line], level: str, value: str) -> None:
    ((found_level, found_value, remedy),) = lines
    assert found_level == level
    assert value in found_value
    assert remedy


def test_what_is_well() -> None:
    assert list(gpu_faults(H100, [], None, GIB)) == []
    p4 = H100 | {"memory.free": "7000", "memory.total": "7600", COLUMNS[3]: "[N/A]"}
    assert list(gpu_faults(p4, [], None, GIB)) == []
    assert list(gpu_faults({}, [], None, GIB)) == []  # without nvidia-smi
    assert list(gpu_health(0, GIB)) == []
    assert list(cores(8, 4, 1)) == [("ok", "8", "")]
    assert list(memory(2 * GIB, 2 * GIB)) == list(memory(4 * GIB - 1, 0)) == [("ok", "at least 2.0 GiB free", "")]


def test_rows_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "--query-gpu=*) echo 'GPU-1, 80000, 81559, 2, 0x0000000000000048';\n"
        "  echo 'GPU-2, 7000, 7600, [N/A], 0x0000000000000001';;\n"
        "*) echo 'unknown column' >&2; exit 2;;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = ask_nvidia_smi("--query-gpu", COLUMNS)
    assert [value for _, value, _ in gpu_faults(first, ["python (process 7)"], None, 0)] == [
        "2 uncorrected memory error(s)",
        "slowed down: hardware slowdown, hardware thermal",
        "in use by python (process 7)",
    ]
    assert [value for _, value, _ in gpu_faults(second, [], "wrong", 0)] == ["wrong"]
    assert ask_nvidia_smi("--query-compute-apps", ["pid"]) == []


@pytest.mark.gpu
def test_products_on_a_gpu_are_exact() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert multiply(0) is None
    assert "fail" not in [level for level, _, _ in gpu_health(torch.cuda.device_count(), 0)]


def test_gpus_are_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: type("Gpu", (), {"uuid": str(number)}))
    monkeypatch.setattr(machine, "multiply", lambda number: "wrong" if number == 2 else None)
    tables = {"--query-gpu": [H100 | {"uuid": "GPU-1", COLUMNS[3]: "1"}], "--query-compute-apps": []}
    tables["--query-compute-apps"] += [
        {"gpu_uuid": "GPU-0", "pid": pid, "process_name": "python"} for pid in ("7", str(os.getpid()))
    ]
    monkeypatch.setattr(machine, "ask_nvidia_smi", lambda table, columns: tables[table])
    assert [line[:2] for line in gpu_health(3, 0)] == [
        ("warn", "GPU 0: in use by python (process 7)"),
        ("fail", "GPU 1: 1 uncorrected memory error(s)"),
        ("fail", "GPU 2: wrong"),
    ]
    tables["--query-gpu"], tables["--query-compute-apps"] = [], []
    assert [level for level, _, _ in gpu_health(2, 0)] == ["ok"]


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    left = tmp_path / ".doctor-x"
    left.touch()
    folder = str(tmp_path / "not" / "yet")
    request = Request(run_dir=folder, left_file=str(left))
    well = [("ok", f"{folder} can be written", "")]
    assert list(run_dir(request)) == list(run_dir(Request(run_dir=folder))) == well
    left.unlink()
    assert [line[:2] for line in run_dir(request)] == [("fail", f"{folder} is another folder there")]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    ((level, value, remedy),) = run_dir(Request(run_dir=str(tmp_path / "file" / "run")))
    assert (level, bool(remedy)) == ("fail", True)
    assert value.startswith("[Errno 20] Not a directory")
    assert list(run_dir(Request())) == []
    assert nearest(Path(folder)) == tmp_path
    assert nearest(Path("/")) == Path("/")


def test_room_for_all_checkpoints_that_will_stand_side_by_side(tmp_path: Path) -> None:
    rank = Rank(config=parse_config(tree_with(phases=[{"steps": 10_000}]), "here"), parameters=110_000_000)
    request = Request(run_dir=str(tmp_path))
    for saved, count in ((0, 3), (2, 1), (5, 1)):  # a new one is written before an old one goes
        for step in range(saved):
            (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "checkpoints" / f"step-{step}" / "manifest.json").touch()
        (tmp_path / "checkpoints" / "step-9").mkdir(parents=True, exist_ok=True)  # not a whole one
        ((name, (_, value, _)), *_) = disk(rank, request)
        assert name == "disk space"
        assert f"{count} checkpoint(s) of about 1.6 GiB to come" in value
    assert list(disk(rank, Request(number=1, run_dir=str(tmp_path)))) == []  # the first host says it for all
    assert list(disk(Rank(), request)) == []


def test_space_and_inodes() -> None:
    assert [line[0] for _, line in room_for(3, 1000, 4, 3000, 1024)] == ["ok"]
    assert [line[0] for _, line in room_for(3, 1000, 4, 3000, None)] == ["ok"]  # a file system without a fixed number
    few = dict(room_for(3, 1000, 4, 2999, 12))
    assert few["disk space"][0] == few["disk inodes"][0] == "fail"
    assert "12 inodes free, 1,024 are wanted" in few["disk inodes"][1]
    assert few["disk space"][2]
    assert few["disk inodes"][2]


def test_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {12345}
    monkeypatch.setattr("maskloom.launch.probe.is_free", lambda number: number not in taken)
    assert list(port(Request(port=12345))) == [("ok", "12346 is free", "")]  # the next one will do
    assert [line[:2] for line in port(Request(port=12345, needs_port=True))] == [("fail", "12345 is taken")]
    assert list(port(Request(port=12346, needs_port=True))) == [("ok", "12346 is free", "")]
    taken |= set(range(12345, 12345 + PORT_TRIES))
    assert [level for level, _, _ in port(Request(port=12345))] == ["fail"]
    assert list(port(Request())) == []  # not the first host


def test_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "no nvcc"
    monkeypatch.setattr(machine, "why_no_fused_adam", lambda: why)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    ((level, value, remedy),) = fused_adam("adamw")
    assert (level, value, bool(remedy)) == ("warn", "torch's instead: no nvcc", True)
    why = ""
    assert [level for level, _, _ in fused_adam("adamw")] == ["ok"]
    assert list(fused_adam("lamb")) == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert list(fused_adam("adamw")) == []

    monkeypatch.setattr(machine, "stale_locks", lambda: [Path("/x/fused_adam/lock")])
    ((level, value, remedy),) = operator_builds()
    assert (level, value, bool(remedy)) == ("warn", "killed build left /x/fused_adam/lock", True)
    monkeypatch.setattr(machine, "stale_locks", list)
    assert list(operator_builds()) == []


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({"every_steps": 500, "keep_last": 2}, 10_000, 3),
        ({"every_steps": 500, "keep_last": 4}, 10_000, 5),
        ({"every_steps": 500}, 600, 2),
        ({"every_steps": 500, "keep_last": 2, "keep_best": True}, 600, 5),  # the best as of each of the newest too
        ({"every_steps": 0}, 600, 1),
        ({"every_steps": 500, "keep_every_steps": 1000}, 10_000, 13),
        ({"every_steps": 400, "keep_every_steps": 1000}, 10_000, 8),  # of multiples of 1000, those saved: of 2000
    ],
)
def test_checkpoints_side_by_side(settings: dict[str, Any], steps: int, expected: int) -> None:
    evaluation = {"every_steps": 100}
    config = parse_config(tree_with(checkpoint=settings, phases=[{"steps": steps}], evaluation=evaluation), "here")
    assert checkpoints_at_most(config.checkpoint, config.total_steps) == expected


@pytest.mark.parametrize(
    ("engine", "optimizer", "a_parameter"),
    [
        ({"zero_stage": 0, "precision": "fp32"}, "adamw", 4 + 8),
        ({"zero_stage": 1, "precision": "bf16"}, "adamw", 2 + 4 + 8),
        ({"zero_stage": 3, "precision": "bf16"}, "lamb", 4 + 8),
        ({"zero_stage": 1, "precision": "fp32"}, "muon", 4 + 4 + 4),
    ],
)
def test_bytes_of_a_checkpoint(engine: dict[str, Any], optimizer: str, a_parameter: int) -> None:
    settings = parse_config(tree_with(engine=engine, optimizer={"name": optimizer, "gradient_clipping": 0.0}), "here")
    assert checkpoint_bytes(settings.engine, settings.optimizer, 1000) == 1000 * a_parameter


@pytest.mark.parametrize(
    ("engine", "optimizer", "a_parameter"),
    [
        ({"zero_stage": 0, "precision": "fp32"}, "adamw", 4 + 4 + 8),
        ({"zero_stage": 1, "precision": "bf16"}, "adamw", 2 + 2 + (4 + 8) / 4),
        ({"zero_stage": 2, "precision": "bf16"}, "adamw", 2 + (2 + 4 + 8) / 4),
        ({"zero_stage": 3, "precision": "bf16"}, "lamb", (2 + 2 + 4 + 8) / 4),
        ({"zero_stage": 1, "precision": "fp32"}, "muon", 4 + 4 + 4 / 4),
    ],
)
def test_bytes_of_a_rank(engine: dict[str, Any], optimizer: str, a_parameter: float) -> None:
    """Weights, gradients and the optimizer's numbers; what the stage spreads, over four ranks."""
    settings = parse_config(tree_with(engine=engine, optimizer={"name": optimizer, "gradient_clipping": 0.0}), "here")
    assert rank_bytes(settings.engine, settings.optimizer, 1000, 4) == 1000 * a_parameter
    assert rank_bytes(settings.engine, settings.optimizer, 0, 4) == 0
