"""Every finding that needs more than one host, from facts that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskloom.launch.doctor.checks import Finding, all_reduce, check
from maskloom.launch.doctor.hosts import Answer
from maskloom.launch.doctor.look import Facts, Line
from maskloom.launch.doctor.network import Speed

SAME = {
    "python": "3.11.7",
    "torch": "2.13.0",
    "deepspeed": "0.19.8",
    "maskloom": "0.1.0",
    "transformers": "5.23.0",
    "numpy": "2.4.6",
    "maskloom's source": "abc",
    "GPU kinds": "H100",
    "CONFIG": "1",
    "tokenizer": "2",
    "data /shards": "d",
}
LINES: tuple[tuple[str, Line], ...] = (
    ("configuration", ("ok", "12 rank(s)", "")),
    ("GPU health", ("ok", "products exact", "")),
    ("CPU cores", ("ok", "32", "")),
    ("data /shards", ("ok", "1,000 blocks; 16 read and verified", "")),
    ("FusedAdam", ("ok", "installed", "")),
)
GOOD = Facts(LINES, SAME, gpus=4, spare_port=12345)
ON_CPU = replace(GOOD, lines=LINES[2:4], same={name: SAME[name] for name in SAME if name != "GPU kinds"}, gpus=0)


def findings(*facts: Facts, skews: tuple[float, ...] = (), of_run: tuple[tuple[str, Line], ...] = ()) -> list[Finding]:
    names = [f"node{number}" for number in range(1, len(facts) + 1)]
    told = zip(names, facts, skews or (0.0,) * len(facts), strict=True)
    return check(dict.fromkeys(names, 4), [Answer(name, fact, skew_s=skew) for name, fact, skew in told], of_run)


def only(found: list[Finding], name: str, level: str) -> Finding:
    """The one finding that is not ok; it is of this check and level."""
    bad = [finding for finding in found if finding.level != "ok"]
    assert [(finding.check, finding.level) for finding in bad] == [(name, level)]
    assert bad[0].remedy
    return bad[0]


@pytest.mark.parametrize("fact", [GOOD, ON_CPU], ids=["gpus", "cpus"])
def test_all_is_well(fact: Facts) -> None:
    found = findings(fact, fact, fact)
    assert {finding.level for finding in found} == {"ok"}
    assert {finding.hosts for finding in found} == {("node1", "node2", "node3")}
    names = [finding.check for finding in found]
    assert len(names) == len(set(names))
    assert names[0] == "hosts"
    assert names.index("torch") < names.index("GPUs") < names.index("clocks") < names.index("data /shards")


@pytest.mark.parametrize(
    ("name", "level", "change", "value"),
    [
        ("python", "fail", {"same": {"python": "3.12.1"}}, "3.12.1, not 3.11.7"),
        ("python", "warn", {"same": {"python": "3.11.9"}}, "3.11.9, not 3.11.7"),
        ("torch", "fail", {"same": {"torch": "2.12.0"}}, "2.12.0, not 2.13.0"),
        ("deepspeed", "fail", {"same": {"deepspeed": "0.19.7"}}, "0.19.7"),
        ("maskloom", "fail", {"same": {"maskloom": "0.0.9"}}, "0.0.9"),
        ("transformers", "warn", {"same": {"transformers": "5.22.0"}}, "5.22.0"),
        ("numpy", "warn", {"same": {"numpy": "2.0.0"}}, "2.0.0"),
        ("maskloom's source", "fail", {"same": {"maskloom's source": "xyz"}}, "xyz, not abc"),
        ("GPUs", "fail", {"gpus": 3}, "3 for 4 slots"),
        ("GPUs", "fail", {"gpus": 0}, "none, and others have some"),
        ("GPUs", "warn", {"gpus": 8}, "8 for 4 slot(s)"),
        ("GPU kinds", "warn", {"same": {"GPU kinds": "A100"}}, "A100, not H100"),
        ("CONFIG", "fail", {"same": {"CONFIG": "3"}}, "3, not 1"),
        ("tokenizer", "fail", {"same": {"tokenizer": "9"}}, "9, not 2"),
        ("data /shards", "fail", {"same": {"data /shards": "e"}}, "e, not d"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_one_host_that_differs_is_named(name: str, level: str, change: dict, value: str) -> None:
    changed = replace(GOOD, **{**change, "same": SAME | change.get("same", {})})
    bad = only(findings(GOOD, changed, GOOD), name, level)
    assert bad.hosts == ("node2",)
    assert value in bad.value


@pytest.mark.parametrize("level", ["warn", "fail"])
def test_hosts_that_found_the_same_are_put_together(level: str) -> None:
    line = (level, "4 for 8 processes", "fewer slots")
    bad = replace(GOOD, lines=(*LINES[:2], ("CPU cores", line), *LINES[3:]))  # type: ignore[arg-type]
    found = findings(bad, GOOD, bad)
    assert only(found, "CPU cores", level) == Finding(level, "CPU cores", ("node1", "node3"), *line[1:])  # type: ignore[arg-type]
    assert Finding("ok", "CPU cores", ("node2",), "32") in found


def test_a_host_without_a_value_is_left_out_of_the_comparison() -> None:
    bare = replace(GOOD, lines=(*LINES, ("CONFIG", ("fail", "cannot be read", "share it"))), same=SAME | {"torch": "x"})
    del bare.same["CONFIG"]
    found = findings(GOOD, bare, GOOD)
    assert Finding("ok", "CONFIG", ("node1", "node3"), "1") in found
    assert [finding.hosts for finding in found if finding.level == "fail"] == [("node2",), ("node2",)]


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
    bad = only(findings(GOOD, replace(GOOD, gpus=0, unusable_gpus=unusable)), "GPUs", "fail")
    assert bad == Finding("fail", "GPUs", ("node2",), *unusable)


def test_clocks_that_differ_by_more_than_a_second_warn() -> None:
    found = findings(GOOD, GOOD, GOOD, skews=(-0.9, 0.5, 3.2))
    bad = only(found, "clocks", "warn")
    assert (bad.hosts, bad.value) == (("node3",), "3.2 s ahead of this machine's")
    assert Finding("ok", "clocks", ("node1", "node2"), "within 0.90 s of this machine's") in found
    assert "behind" in only(findings(GOOD, skews=(-2.0,)), "clocks", "warn").value


def test_what_the_asking_machine_finds_itself() -> None:
    line: Line = ("fail", "the run is in use by process 7 on node9", "wait for it")
    found = findings(GOOD, GOOD, of_run=(("lock", line),))
    assert only(found, "lock", "fail") == Finding("fail", "lock", (), *line[1:])


def test_a_silent_host() -> None:
    silent = Answer("node2", silence=("fail", "timeout: ssh: no answer", "look"))
    found = check({"node1": 4, "node2": 4}, [Answer("node1", GOOD), silent])
    assert only(found, "hosts", "fail") == Finding("fail", "hosts", ("node2",), "timeout: ssh: no answer", "look")
    alone = check({"node2": 4}, [silent], [("configuration", ("fail", "run.yaml: bad", "correct it"))])
    assert [(finding.check, finding.level) for finding in alone] == [("hosts", "fail"), ("configuration", "fail")]


def test_the_network() -> None:
    names = ("a", "b", "c", "d")
    good = Speed("nccl", 32, 64 << 20, 1.2e11, 3e-5, ((0, 1, 2e10), (1, 2, 2e10), (2, 3, 2e10), (3, 0, 2e10)))
    (found,) = all_reduce(names, good)
    assert (found.level, found.hosts) == ("ok", names)
    assert found.value == "120.00 GB/s of 64 MiB over 32 ranks (nccl), latency 30 us"
    slow = replace(good, pairs=((0, 1, 2e10), (1, 2, 2e9), (2, 3, 2e9), (3, 0, 2e10)))
    bad = only(list(all_reduce(names, slow)), "all-reduce", "warn")
    assert bad.hosts == ("c",)
    assert "2.00 GB/s with its neighbours, the best pair 20.00" in bad.value
    assert only(list(all_reduce(names, {"b": "no route"})), "all-reduce", "fail").hosts == ("b",)
