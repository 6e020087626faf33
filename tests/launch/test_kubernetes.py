"""launcher/kubernetes.yaml: its parts agree, and its script starts torchrun as torchrun wants it and ends as the Job reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

FILE = Path(__file__).parents[2] / "launcher/kubernetes.yaml"
DONE, AGAIN, USELESS, NOT_BEGUN = 0, 75, 2, 1


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return next(part for part in yaml.safe_load_all(FILE.read_text()) if part["kind"] == "Service")


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return next(part for part in yaml.safe_load_all(FILE.read_text()) if part["kind"] == "Job")


@pytest.fixture(scope="module")
def pod(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def train(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


def variables(train: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in train["env"]}


def test_the_first_pod_has_the_name_at_which_ranks_meet(
    service: dict[str, Any], job: dict[str, Any], pod: dict[str, Any], train: dict[str, Any]
) -> None:
    name = job["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"  # pods are called NAME-0, NAME-1, ...
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert variables(train)["FIRST"] == f"{name}-0.{pod['subdomain']}"


def test_numbers_of_nodes_and_gpus_agree_and_are_marked(job: dict[str, Any], train: dict[str, Any]) -> None:
    given, spec = variables(train), job["spec"]
    assert str(spec["completions"]) == str(spec["parallelism"]) == given["NODES"]
    assert train["resources"]["limits"]["nvidia.com/gpu"] == given["GPUS"]
    text = FILE.read_text()
    assert text.count("# NODES") == 3
    assert text.count("# GPUS") == 2


def test_there_is_time_for_a_checkpoint(pod: dict[str, Any], train: dict[str, Any]) -> None:
    assert 300 <= int(variables(train)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def test_the_jobs_rules_are_those_of_the_script(
    job: dict[str, Any], pod: dict[str, Any], train: dict[str, Any]
) -> None:
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy needs it
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {
        code: rule["action"]
        for rule in rules
        if "onExitCodes" in rule and rule["onExitCodes"]["containerName"] == train["name"]
        for code in rule["onExitCodes"]["values"]
    }
    assert codes == {USELESS: "FailJob", AGAIN: "Ignore"}
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in rules


def test_nothing_runs_as_root(pod: dict[str, Any], train: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    image = (FILE.parents[1] / "docker/Dockerfile").read_text()
    assert f"USER {pod['securityContext']['runAsUser']}\n" in image
    assert pod["automountServiceAccountToken"] is False
    context = train["securityContext"]
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_what_is_mounted_is_a_volume_and_shared_memory_is_large(pod: dict[str, Any], train: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in train["volumeMounts"]}
    assert len(places) == len(volumes)
    assert places["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert variables(train)["HOME"] in places
    assert any(variables(train)["CONFIG"].startswith(f"{place}/") for place in places)


def run_pod(train: dict[str, Any], folder: Path, index: int, code: int, asks: int, has_status: bool) -> int:
    """The script of a pod with other programs in the place of torchrun and maskloom. Its exit code; torchrun's words are in
    `asked`."""
    programs = {
        "torchrun": f'printf "%s\\n" "$@" > "{folder}/asked"\nexit {code}',
        "maskloom": f'case "$*" in *--should-restart*) exit {asks} ;; *) exit {0 if has_status else 1} ;; esac',
    }
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, **variables(train), "PATH": path, "JOB_COMPLETION_INDEX": str(index)}
    command = [*train["command"], *train["args"]]
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


def test_torchrun_takes_its_words(train: dict[str, Any], tmp_path: Path) -> None:
    assert run_pod(train, tmp_path, 1, 0, 0, True) == DONE
    words = get_args_parser().parse_args((tmp_path / "asked").read_text().splitlines())
    given = variables(train)
    assert (words.nnodes, words.nproc_per_node) == (given["NODES"], given["GPUS"])
    assert (words.node_rank, words.master_addr) == (1, given["FIRST"])
    assert (words.module, words.training_script, words.training_script_args) == (
        True,
        "maskloom.train",
        [given["CONFIG"]],
    )


@pytest.mark.parametrize(
    ("index", "code", "asks", "has_status", "ends"),
    [
        (0, 0, 1, True, DONE),
        (0, 1, 0, True, AGAIN),
        (0, 1, 1, True, USELESS),
        (0, 1, 1, False, NOT_BEGUN),
        (1, 1, 1, True, AGAIN),  # the first pod decides
    ],
)
def test_exit_codes(
    index: int, code: int, asks: int, has_status: bool, ends: int, train: dict[str, Any], tmp_path: Path
) -> None:
    assert run_pod(train, tmp_path, index, code, asks, has_status) == ends


def test_a_request_to_stop_reaches_the_ranks_and_is_waited_for(train: dict[str, Any], tmp_path: Path) -> None:
    run_pod(train, tmp_path, 0, 0, 0, True)  # makes the programs
    (tmp_path / "torchrun").write_text(
        "#!/bin/bash\ntrap 'echo saved > \"$SAVED\"; exit 1' TERM\nkill -TERM $PPID\nwhile :; do sleep 0.05; done\n"
    )
    environment = {**os.environ, **variables(train), "JOB_COMPLETION_INDEX": "0", "SAVED": str(tmp_path / "saved")}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    command = [*train["command"], *train["args"]]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == AGAIN
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_the_script_is_clean(train: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(train["args"][0])
    subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True, timeout=60)
    if shutil.which("shellcheck"):
        command = ["shellcheck", "--shell=bash", str(tmp_path / "script")]
        checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert not checked.returncode, checked.stdout
