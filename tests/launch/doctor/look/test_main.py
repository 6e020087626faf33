"""What this machine tells about itself."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from maskloom.launch.doctor.facts import Facts, Request
from maskloom.launch.doctor.look.__main__ import look


def test_facts_survive_json(run_config: dict, write_config: Callable[[dict], Path]) -> None:
    config = write_config(run_config)
    request = Request(config=str(config), run_dir=run_config["run_dir"], world_size=3, slots=3)
    found = look(request)
    assert Facts.of(json.loads(json.dumps(asdict(found)))) == found
    assert found.refusal is None
    assert found.hostname == socket.gethostname()
    # A build of the package index has its variant (+cu130) in the module alone.
    assert found.packages["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
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


def test_gpus_that_torch_cannot_use_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100, 470.82.01'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = look(Request())
    assert Facts.of(json.loads(json.dumps(asdict(found)))) == found
    assert found.unusable_gpus is not None
    said, remedy = found.unusable_gpus
    assert said.startswith("nvidia-smi shows 1 GPU(s) (NVIDIA A100, driver 470.82.01), and torch ")
    assert remedy.startswith("Update the driver to ")
