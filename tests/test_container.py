"""The image, its compose file and Apptainer's definition, as text: no root, no secrets, nothing that runs unseen."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import maskloom
from maskloom.commands import load
from maskloom.redaction import is_secret_name

from .conftest import missing

DOCKER = Path(__file__).parents[1] / "docker"
FINAL = ("cpu", "cuda")
"""The stages that become images."""
SECRETS = ("sources", "pip", "ca")

Instructions = list[tuple[str, str]]


@pytest.fixture(scope="module")
def instructions() -> Instructions:
    """(instruction, argument) of the Dockerfile, with continued lines joined and comments left out."""
    text = (DOCKER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined]


@pytest.fixture(scope="module")
def stages(instructions: Instructions) -> dict[str, Instructions]:
    """The instructions of each stage after its FROM, by its name; `` has those before the first."""
    found: dict[str, Instructions] = {"": []}
    name = ""
    for instruction, argument in instructions:
        if instruction == "FROM":
            name = argument.split(" AS ")[1]
            found[name] = []
        else:
            found[name].append((instruction, argument))
    return found


@pytest.fixture(scope="module")
def steps() -> dict[str, str]:
    """The functions of install.sh, by name."""
    text = (DOCKER / "install.sh").read_text()
    return dict(re.findall(r"^(\w+)\(\) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def definition() -> dict[str, str]:
    """The sections of apptainer.def, by name; `` has the header."""
    lines = [line for line in (DOCKER / "apptainer.def").read_text().splitlines() if not line.startswith("#")]
    header, *sections = re.split(r"^%(\w+)\n", "\n".join(lines), flags=re.MULTILINE)
    return {"": header, **dict(zip(sections[::2], sections[1::2], strict=True))}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services of compose.yaml."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return found


def arguments(instructions: Instructions, name: str) -> list[str]:
    return [argument for instruction, argument in instructions if instruction == name]


@pytest.mark.parametrize("stage", FINAL)
def test_it_ends_as_a_user_without_privileges(stage: str, stages: dict[str, Instructions]) -> None:
    instructions = stages[stage]
    (user,) = arguments(instructions, "USER")
    assert int(user) > 0
    assert f"useradd --uid {user} " in " ".join(arguments(instructions, "RUN"))
    order = [instruction for instruction, _ in instructions]
    assert order.index("USER") > max(place for place, name in enumerate(order) if name in ("RUN", "COPY"))
    assert arguments(instructions, "ENTRYPOINT") == ['["maskloom"]']


def test_the_base_is_chosen_by_who_builds_it(instructions: Instructions) -> None:
    bases = [argument.partition("=")[0] for argument in arguments(instructions[:3], "ARG")]
    assert bases == ["BASE", "CUDA_BUILD_BASE", "CUDA_BASE"]
    assert [argument.split()[0] for argument in arguments(instructions, "FROM")] == [
        f"${{{base}}}" for base in ("BASE", "CUDA_BUILD_BASE", "CUDA_BASE", "BASE")
    ]


def test_the_image_for_cpus_is_what_is_built_by_default(instructions: Instructions) -> None:
    assert arguments(instructions, "FROM")[-1].endswith(" AS cpu")


def test_both_images_end_alike(stages: dict[str, Instructions]) -> None:
    ends = [[each for each in stages[stage] if each[0] not in ("RUN", "COPY", "ARG")] for stage in FINAL]
    assert ends[0] == ends[1]
    for stage in FINAL:
        assert arguments(stages[stage], "COPY") == [f"--from=build-{stage} /opt/maskloom /opt/maskloom"]
        (label,) = arguments(stages[stage], "LABEL")
        assert f'org.opencontainers.image.version="{maskloom.__version__}"' in label


def test_the_health_check_is_a_command_of_maskloom(stages: dict[str, Instructions]) -> None:
    (check,) = arguments(stages["cpu"], "HEALTHCHECK")
    program, command, *rest = json.loads(check.partition(" CMD ")[2])
    _, parser = load((command,))
    assert program == "maskloom"
    assert parser.parse_intermixed_args(rest).healthy is True
    (run,) = arguments(stages["cpu"], "RUN")
    assert rest[-1] in run.partition("install -d ")[2].split()  # it exists, so that no runs are not an error


def test_nothing_is_fetched_unseen_and_versions_are_pinned(instructions: Instructions, steps: dict[str, str]) -> None:
    assert not arguments(instructions, "ADD")  # which also takes URLs
    runs = " ".join(arguments(instructions, "RUN"))
    written = runs + (DOCKER / "install.sh").read_text() + (DOCKER / "apptainer.def").read_text()
    assert not re.search(r"\b(curl|wget|git clone|apt-key|trusted-host|allow-unauthenticated)\b", written)
    assert "pip install" not in runs
    installs = re.findall(r"pip install [^&;\n]*", "\n".join(steps.values()))
    assert len(installs) == 4
    assert "pinned torch" in installs[0]
    assert all('--constraint "$SOURCE/constraints.txt"' in install for install in installs[1:3])
    assert "pinned deepspeed" in installs[3]
    assert steps["pinned"].strip() == 'grep "^$1==" "$SOURCE/constraints.txt"'


def test_fused_adam_is_compiled_for_gpus_or_the_build_fails(
    stages: dict[str, Instructions], steps: dict[str, str], definition: dict[str, str]
) -> None:
    (build,) = arguments(stages["build-cuda"], "RUN")
    assert 'install.sh fused_adam "${CUDA_ARCHS}"' in build
    assert "fused_adam" not in " ".join(arguments(stages["build-cpu"], "RUN"))
    assert "if [ -x /usr/local/cuda/bin/nvcc ]; then" in definition["post"]
    step = steps["fused_adam"]
    assert "DS_BUILD_FUSED_ADAM=1" in step
    assert "DS_ACCELERATOR=cuda" in step  # a build has no GPU: DeepSpeed would take it for a machine of CPUs
    assert "--no-build-isolation" in step  # torch's headers
    # The last command: its failure ends the build.
    assert re.search(r'\n    grep -q nv_fatbin "\$PREFIX"\S+/deepspeed/ops/adam/fused_adam_op\*\.so\n$', step)
    archs = re.fullmatch(r'CUDA_ARCHS="(\d+\.\d(?:;\d+\.\d)*)"', arguments(stages["build-cuda"], "ARG")[-1])
    assert archs
    assert f"CUDA_ARCHS={archs[1]}\n" in definition["arguments"]
    # The first and last GPUs of the build that the image has, as docs/install.md lists them.
    table = (DOCKER.parent / "docs" / "install.md").read_text()
    (first, last) = re.findall(r"^\| cu130, .* (\d+\.\d) to (\d+\.\d)[^|]*\|$", table, re.MULTILINE)[0]
    assert [first, last] == [archs[1].split(";")[0], archs[1].split(";")[-1]]


def test_the_base_for_gpus_has_the_cuda_that_torch_is_built_for(stages: dict[str, Instructions]) -> None:
    _, *bases = [argument.partition("=")[2] for argument in arguments(stages[""], "ARG")][:3]
    (version,) = {re.match(r"nvidia/cuda:(\d+\.\d+)\.\d+-(?:devel|base)-", base)[1] for base in bases}  # type: ignore[index]
    assert bases[0] in (DOCKER / "apptainer.def").read_text()
    assert 'TORCH_INDEX=""' in arguments(stages["build-cuda"], "ARG")  # pip's own index, which is PyPI
    pin = re.search(r"^torch==(\d+\.\d+)", (DOCKER.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pin
    # The table of docs/install.md: `| 2.13 | cu130 | ...`, the build that PyPI has in the second column.
    table = (DOCKER.parent / "docs" / "install.md").read_text()
    (build,) = re.findall(rf"^\| {re.escape(pin[1])} \| cu(\d+) \|", table, re.MULTILINE)
    assert version == f"{build[:-1]}.{build[-1]}"


def test_every_run_is_shell(instructions: Instructions, definition: dict[str, str]) -> None:
    runs = [re.sub(r"--mount=\S+", "", run) for run in arguments(instructions, "RUN")]
    for run in (*runs, *(definition[name] for name in ("post", "environment", "runscript", "test"))):
        subprocess.run(["sh", "-n", "-c", run], check=True, timeout=60)


def test_linters_have_nothing_to_say() -> None:
    hadolint, shellcheck = Path(sys.executable).with_name("hadolint"), shutil.which("shellcheck")
    if not hadolint.exists() or not shellcheck:
        missing("hadolint and shellcheck")
    subprocess.run([hadolint, DOCKER / "Dockerfile"], check=True, timeout=60)
    subprocess.run([str(shellcheck), *sorted(DOCKER.glob("*.sh"))], check=True, timeout=60)


def test_there_are_no_secrets_and_no_servers(instructions: Instructions, definition: dict[str, str]) -> None:
    text = (DOCKER / "Dockerfile").read_text() + (DOCKER / "install.sh").read_text() + "".join(definition.values())
    assert "StrictHostKeyChecking" not in text
    assert "openssh-server" not in text
    assert not arguments(instructions, "EXPOSE")
    for argument in arguments(instructions, "ENV") + arguments(instructions, "ARG"):
        assert not is_secret_name(argument.partition("=")[0])
    copies = [argument for argument in arguments(instructions, "COPY") if not argument.startswith("--from=")]
    copied = {word for argument in copies for word in argument.split()[:-1]}
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src", "docker/install.sh"}
    assert {line.split()[0] for line in definition["files"].splitlines() if line.strip()} == copied
    ignored = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_mirrors_and_certificates_are_mounted_and_not_copied(stages: dict[str, Instructions]) -> None:
    text = (DOCKER / "install.sh").read_text()
    assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(SECRETS)
    for stage in ("build-cpu", "build-cuda", *FINAL):
        (run,) = arguments(stages[stage], "RUN")
        needed = SECRETS if stage not in FINAL else ("sources", "ca")
        assert re.findall(r"--mount=type=secret,id=(\w+)", run) == list(needed)
        assert not re.search(r"--mount=type=secret\S*,required", run)


@pytest.fixture
def install(tmp_path: Path) -> Any:
    """Run a step of install.sh in a folder, with a python3 whose venv has a pip that only notes its arguments."""
    (tmp_path / "bin").mkdir()
    pip = '#!/bin/sh\necho "$@" >> "$NOTES"\n'
    python = f'#!/bin/sh\nmkdir -p "$3/bin"\ncat > "$3/bin/pip" <<\'END\'\n{pip}END\nchmod +x "$3/bin/pip"\n'
    (tmp_path / "bin" / "python3").write_text(python)
    (tmp_path / "bin" / "python3").chmod(0o755)
    shutil.copy(DOCKER.parent / "constraints.txt", tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PREFIX": str(tmp_path / "prefix"),
        "SOURCE": str(tmp_path),
        "NOTES": str(tmp_path / "notes"),
    }

    def run(*words: str) -> list[str]:
        subprocess.run(["sh", DOCKER / "install.sh", *words], env=environment, check=True, timeout=60, stdout=-3)
        notes = tmp_path / "notes"
        return notes.read_text().splitlines() if notes.exists() else []

    return run


def test_torch_comes_first_from_its_index(install: Any, tmp_path: Path) -> None:
    (torch,) = re.findall(r"^torch==.*$", (DOCKER.parent / "constraints.txt").read_text(), re.MULTILINE)
    first, second = install("maskloom", "s3,tasks", "https://example.org/whl")
    assert first.endswith(f" install --index-url https://example.org/whl {torch}")
    assert second.endswith(f" install --constraint {tmp_path}/constraints.txt {tmp_path}[s3,tasks]")
    *_, first, second = install("maskloom", "", "")
    assert first.endswith(f" install {torch}")
    assert second.endswith(f" {tmp_path}")


def test_tests_are_trimmed_and_headers_stay(install: Any, tmp_path: Path) -> None:
    packages = tmp_path / "prefix" / "lib" / "python3.11" / "site-packages"
    gone = ["torch/test/a", "torch/bin/test_jit", "torch/bin/protoc", "numpy/core/tests/b.py", "torch/lib/c.a"]
    kept = ["torch/include/d.h", "torch/bin/torch_shm_manager", "torch/testing/e.py"]
    for name in (*gone, *kept):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    install("trim")
    assert sorted(str(file.relative_to(packages)) for file in packages.rglob("*") if file.is_file()) == sorted(kept)


@pytest.mark.parametrize("name", ["train", "train-gpu", "monitor"])
def test_a_service_has_no_privileges(name: str, services: dict[str, dict[str, Any]]) -> None:
    service = services[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp:exec"]  # Docker's default is noexec, and torch loads what it compiled
    assert "privileged" not in service
    assert service["user"].endswith("10001:10001}")
    assert not any("docker.sock" in volume or ".ssh" in volume for volume in service["volumes"])
    command, *rest = service["command"]
    _, parser = load((command,))
    parser.parse_intermixed_args(rest)


def test_trainings_have_no_network(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"train", "train-gpu", "monitor"}
    for name in ("train", "train-gpu"):
        assert services[name]["network_mode"] == "none"
        assert "ports" not in services[name]
        assert "../data:/workspace/data:ro" in services[name]["volumes"]
    assert "profiles" not in services["train"]  # what starts by default
    assert services["train"]["build"]["target"] == "cpu"


def test_the_service_for_gpus_takes_all_of_them(services: dict[str, dict[str, Any]]) -> None:
    service = services["train-gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["build"] == {**services["train"]["build"], "target": "cuda"}
    assert service["image"] != services["train"]["image"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_tensorboard_is_for_this_machine_alone(services: dict[str, dict[str, Any]]) -> None:
    service = services["monitor"]
    assert service["profiles"] == ["monitor"]
    assert service["ports"] == ["127.0.0.1:6006:6006"]
    assert service["volumes"] == ["../runs:/workspace/runs:ro"]
    assert {"--host", "0.0.0.0", "--allow-remote"} <= set(service["command"])


def test_the_definition_for_apptainer_builds_the_same(
    definition: dict[str, str], stages: dict[str, Instructions]
) -> None:
    assert set(definition) == {"", "arguments", "labels", "files", "post", "environment", "runscript", "test"}
    assert definition[""].split() == ["Bootstrap:", "docker", "From:", "{{", "BASE", "}}"]
    given = dict(line.strip().split("=", 1) for line in definition["arguments"].splitlines() if line.strip())
    assert set(re.findall(r"\{\{ (\w+) \}\}", "".join(definition.values()))) == given.keys()
    defaults = dict(
        argument.replace('"', "").split("=", 1)
        for stage in ("", "build-cpu")
        for argument in arguments(stages[stage], "ARG")
        if "=" in argument
    )
    assert {name: given[name] for name in given if name in defaults} == {
        name: defaults[name] for name in ("BASE", "EXTRAS", "TORCH_INDEX")
    }
    assert f"org.opencontainers.image.version {maskloom.__version__}\n" in definition["labels"]
    steps = re.findall(r"install\.sh (\w+)", definition["post"])
    assert steps == ["packages", "maskloom", "fused_adam", "trim"]


def test_the_page_names_what_can_be_chosen(instructions: Instructions) -> None:
    page = (DOCKER.parent / "docs" / "containers.md").read_text()
    names = {argument.partition("=")[0] for argument in arguments(instructions, "ARG")}
    assert {name for name in names if f"`{name}`" not in page} == set()
    assert {secret for secret in SECRETS if f"id={secret},src=" not in page or f"| `{secret}` |" not in page} == set()
