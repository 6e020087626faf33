"""One cluster for all tests of a session, as it was before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import missing

from .cluster import Cluster, lacking


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    if what := lacking():
        missing(what)
    cluster = Cluster.any_free()
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with both nodes idle and connected; what a test started there is ended after it."""
    whole_cluster.settle()
    yield whole_cluster
    whole_cluster.end_runs()
