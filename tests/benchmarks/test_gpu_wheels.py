"""`benchmarks/gpu/wheels.py`: what an offline machine lacks, and what is wrong with the wheels for it."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .scripts import BENCHMARKS, load

WHEELS = load("gpu/wheels")
MACHINE = BENCHMARKS / "gpu" / "machine.txt"


def wheel(folder: Path, name: str, **files: bytes) -> Path:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for library, content in files.items():
            archive.writestr(f"deepspeed/ops/adam/{library}.cpython-312-x86_64-linux-gnu.so", content)
    return folder / f"{name}-1.0-py3-none-any.whl"


def test_a_list_is_read_as_pip_writes_it(tmp_path: Path) -> None:
    (tmp_path / "has.txt").write_text(
        "# there\nPyYAML==6.0.3\ntorch==2.11.0+cu130\nnumpy\nours @ file:///src\n-e /src/x\n\n"
    )
    found = WHEELS.read_machine(tmp_path / "has.txt")
    assert found == {"pyyaml": "6.0.3", "torch": "2.11.0+cu130", "numpy": None, "ours": None}


def test_what_is_there_is_taken_with_all_that_it_depends_on() -> None:
    asked = [Requirement("pydantic>=2"), Requirement("datasets")]
    everything = WHEELS.closure(asked, {})
    assert {"pydantic", "pydantic-core", "typing-inspection", "datasets", "dill", "numpy"} <= set(everything)
    there = {"pydantic": "2.14.0", **dict.fromkeys(set(everything) - {"datasets", "pydantic-core"})}
    assert set(WHEELS.closure(asked, there)) == {"datasets"}  # pydantic's own core is not asked for
    there["pydantic"] = "1.10.2"
    assert {"pydantic", "pydantic-core"} <= set(WHEELS.closure(asked, there))


def test_wheels_have_the_versions_of_the_constraints() -> None:
    lacks = dict(line.split("==") for line in WHEELS.missing(WHEELS.read_machine(MACHINE)))
    pins = WHEELS.read_machine(WHEELS.ROOT / "constraints.txt")
    assert {"deepspeed", "webdataset", "pydantic-core", "typing-inspection", "zstandard"} <= set(lacks)
    assert not {"torch", "numpy", "transformers", "msgpack"} & set(lacks)
    assert all(pins[name] == version for name, version in lacks.items())


def test_a_machine_needs_a_torch_of_its_own() -> None:
    there = {**WHEELS.read_machine(MACHINE), "torch": "2.9.1+cu130"}
    with pytest.raises(SystemExit, match=r"torch 2\.9\.1\+cu130"):
        WHEELS.missing(there)


def test_an_operator_that_was_compiled_for_cpus_is_found_out(tmp_path: Path) -> None:
    good = wheel(tmp_path, "good", fused_adam_op=b"ELF .text .nv_fatbin .data")
    bad = wheel(tmp_path, "bad", fused_adam_op=b"ELF .text .data")
    none = wheel(tmp_path, "none", cpu_adam_op=b"ELF .text .data")
    assert [WHEELS.without_device_code(each) for each in (good, bad, none)] == [False, True, False]
    assert [WHEELS.has_fused_adam(each) for each in (good, bad, none)] == [True, True, False]


def test_a_package_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path, "dill")
    (tmp_path / "dill-2.0-py3-none-any.whl").touch()
    with pytest.raises(SystemExit, match=r"dill-1\.0.* and dill-2\.0"):
        WHEELS.wheels_in(tmp_path)


def test_a_module_that_is_not_there_is_neither_imported_nor_found(monkeypatch: pytest.MonkeyPatch) -> None:
    available = set(WHEELS.closure(WHEELS.direct_requirements(), {})) - {"webdataset"}
    absent = WHEELS.absent_modules(available)
    assert {"webdataset", "pytest"} <= absent
    assert not {"torch", "yaml", "maskloom"} & absent
    monkeypatch.setattr(sys, "meta_path", [WHEELS.Without(finder, {"webdataset"}) for finder in sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.util.find_spec("webdataset") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("webdataset")
    assert importlib.util.find_spec("yaml")
