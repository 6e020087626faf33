"""Settings and versions in which runs differ, and whether their held-out losses are of the same thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskloom.config_file import config_tree, load_config
from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.runs import read_config, read_environment

OWN = ("run_dir",)
"""Every run has another."""
HELD_OUT_KEYS = ("data.train", "evaluation.seq_len", "evaluation.mask_rate", "masking.protected")
"""What a held-out loss is of, beside the tokens."""


def settings_of(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The settings of each run: dotted key -> value.

    Settings that came with a later version have their defaults, so that they do not seem to differ. If a configuration cannot be
    read by this version, for example as its architecture is not here, all are shown as they were written.

    Raises:
        UserError: a run has no config.yaml, or it is not YAML.
    """
    written = [read_config(run) for run in runs]
    try:
        configs = [load_config(run / "config.yaml") for run in runs]
    except UserError:
        return [dict(leaves(tree)) for tree in written]
    filled = [dict(leaves(config_tree(config))) for config in configs]
    for settings, config in zip(filled, configs, strict=True):
        settings["evaluation.seq_len"] = config.evaluation_seq_len
    return filled


def environments_of(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Versions and machine of each run at its first start: dotted key -> value."""
    return [dict(leaves(read_environment(run))) for run in runs]


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf. An empty section is a leaf."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not items or (isinstance(tree, list) and not tree):
        yield prefix.rstrip("."), tree
        return
    for key, value in items:
        yield from leaves(value, f"{prefix}{key}.")


def differing(each: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> the value of each run, for the keys in which not all are equal. None is also a key that a run does not have."""
    keys = dict.fromkeys(key for one in each for key in one)
    found = {key: [one.get(key) for one in each] for key in keys if key not in OWN}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def why_not_comparable(runs: Sequence[Path], differences: Mapping[str, list[Any]]) -> list[str]:
    """Why held-out losses of these runs are not of the same thing; empty if they are.

    Args:
        differences: what `differing` says of their settings.
    """
    found = [key for key in differences if any(key == one or key.startswith(f"{one}.") for one in HELD_OUT_KEYS)]
    return found + (["their tokenizers"] if len(set(map(_tokens, runs))) > 1 else [])


def _tokens(run: Path) -> bytes:
    try:
        return read_plain(run / "model" / "tokenizer.json")
    except (OSError, UserError):
        return b""
