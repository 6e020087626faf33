"""Every finding, from facts that are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from maskloom.config import RunConfig
from maskloom.config_file import parse_config
from maskloom.launch.doctor.asking import Answer, Silence
from maskloom.launch.doctor.checks import check
from maskloom.launch.doctor.checks.network import all_reduce
from maskloom.launch.doctor.estimates import checkpoint_bytes, rank_bytes
from maskloom.launch.doctor.facts import Corpus, Facts, Gpu, RunFolder
from maskloom.launch.doctor.findings import Finding, Wanted, exit_code
from maskloom.launch.doctor.network import Speed

GIB = 1 << 30
GPU = Gpu("H100", memory_free_bytes=79 * GIB, memory_total_bytes=80 * GIB, uncorrected_errors=0)
VERSIONS = {"torch": "2.13.0", "deepspeed": "0.19.8", "maskloom": "0.1.0", "transformers": "5.23.0", "numpy": "2.4.6"}
GOOD = Facts(
    hostname="node1",
    python="3.11.7",
    packages=VERSIONS,
    source="abc",
    device="cuda",
    cores=32,
    memory_free_bytes=200 * GIB,
    gpus=(GPU,) * 4,
    config_digest="1",
    tokenizer_digest="2",
    parameters=110_000_000,
    corpora=(Corpus("/shards", "d", read=16, blocks=1000),),
    run=RunFolder("/shared", sees_token=True, free_bytes=100 * GIB, free_inodes=10**6),
    fused_adam="installed, or compiled at the first start",
    port=12345,
)
ON_CPU = replace(GOOD, device="cpu", gpus=(), fused_adam=None)


def config(**more: Any) -> RunConfig:
    tree = {
        "run_dir": "/shared/run",
        "tokenizer": "/tok",
        "data": {"train": "/shards"},
        "phases": [{"steps": 10_000}],
        **more,
    }
    return parse_config(tree, "here")


def findings(*facts: Facts, skews: tuple[float, ...] = (), **wanted: Any) -> list[Finding]:
    names = [f"node{number}" for number in range(1, len(facts) + 1)]
    answers = [
        Answer(name, fact, skew_s=skew)
        for name, fact, skew in zip(names, facts, skews or (0.0,) * len(facts), strict=True)
    ]
    values: dict[str, Any] = {"slots": dict.fromkeys(names, 4), "config": config(), **wanted}
    return check(Wanted(**values), answers)


def only(found: list[Finding], name: str, level: str) -> Finding:
    """The one finding that is not ok; it is of this check and level."""
    bad = [finding for finding in found if finding.level != "ok"]
    assert [(finding.check, finding.level) for finding in bad] == [(name, level)]
    assert bad[0].remedy
    assert exit_code(found) == int(level == "fail")
    return bad[0]


@pytest.mark.parametrize("fact", [GOOD, ON_CPU], ids=["gpus", "cpus"])
def test_all_is_well(fact: Facts) -> None:
    found = findings(fact, fact, fact)
    assert {finding.level for finding in found} == {"ok"}
    assert all(finding.hosts in ((), ("node1",), ("node1", "node2", "node3")) for finding in found)
    assert exit_code(found) == 0


@pytest.mark.parametrize(
    ("name", "level", "change", "value"),
    [
        ("python", "fail", {"python": "3.12.1"}, "3.12.1, not 3.11.7"),
        ("python", "warn", {"python": "3.11.9"}, "3.11.9, not 3.11.7"),
        ("torch", "fail", {"packages": {**VERSIONS, "torch": "2.12.0"}}, "2.12.0, not 2.13.0"),
        ("deepspeed", "fail", {"packages": {**VERSIONS, "deepspeed": "0.19.7"}}, "0.19.7"),
        ("maskloom", "fail", {"packages": {**VERSIONS, "maskloom": "0.0.9"}}, "0.0.9"),
        ("transformers", "warn", {"packages": {**VERSIONS, "transformers": "5.22.0"}}, "5.22.0"),
        ("numpy", "warn", {"packages": {**VERSIONS, "numpy": "2.0.0"}}, "2.0.0"),
        ("numpy", "fail", {"packages": {**VERSIONS, "numpy": "missing"}}, "not installed"),
        ("maskloom's source", "fail", {"source": "xyz"}, "xyz, not abc"),
        ("GPUs", "fail", {"gpus": (GPU,) * 3}, "3 for 4 slots"),
        ("GPUs", "fail", {"gpus": (), "device": "cpu"}, "none, and others have some"),
        ("GPUs", "warn", {"gpus": (GPU,) * 8}, "8 for 4 slot(s)"),
        ("GPU kinds", "warn", {"gpus": (replace(GPU, name="A100"),) * 4}, "A100, not H100"),
        ("GPU health", "fail", {"gpus": (GPU, GPU, replace(GPU, fault="wrong"), GPU)}, "GPU 2: wrong"),
        ("GPU health", "fail", {"gpus": (replace(GPU, uncorrected_errors=3), *[GPU] * 3)}, "GPU 0: 3 uncorrected"),
        ("GPU health", "warn", {"gpus": (replace(GPU, slowed_by=("hardware thermal",)), *[GPU] * 3)}, "hardware thermal"),
        ("GPU health", "warn", {"gpus": (replace(GPU, processes=("python (process 7)",)), *[GPU] * 3)}, "process 7"),
        ("GPU health", "warn", {"gpus": (replace(GPU, memory_free_bytes=60 * GIB), *[GPU] * 3)}, "60.0 GiB of 80.0"),
        ("GPU health", "fail", {"gpus": (replace(GPU, memory_free_bytes=GIB // 2), *[GPU] * 3)}, "0.5 GiB free"),
        ("CPU cores", "warn", {"cores": 4}, "4 for 8 processes (4 rank(s), 1 reader(s) each)"),
        ("CONFIG", "fail", {"config_digest": None}, "cannot be read"),
        ("CONFIG", "fail", {"config_digest": "3"}, "3, not 1"),
        ("tokenizer", "fail", {"tokenizer_digest": None}, "cannot be read"),
        ("tokenizer", "fail", {"tokenizer_digest": "9"}, "9, not 2"),
        ("run_dir", "fail", {"run": RunFolder("/shared", sees_token=False)}, "is another folder there"),
        ("run_dir", "fail", {"run": RunFolder("/shared", True, "read-only: /shared")}, "read-only: /shared"),
        ("data /shards", "fail", {"corpora": (Corpus("/shards", fault="no index at /shards"),)}, "no index"),
        ("data /shards", "fail", {"corpora": (Corpus("/shards", "e", 16, 1000),)}, "e, not d"),
        ("data /shards", "warn", {"corpora": (Corpus("/shards", "d", 3, 9, "bad crc", True),)}, "bad crc"),
        ("FusedAdam", "warn", {"fused_adam": "torch's instead: no nvcc"}, "no nvcc"),
        ("operator builds", "warn", {"stale_locks": ("/x/fused_adam/lock",)}, "/x/fused_adam/lock"),
        ("configuration", "fail", {"refusal": "12 ranks are more than the 6 lanes"}, "12 ranks are more"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_one_host_that_differs_is_named(name: str, level: str, change: dict[str, Any], value: str) -> None:
    bad = only(findings(GOOD, replace(GOOD, **change), GOOD), name, level)
    assert bad.hosts == ("node2",)
    assert value in bad.value


def test_gpus_that_torch_cannot_use() -> None:
    unusable = (
        "nvidia-smi shows 4 GPU(s), and torch 2.13.0+cpu cannot use them: it is not built for CUDA",
        "Install one",
    )
    idle = replace(ON_CPU, unusable_gpus=unusable)
    bad = only(findings(idle, idle), "GPUs", "warn")
    assert bad == Finding("warn", "GPUs", ("node1", "node2"), f"{unusable[0]}: ranks compute on CPUs", "Install one")
    found = findings(ON_CPU, idle)
    assert only(found, "GPUs", "warn").hosts == ("node2",)
    assert Finding("ok", "GPUs", ("node1",), "none: ranks compute on CPUs") in found
    bad = only(findings(GOOD, replace(GOOD, gpus=(), unusable_gpus=unusable)), "GPUs", "fail")
    assert bad == Finding("fail", "GPUs", ("node2",), *unusable)


def test_memory_that_is_too_small_for_ranks_on_cpus() -> None:
    small = replace(ON_CPU, memory_free_bytes=2 * GIB)
    bad = only(findings(ON_CPU, small, ON_CPU), "memory", "fail")
    assert bad.hosts == ("node2",)
    # 4 ranks with weights and gradients of 4 bytes, and a twelfth of the moments of 8.
    assert rank_bytes(config(), 110_000_000, 12) == int(110_000_000 * (8 + 8 / 12))
    assert "2.0 GiB free, weights, gradients and moments are 3.6 GiB" in bad.value


def test_a_corpus_that_a_run_refuses_is_named_once() -> None:
    fault = "shard /shards/0.tar is missing"
    broken = replace(GOOD, corpora=(Corpus("/shards", fault=fault),), refusal=fault)
    assert only(findings(broken, broken), "data /shards", "fail").hosts == ("node1", "node2")


def test_clocks_that_differ_by_more_than_a_second_warn() -> None:
    bad = only(findings(GOOD, GOOD, GOOD, skews=(-0.9, 0.5, 3.2)), "clocks", "warn")
    assert (bad.hosts, bad.value) == (("node3",), "3.2 s ahead of this machine's")
    assert "behind" in only(findings(GOOD, skews=(-2.0,)), "clocks", "warn").value


def test_room_for_all_checkpoints_that_will_stand_side_by_side() -> None:
    each = checkpoint_bytes(config(), 110_000_000)
    assert each == 110_000_000 * (4 + 4 + 8)

    def with_room(bytes_: float, **more: Any) -> list[Finding]:
        fact = replace(GOOD, run=replace(GOOD.run, free_bytes=int(bytes_)))
        return findings(fact, fact, **more)

    assert exit_code(with_room(3 * each + 1)) == 0
    bad = only(with_room(3 * each - 1), "disk space", "fail")
    assert "3 checkpoint(s) of about 1.6 GiB" in bad.value
    assert exit_code(with_room(1 * each + 1, saved=2)) == 0  # two of them are there already
    assert exit_code(with_room(1 * each - 1, saved=5)) == 1  # the next one is written before an old one goes


def test_inodes() -> None:
    fact = replace(GOOD, run=replace(GOOD.run, free_inodes=12))
    assert "12 inodes free" in only(findings(fact), "disk inodes", "fail").value


def test_the_port() -> None:
    taken = replace(GOOD, is_port_free=False, port=12346)
    assert "12346 is free" in [found.value for found in findings(taken, GOOD)]  # the next one will do
    bad = only(findings(taken, GOOD, port=12345), "port", "fail")
    assert (bad.hosts, bad.value) == (("node1",), "12345 is taken")
    assert only(findings(replace(GOOD, port=0), GOOD), "port", "fail").hosts == ("node1",)


def test_what_the_asking_machine_finds_itself() -> None:
    assert "process 7 on node9" in only(findings(GOOD, lock_holder="process 7 on node9"), "lock", "fail").value
    assert only(findings(GOOD, folder_fault="no permission"), "run_dir", "fail").value == "no permission"
    unread = replace(ON_CPU, tokenizer_digest=None, parameters=None, corpora=(), run=None, refusal="run.yaml: bad")
    assert only(findings(unread, config=None, config_fault="run.yaml: bad"), "configuration", "fail").hosts == ()


def test_a_silent_host() -> None:
    silent = Answer("node2", silence=Silence("timeout", "ssh: no answer", "look"))
    found = check(Wanted({"node1": 4, "node2": 4}, config()), [Answer("node1", GOOD), silent])
    assert only(found, "hosts", "fail") == Finding("fail", "hosts", ("node2",), "timeout: ssh: no answer", "look")
    alone = check(Wanted({"node2": 4}, config()), [silent])
    assert [finding.level for finding in alone] == ["fail"]


def test_the_network() -> None:
    names = ("a", "b", "c", "d")
    good = Speed("nccl", 32, 64 << 20, 1.2e11, 3e-5, ((0, 1, 2e10), (1, 2, 2e10), (2, 3, 2e10), (3, 0, 2e10)))
    (found,) = all_reduce(names, good)
    assert (found.level, found.hosts) == ("ok", names)
    assert found.value == "120.00 GB/s of 64 MiB over 32 ranks (nccl), latency 30 us"
    slow = replace(good, pairs=((0, 1, 2e10), (1, 2, 2e9), (2, 3, 2e9), (3, 0, 2e10)))
    bad = only(all_reduce(names, slow), "all-reduce", "warn")
    assert bad.hosts == ("c",)
    assert "2.00 GB/s with its neighbours, the best pair 20.00" in bad.value
    failed = all_reduce(names, {"b": "no route"})
    assert only(failed, "all-reduce", "fail").hosts == ("b",)
