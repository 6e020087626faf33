"""What a run is, for those who show it. `describe` finds it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """What a reporter learns of a run.

    Attributes:
        folder: of the run.
        id: the same for each attempt of the run, and for no other run: 16 letters and digits.
        name: for people.
        config: its whole configuration as plain values, without what may be a secret.
    """

    folder: Path
    id: str
    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class About:
    """A run at the start of an attempt.

    Attributes:
        run: for reporters.
        attempt: starts of the run so far, this one included.
        texts: tag -> Markdown.
        settings: for the HPARAMS tab.
        reporters: `logging.reporters`.
        origin: the checkpoint that the run was forked from.
    """

    run: Run
    attempt: int
    texts: Mapping[str, str]
    settings: Mapping[str, bool | float | str]
    reporters: tuple[str, ...] = ()
    origin: str | None = None
