"""The image and its compose file, as text: no root, no secrets, nothing that runs unseen from the network."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from maskloom.redaction import is_secret_name

DOCKER = Path(__file__).parents[1] / "docker"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(instruction, argument) of the Dockerfile, with continued lines joined and comments left out."""
    text = (DOCKER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined]


def arguments(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [argument for instruction, argument in instructions if instruction == name]


def test_it_ends_as_a_user_without_privileges(instructions: list[tuple[str, str]]) -> None:
    (user,) = arguments(instructions, "USER")
    assert int(user) > 0
    assert f"useradd --uid {user} " in " ".join(arguments(instructions, "RUN"))
    order = [instruction for instruction, _ in instructions]
    assert order.index("USER") > max(place for place, name in enumerate(order) if name in ("RUN", "COPY"))
    assert arguments(instructions, "ENTRYPOINT") == ['["maskloom"]']


def test_the_base_is_chosen_by_who_builds_it(instructions: list[tuple[str, str]]) -> None:
    assert instructions[0][0] == "ARG"
    assert instructions[0][1].startswith("BASE=")
    assert arguments(instructions, "FROM") == ["${BASE}"]


def test_nothing_is_fetched_unseen_and_versions_are_pinned(instructions: list[tuple[str, str]]) -> None:
    assert not arguments(instructions, "ADD")  # which also takes URLs
    runs = " ".join(arguments(instructions, "RUN"))
    assert not re.search(r"\b(curl|wget|git clone|apt-key|trusted-host|allow-unauthenticated)\b", runs)
    installs = re.findall(r"pip install [^&;]*", runs)
    assert len(installs) == 4
    assert "^torch==" in installs[0]
    assert all("--constraint /build/constraints.txt" in install for install in installs[1:3])
    assert "^deepspeed==" in installs[3]


def test_fused_adam_is_compiled_for_gpus_or_the_build_fails(instructions: list[tuple[str, str]]) -> None:
    (build,) = [run for run in arguments(instructions, "RUN") if "DS_BUILD_FUSED_ADAM=1" in run]
    assert build.startswith("if [ -x /usr/local/cuda/bin/nvcc ]; then ")
    assert "DS_ACCELERATOR=cuda" in build  # a build has no GPU: DeepSpeed would take it for a machine of CPUs
    assert "--no-build-isolation" in build  # torch's headers
    assert re.search(r"grep -q nv_fatbin \S+/deepspeed/ops/adam/fused_adam_op\*\.so", build)
    archs = re.fullmatch(r'CUDA_ARCHS="(\d+\.\d(?:;\d+\.\d)*)"', arguments(instructions, "ARG")[1])
    assert archs
    # The first and last GPUs of the build that the image has, as docs/install.md lists them.
    table = (DOCKER.parent / "docs" / "install.md").read_text()
    (first, last) = re.findall(r"^\| cu130, .* (\d+\.\d) to (\d+\.\d)[^|]*\|$", table, re.MULTILINE)[0]
    assert [first, last] == [archs[1].split(";")[0], archs[1].split(";")[-1]]


def test_the_base_for_gpus_has_the_cuda_that_torch_is_built_for(instructions: list[tuple[str, str]]) -> None:
    (base,) = re.findall(r"--build-arg BASE=nvidia/cuda:(\d+\.\d+)\.\d+-devel-", (DOCKER / "Dockerfile").read_text())
    pin = re.search(r"^torch==(\d+\.\d+)", (DOCKER.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pin
    # The table of docs/install.md: `| 2.13 | cu130 | ...`, the build that PyPI has in the second column.
    table = (DOCKER.parent / "docs" / "install.md").read_text()
    (build,) = re.findall(rf"^\| {re.escape(pin[1])} \| cu(\d+) \|", table, re.MULTILINE)
    assert base == f"{build[:-1]}.{build[-1]}"


def test_every_run_is_shell(instructions: list[tuple[str, str]]) -> None:
    for run in arguments(instructions, "RUN"):
        subprocess.run(["sh", "-n", "-c", run], check=True, timeout=60)


def test_there_are_no_secrets_and_no_servers(instructions: list[tuple[str, str]]) -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert "StrictHostKeyChecking" not in text
    assert "openssh-server" not in text
    assert not arguments(instructions, "EXPOSE")
    for argument in arguments(instructions, "ENV") + arguments(instructions, "ARG"):
        assert not is_secret_name(argument.partition("=")[0])
    copied = {word for argument in arguments(instructions, "COPY") for word in argument.split()[:-1]}
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"}
    ignored = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_the_service_has_no_network_and_no_privileges() -> None:
    (service,) = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].values()
    assert service["network_mode"] == "none"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp:exec"]  # Docker's default is noexec, and torch loads what it compiled
    assert "privileged" not in service
    assert service["user"].endswith("10001:10001}")
    assert "../data:/workspace/data:ro" in service["volumes"]
    assert not any("docker.sock" in volume or ".ssh" in volume for volume in service["volumes"])
