"""The settings of a run as plain values, as a YAML file holds them."""

from __future__ import annotations

from typing import Any


def tree_with(**more: Any) -> dict[str, Any]:
    """The least that a configuration says, and `more`."""
    return {"run_dir": "run", "tokenizer": "tok", "data": {"train": "corpus"}, "phases": [{"steps": 5}]} | more
