"""Two nodes train what one machine trains, bit for bit, however they are started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.integration.conftest import train_in_ranks

from .cluster import Cluster
from .runs import Run, by_deepspeed, by_srun


@pytest.mark.parametrize("command", [by_deepspeed, by_srun])
def test_two_nodes_train_the_same_as_one_machine(
    command: Callable[[Cluster, Path, Sequence[str]], list[str]], cluster: Cluster, run_config: dict, tmp_path: Path
) -> None:
    alone = Run(cluster, {**run_config, "run_dir": str(tmp_path / "alone")})
    train_in_ranks([alone.config], 2, alone.log)
    run = Run(cluster, run_config)
    run.start(command)
    assert run.end() == 0, run.output()
    assert len(run.losses()) == 12
    assert run.losses() == alone.losses()
    assert run.status()["state"] == "done"
    run.until_nothing_is_left()
