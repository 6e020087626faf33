"""Modules of `examples/` as `--import` brings them in, in the tests' own process and in ranks."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from maskloom.config import MODELS
from maskloom.extensions import VARIABLE
from maskloom.models.architecture import ARCHITECTURES

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def imported(name: str) -> Iterator[None]:
    """The module `name` is imported within; afterwards the tables of architectures are as they were."""
    tables = [(table, dict(table)) for table in (ARCHITECTURES, MODELS)]
    sys.path.insert(0, str(EXAMPLES))
    importlib.import_module(name)
    try:
        yield
    finally:
        sys.path.remove(str(EXAMPLES))
        del sys.modules[name]
        for table, before in tables:
            table.clear()
            table.update(before)


def in_a_rank(name: str, then: Callable[[], None] = lambda: None) -> None:
    """What `--import` leaves in the environment of a rank."""
    sys.path.insert(0, str(EXAMPLES))
    os.environ[VARIABLE] = name
    then()
