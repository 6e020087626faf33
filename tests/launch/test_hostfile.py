"""The hostfile: every fault with its line, and nothing that ssh could take for an option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.launch.hostfile import Host, as_hostfile, parse_hostfile, read_hostfile

NAMES = st.from_regex(r"([a-z_][a-z0-9._-]{0,5}@)?[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)


def test_names_users_addresses_comments_and_blank_lines() -> None:
    text = "# my machines\n\nnode1 slots=8\n  ada@node-2.example.org\tslots=4   # four here\r\n10.0.0.3 slots=1\n"
    assert parse_hostfile(text, "hosts") == (Host("node1", 8), Host("ada@node-2.example.org", 4), Host("10.0.0.3", 1))
    assert Host("ada@node1", 1).address == "node1"


def test_all_faults_are_named_with_their_lines() -> None:
    text = "-oProxyCommand=touch slots=1\nw0 slots=0\nw1\nw2 slots=2 max_slots=3\nW3 slots=1\nada@w3 slots=1\n-l@w4 slots=1\n"
    with pytest.raises(UserError) as error:
        parse_hostfile(text, "hosts")
    lines = str(error.value).splitlines()
    assert lines[0] == "hostfile hosts:"
    assert [int(re.match(r"  line (\d+): ", line)[1]) for line in lines[1:]] == [1, 2, 3, 4, 6, 7]  # type: ignore[index]
    assert "w3 stands in line 5 already" in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fe80::1 slots=1", "no IPv6"),
        ("node1:22 slots=1", "no port"),
        ("node[1-3] slots=1", "not the name of a machine"),
        ("node1,node2 slots=1", "not the name of a machine"),
        ("^file slots=1", "not the name of a machine"),
        ("node1 slots = 2", "is not NAME slots=N"),
        ("node1 slots=٣", "is not NAME slots=N"),
        ("node1 slots=99999999999", "is not NAME slots=N"),
        ("a@b@c slots=1", "not the name of a user"),
        ("@node1 slots=1", "not the name of a user"),
        ("$(id) slots=1", "not the name of a machine"),
    ],
)
def test_what_pdsh_ssh_or_a_shell_would_take_for_something_else(line: str, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        parse_hostfile(line, "hosts")


def test_a_file_that_is_not_there_or_names_nobody(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no hostfile at"):
        read_hostfile(tmp_path / "hosts")
    with pytest.raises(UserError, match="no hostfile at"):
        read_hostfile(tmp_path)
    (tmp_path / "hosts").write_text("# nobody\n")
    with pytest.raises(UserError, match="names no host"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xff\xfe slots=1\n")
    with pytest.raises(UserError, match="not the name of a machine"):
        read_hostfile(tmp_path / "hosts")


@given(st.lists(st.tuples(NAMES, st.integers(1, 999_999)), min_size=1, max_size=5))
def test_what_is_written_is_read_back(pairs: list[tuple[str, int]]) -> None:
    hosts = tuple({Host(*pair).address.lower(): Host(*pair) for pair in pairs}.values())
    assert parse_hostfile(as_hostfile(hosts), "hosts") == hosts


@given(
    st.text(
        alphabet=st.sampled_from(list("-oab1@.:,[]^$()`'\"\\%;&|<>*? \t\n#=s\x0b\u2028é")) | st.characters(),
        max_size=40,
    )
)
def test_no_text_yields_a_name_that_is_more_than_a_name(text: str) -> None:
    """Whatever is in the file: refused, or all names are words that ssh, pdsh and a shell pass over as names."""
    for candidate in (text, f"{text} slots=1", f"-{text} slots=2", f"{text}@node slots=1", f"u@{text} slots=1"):
        try:
            hosts = parse_hostfile(candidate, "hosts")
        except UserError:
            continue
        for host in hosts:
            assert re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*\Z", host.name, re.ASCII)
            assert host.slots >= 1
