"""A server whose faults each test chooses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from maskloom.data.reading import remote, storage
from tests.fault_server import FaultServer

from .serving import CONTENT


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "empty").write_bytes(b"")
    with FaultServer(folder) as server:
        yield server


@pytest.fixture
def server(shared: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A server without faults, met for the first time."""
    shared.reset()
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(storage, "_first_versions", {})
    monkeypatch.setattr(storage, "_warned", set())
    return shared
