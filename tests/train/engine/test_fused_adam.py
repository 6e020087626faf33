"""DeepSpeed's FusedAdam: where it can be had, what becomes of a build that fails, and that the ranks agree."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed import git_version_info
from torch.utils import cpp_extension

from maskloom.config import Optimizer
from maskloom.distributed import World
from maskloom.launch.probe import free_port
from maskloom.optim import OPTIMIZERS
from maskloom.train.engine import cuda_home, fused_adam
from maskloom.train.engine.fused_adam import (
    linked_libraries,
    links_a_gpu,
    offered,
    telling_line,
    why_no_fused_adam,
    why_refused,
)
from tests.optim.test_kind import tiny_model


@pytest.fixture(autouse=True)
def _decided_anew() -> Iterator[None]:
    fused_adam.why_refused.cache_clear()
    yield
    fused_adam.why_refused.cache_clear()


def built(settings: Optimizer, world: World) -> torch.optim.Optimizer:
    """The optimizer of these settings over a small model."""
    kind = OPTIMIZERS[settings.name]
    return kind.build(kind.groups(tiny_model(), settings), settings, offered(kind, world))


def test_not_on_a_cpu() -> None:
    assert why_no_fused_adam() == why_refused(World()) == "it is for CUDA"
    assert isinstance(built(Optimizer(), World()), torch.optim.AdamW)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU, ninja, and no toolkit; returns where there is room for one."""
    monkeypatch.setattr(fused_adam, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.setattr(cuda_home, "USUAL", tmp_path / "usual")
    monkeypatch.setattr(cuda_home, "PACKAGES", tmp_path / "nvidia")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setattr("torch.utils.cpp_extension.verify_ninja_availability", lambda: None)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("CUDA_HOME", "CUDA_PATH", "CPATH"):
        monkeypatch.setenv(name, "")
    return tmp_path / "usual"


def put_nvcc(usual: Path, release: str) -> None:
    home = usual / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.1\n")
    nvcc.chmod(0o755)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The library of an installed DeepSpeed, which says of it that it is CUDA's: a file with the names of what it links."""
    library = tmp_path / "fused_adam_op.so"
    library.write_text("libc10.so libcudart.so.13")
    monkeypatch.setattr(fused_adam, "linked_libraries", lambda file: file.read_text().split())
    monkeypatch.setitem(git_version_info.installed_ops, "fused_adam", True)
    monkeypatch.setattr(git_version_info, "accelerator_name", "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(library)))
    return library


def test_a_build_that_holds_it_will_do(on_cuda: Path, installed: Path) -> None:
    assert why_no_fused_adam() is None


def test_an_operator_for_cpus_is_not_taken(on_cuda: Path, installed: Path) -> None:
    """Of a build that was made without a GPU: with nvcc another is compiled."""
    installed.write_text("libc10.so libtorch_cpu.so")
    assert "CUDA_HOME does not exist" in str(why_no_fused_adam())
    put_nvcc(on_cuda, "12.8")
    assert why_no_fused_adam() is None


def test_neither_is_one_that_deepspeed_built_for_another_device(
    on_cuda: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_version_info, "accelerator_name", "cpu")
    assert "CUDA_HOME does not exist" in str(why_no_fused_adam())


@pytest.mark.parametrize(
    ("linked", "is_a_gpus"),
    [
        (["libc10.so", "libcudart.so.13", "libc.so.6"], True),
        (["libcudart-9335f6a2.so.12"], True),
        (["libc10_cuda.so"], True),
        (["libtorch_cuda.so"], True),
        (["libtorch_hip.so"], True),
        (["libc10.so", "libtorch_cpu.so", "libtorch.so", "libstdc++.so.6"], False),
        ([], False),
    ],
)
def test_an_operator_for_gpus_links_a_library_of_theirs(
    linked: list[str], is_a_gpus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_adam, "linked_libraries", lambda file: linked)
    assert links_a_gpu(Path("op.so")) is is_a_gpus


def test_what_cannot_be_read_links_none(tmp_path: Path) -> None:
    (tmp_path / "op.so").write_text("damaged")
    assert not links_a_gpu(tmp_path / "op.so")
    assert not links_a_gpu(tmp_path / "gone.so")


def test_without_nvcc_it_says_so(on_cuda: Path) -> None:
    assert "CUDA_HOME does not exist" in str(why_no_fused_adam())


@pytest.mark.parametrize(("release", "said"), [("12.8", None), ("11.0", "does not match")])
def test_with_nvcc_it_is_a_matter_of_its_version(release: str, said: str | None, on_cuda: Path) -> None:
    put_nvcc(on_cuda, release)
    why = why_no_fused_adam()
    assert why is None if said is None else said in str(why)
    assert str(on_cuda / "cuda") == cpp_extension.CUDA_HOME


def test_without_ninja_it_says_so(on_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr("deepspeed.ops.op_builder.builder.assert_no_cuda_mismatch", lambda name: True)
    monkeypatch.setattr("torch.utils.cpp_extension.verify_ninja_availability", missing)
    assert "Ninja is required" in str(why_no_fused_adam())


class TestLoading:
    @pytest.fixture
    def made(self, on_cuda: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What FusedAdam is made with; its operator loads."""
        made: list[Any] = []
        module = SimpleNamespace(__file__=str(installed))
        monkeypatch.setattr(fused_adam, "load_operator", lambda builder, load: module)
        monkeypatch.setattr(fused_adam, "fault_of_step", lambda: None)
        monkeypatch.setattr("deepspeed.ops.adam.FusedAdam", lambda *given, **more: made.append(more) or "fused")
        return made

    def test_where_it_can_be_had_it_is_taken(self, made: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
        assert built(Optimizer(lr=3e-4), World()) == "fused"
        assert made == [{"lr": 3e-4, "betas": (0.9, 0.98), "eps": 1e-6, "adam_w_mode": True}]
        assert capsys.readouterr() == ("", "")

    def test_a_build_that_fails_leaves_torchs_with_one_warning(
        self, made: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tried = []

        def fail(builder: Any, load: Any) -> None:
            tried.append(builder.name)
            raise RuntimeError(
                "Error building extension 'fused_adam': [1/2] c++ ...\n/usr/bin/ld: cannot find -lcudart\nninja: stopped"
            )

        monkeypatch.setattr(fused_adam, "load_operator", fail)
        for _ in range(2):  # also when a run goes back, and builds its engine anew
            assert isinstance(built(Optimizer(), World()), torch.optim.AdamW)
        assert (made, tried) == ([], ["fused_adam"])
        assert capsys.readouterr().err == (
            "WARNING: DeepSpeed's FusedAdam is not to be had: its build failed: /usr/bin/ld: cannot find -lcudart. All ranks "
            "take torch's fused AdamW instead\n"
        )
        assert why_refused(World()) == "its build failed"

    def test_muon_takes_the_same_for_the_rest(self, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(builder: Any, load: Any) -> None:
            raise ImportError("undefined symbol")

        monkeypatch.setattr(fused_adam, "load_operator", refuse)
        muon = built(Optimizer(name="muon", gradient_clipping=0.0), World())
        assert isinstance(muon.aux_optimizer, torch.optim.AdamW)

    def test_what_was_built_for_cpus_is_not_taken(
        self, made: list[Any], installed: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As torch does when it sees no GPU."""
        put_nvcc(cuda_home.USUAL, "12.8")
        installed.write_text("libc10.so libtorch_cpu.so")
        assert isinstance(built(Optimizer(), World()), torch.optim.AdamW)
        assert f"its build failed: {installed} is for CPUs" in capsys.readouterr().err


class TestStepping:
    """An operator that loads is tried on the device, which is here a CPU with torch's Adam in its place."""

    @pytest.fixture(autouse=True)
    def _loads(self, on_cuda: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        device = SimpleNamespace(device_name=lambda: "cuda", current_device_name=lambda: "cpu")
        monkeypatch.setattr(fused_adam, "get_accelerator", lambda: device)
        module = SimpleNamespace(__file__=str(installed))
        monkeypatch.setattr(fused_adam, "load_operator", lambda builder, load: module)
        monkeypatch.setattr("deepspeed.ops.adam.FusedAdam", torch.optim.Adam)

    def test_one_that_steps_is_taken(self) -> None:
        assert why_refused(World()) == ""

    def test_one_that_was_compiled_for_other_gpus_is_not(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def no_image(optimizer: torch.optim.Adam) -> None:
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\n"
                "CUDA kernel errors might be asynchronously reported: the error may be elsewhere."
            )

        monkeypatch.setattr(torch.optim.Adam, "step", no_image)
        assert why_refused(World()) == "it does not step"
        assert isinstance(built(Optimizer(), World()), torch.optim.AdamW)
        assert capsys.readouterr().err == (
            "WARNING: DeepSpeed's FusedAdam is not to be had: it does not step: CUDA error: no kernel image is available for "
            "execution on the device. All ranks take torch's fused AdamW instead\n"
        )

    @pytest.mark.parametrize("value", [1.0, float("nan")])
    def test_neither_is_one_that_steps_elsewhere(
        self, value: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def step(optimizer: torch.optim.Adam) -> None:
            optimizer.param_groups[0]["params"][0].data.fill_(value)

        monkeypatch.setattr(torch.optim.Adam, "step", step)
        assert why_refused(World()) == "it does not step"
        assert f"it does not step: from 1 to [{value}, " in capsys.readouterr().err


HEAD = "Error building extension 'fused_adam': [1/2] nvcc -o a.o a.cu\nFAILED: a.o\n"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (f"{HEAD}nvcc fatal   : Unsupported gpu\nninja: build stopped", "nvcc fatal   : Unsupported gpu"),
        (f"{HEAD}In file included\na.h:1: fatal error: cusparse.h: No such file", "a.h:1: fatal error: cusparse.h: No such file"),
        ("CUDA version mismatch! DeepSpeed ops were compiled", "CUDA version mismatch! DeepSpeed ops were compiled"),
        ("", "no reason given"),
    ],
)  # fmt: skip
def test_the_line_that_tells(output: str, line: str) -> None:
    assert telling_line(output) == line


RANK = """
    import json
    from types import SimpleNamespace
    from maskloom.distributed import World
    from maskloom.train.engine import fused_adam
    from maskloom.train.engine.engine import start_distributed

    world = World.discover()
    start_distributed(world, 60.0)
    fused_adam.get_accelerator = lambda: SimpleNamespace(device_name=lambda: "cuda")
    fused_adam.why_no_fused_adam = lambda: None
    fused_adam.fault_of_step = lambda: None
    fused_adam.is_ready = fused_adam.links_a_gpu = lambda *_: True
    for bad in (None, 0, 1):
        tried = []

        def load(builder, load):
            tried.append(builder.name)
            if world.rank == bad:
                raise OSError("cannot open shared object file")
            return SimpleNamespace(__file__="op.so")

        fused_adam.load_operator = load
        fused_adam.why_refused.cache_clear()
        print(json.dumps([bad, fused_adam.why_refused(world), len(tried)]))
    fused_adam.load_operator = lambda builder, load: SimpleNamespace(__file__="op.so")
    fused_adam.fault_of_step = lambda: "it does not step: no kernel image" if world.rank == 1 else None
    fused_adam.why_refused.cache_clear()
    print(json.dumps([fused_adam.why_refused(world)]))
"""


def test_all_ranks_take_it_or_none() -> None:
    """The first of a machine builds; if it fails, the others do not try; if another one fails, the first gives it up."""
    port = free_port(21000)
    launched = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RANK)],
            env={**launched, "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    failed = "its build failed"
    found = [[json.loads(line) for line in out.splitlines() if line.startswith("[")] for out, _ in outputs]
    assert found == [
        [[None, "", 1], [0, failed, 1], [1, failed, 1], ["it does not step"]],
        [[None, "", 1], [0, failed, 0], [1, failed, 1], ["it does not step"]],
    ], outputs
    said = [line for _, error in outputs for line in error.splitlines() if "FusedAdam" in line]
    # By the first rank alone.
    assert [f"(rank {rank} on " in line for rank, line in zip((0, 1, 1), said, strict=True)] == [True] * 3


def test_they_are_what_the_linker_was_given(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    (tmp_path / "none.c").write_text("int none(void) { return 0; }\n")
    (tmp_path / "user.c").write_text('const char *said = "libspoken_of.so is not linked";\n')
    names = ["libcudart-9335f6a2.so.12", "libc10_cuda.so"]
    for name in names:
        command = [compiler, "-shared", "-fPIC", "-o", name, "none.c", f"-Wl,-soname,{name}"]
        subprocess.run(command, cwd=tmp_path, check=True)
    for given in ([], names):
        command = [compiler, "-shared", "-fPIC", "-nostdlib", "-o", "out.so", "user.c", "-Wl,--no-as-needed", *given]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert linked_libraries(tmp_path / "out.so") == given


def test_torch_links_itself() -> None:
    """A library of hundreds of MiB, made by somebody else."""
    linked = linked_libraries(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert {"libtorch.so", "libc.so.6"} <= set(linked)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + bytes(200)])
def test_a_file_that_is_not_a_library_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "op.so").write_bytes(content)
    with pytest.raises(ValueError, match=r"op\.so is not a shared library"):
        linked_libraries(tmp_path / "op.so")


def test_whatever_is_damaged_in_one_it_is_read_or_refused(tmp_path: Path) -> None:
    """The places and lengths that it holds may point anywhere."""
    whole = Path(sys.executable).resolve()
    content = bytearray(whole.read_bytes()[:4096])
    random = Random(0)
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(random.randint(1, 8)):
            damaged[random.randrange(6, 1024)] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
        (tmp_path / "op.so").write_bytes(damaged)
        with suppress(ValueError):
            linked_libraries(tmp_path / "op.so")


def test_a_place_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    segment = struct.pack("<IIQQQQQQ", 2, 0, 2**63, 0, 0, 16, 16, 8)
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1) + bytes(6)
    (tmp_path / "op.so").write_bytes(head + segment)
    with pytest.raises(ValueError, match=r"op\.so is not a shared library"):
        linked_libraries(tmp_path / "op.so")
