"""The all-reduce, for real between processes here, and who is slow, from made-up pairs."""

from __future__ import annotations

import pytest

from maskloom.launch.doctor.hosts import Way
from maskloom.launch.doctor.network import Speed, measure, ring_rounds, slow_hosts
from maskloom.launch.probe import spare_port


@pytest.mark.parametrize("hosts", range(9))
def test_rounds_hold_every_pair_of_neighbours_once(hosts: int) -> None:
    rounds = ring_rounds(hosts)
    pairs = [frozenset(pair) for pairs in rounds for pair in pairs]
    neighbours = {frozenset((host, (host + 1) % hosts)) for host in range(hosts)} if hosts > 1 else set()
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == neighbours
    for of_round in rounds:
        members = [host for pair in of_round for host in pair]
        assert len(members) == len(set(members))


def test_the_slow_host_is_the_one_whose_pairs_are_all_slow() -> None:
    assert slow_hosts([(0, 1, 9.0), (1, 2, 1.0), (2, 3, 1.0), (3, 0, 9.0)]) == {2: 1.0}
    assert slow_hosts([(0, 1, 9.0), (1, 2, 1.0), (2, 0, 1.0)]) == {2: 1.0}
    assert slow_hosts([(0, 1, 9.0), (1, 2, 8.0), (2, 0, 4.0)]) == {}
    assert slow_hosts([(0, 1, 1.0)]) == {}  # of two nobody can tell
    assert slow_hosts([]) == {}


def test_ranks_of_several_hosts_sum() -> None:
    speed = measure({"a": 1, "b": 2}, Way(), ("127.0.0.1", spare_port()), 1 << 20, 120.0, {"GLOO_SOCKET_IFNAME": "lo"})
    assert isinstance(speed, Speed), speed
    assert (speed.backend, speed.ranks, speed.bytes) == ("gloo", 3, 1 << 20)
    assert speed.bytes_per_s > 0
    assert speed.latency_s > 0
    assert [pair[:2] for pair in speed.pairs] == [(0, 1)]


def test_a_host_whose_ranks_fail_is_named() -> None:
    class Broken(Way):
        def command(self, host: str, module: str) -> list[str]:
            return (
                ["sh", "-c", "read job; echo no such device >&2; exit 3"]
                if host == "b"
                else super().command(host, module)
            )

    said = measure({"a": 1, "b": 1}, Broken(), ("127.0.0.1", spare_port()), 1 << 20, 120.0, {})
    assert said == {"b": "no such device"}
