"""What this machine tells about itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from maskloom.config_file import load_config
from maskloom.launch.doctor import facts
from maskloom.launch.doctor.facts import (
    Facts,
    Gpu,
    Request,
    ask_nvidia_smi,
    chosen_blocks,
    gpu_of,
    lock_holder,
    look,
    look_at_corpora,
    look_at_folder,
    nearest,
    source_digest,
)


def test_facts_survive_json(run_config: dict, write_config: Callable[[dict], Path]) -> None:
    config = write_config(run_config)
    request = Request(config=str(config), run_dir=run_config["run_dir"], world_size=3, slots=3)
    found = look(request)
    assert Facts.of(json.loads(json.dumps(asdict(found)))) == found
    assert found.refusal is None
    assert found.hostname == socket.gethostname()
    assert found.packages["torch"] == torch.__version__
    assert [(corpus.path, corpus.fault) for corpus in found.corpora] == [(run_config["data"]["train"], None)]
    assert found.corpora[0].read
    assert found.memory_free_bytes > 0
    assert found.run
    assert found.run.fault is None
    assert not Path(run_config["run_dir"]).exists()
    assert [path.name for path in Path(run_config["run_dir"]).parent.iterdir()] == [config.name]  # nothing is left

    refused = look(Request(config=str(config), overrides=("engine.reduce_precision=fp16",), world_size=3, slots=3))
    assert "engine.reduce_precision fp16" in str(refused.refusal)
    assert "7 ranks are more than the 6 lanes" in str(look(Request(config=str(config), world_size=7)).refusal)


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


def test_rows_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "--query-gpu=*) echo 'NVIDIA H100 80GB HBM3, 80000, 81559, 2, 0x0000000000000048, GPU-1';\n"
        "  echo 'Tesla P4, 7000, 7600, [N/A], 0x0000000000000001, GPU-2';;\n"
        "*) echo 'unknown column' >&2; exit 2;;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = ask_nvidia_smi("--query-gpu", list(facts.GPU_FIELDS.values()), list(facts.GPU_FIELDS))
    assert gpu_of("H100", first, ["python (process 7)"], None) == Gpu(
        name="H100",
        memory_free_bytes=80000 << 20,
        memory_total_bytes=81559 << 20,
        uncorrected_errors=2,
        slowed_by=("hardware slowdown", "hardware thermal"),
        processes=("python (process 7)",),
    )
    assert gpu_of("P4", second, [], "wrong") == Gpu("P4", 7000 << 20, 7600 << 20, fault="wrong")  # idle is no fault
    assert ask_nvidia_smi("--query-compute-apps", ["pid"], ["pid"]) == []
    assert gpu_of("H100", {}, [], None) == Gpu("H100")


@pytest.mark.gpu
def test_products_on_a_gpu_are_exact() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert facts.multiply(0) is None
    assert all(gpu.fault is None for gpu in facts.look_at_gpus(torch.cuda.device_count()))


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    token = tmp_path / ".doctor-x"
    token.write_text("word")
    wanted = Request(run_dir=str(tmp_path / "not" / "yet"), token_file=str(token), token="word")
    found = look_at_folder(wanted)
    assert (found.path, found.sees_token, found.fault) == (str(tmp_path), True, None)
    assert found.free_bytes
    token.write_text("another")
    assert look_at_folder(wanted).sees_token is False
    token.unlink()
    assert look_at_folder(wanted).sees_token is False
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    in_the_way = look_at_folder(Request(run_dir=str(tmp_path / "file" / "run")))
    assert str(in_the_way.fault).startswith("[Errno 20] Not a directory")
    assert nearest(Path("/")) == Path("/")


def test_the_lock_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskloom.train import run_lock

    monkeypatch.setattr(run_lock, "SILENT_S", 2.0)
    assert lock_holder(tmp_path / "none") is None
    held = run_lock.RunLock(tmp_path)
    assert lock_holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    held.release()
    assert lock_holder(tmp_path) is None
    lock = tmp_path / ".lock"
    lock.write_text("process 7 on node9")
    assert lock_holder(tmp_path) is None  # killed
    is_over = threading.Event()

    def touch() -> None:
        while not is_over.wait(0.2):
            os.utime(lock)

    toucher = threading.Thread(target=touch)  # as a run on another machine whose locks do not come here
    toucher.start()
    try:
        assert lock_holder(tmp_path) == "process 7 on node9"
    finally:
        is_over.set()
        toucher.join()


def test_blocks_are_the_first_the_last_and_others_from_host_to_host(corpus_dir: Path) -> None:
    from maskloom.data.index import load_index

    index = load_index(corpus_dir)
    blocks = facts.count_blocks(index)
    assert chosen_blocks(index, Request(blocks=blocks)) == list(range(blocks))
    one, other = (chosen_blocks(index, Request(number=number, blocks=6)) for number in (0, 1))
    assert one != other
    assert len(set(one)) == len(set(other)) == 6
    assert {0, blocks - 1} <= set(one) & set(other)


def test_damaged_and_missing_shards(
    corpus_dir: Path, run_config: dict, write_config: Callable[[dict], Path], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(corpus_dir, shards)
    run_config["data"]["train"] = str(shards)
    config = load_config(write_config(run_config))
    skips = load_config(write_config(run_config), ["data.on_bad_data=skip"])
    first, *_, last = sorted(shards.glob("*.tar"))
    with first.open("r+b") as file:
        file.seek(600)
        file.write(b"\xff" * 64)
    (damaged,) = look_at_corpora(config, Request())
    assert first.name in str(damaged.fault)
    assert not damaged.is_skipped
    (passed,) = look_at_corpora(skips, Request())
    assert passed.is_skipped
    last.unlink()
    (missing,) = look_at_corpora(config, Request())
    assert last.name in str(missing.fault)
    assert missing.digest is None
