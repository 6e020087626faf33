"""The recipes in configs/, and each of them so small that it runs in a second.

What is kept is what a recipe is made of: its phases and their order, lengths in steps or in tokens, the growth of its batch, its
schedules, optimizer, mask rates and architecture. What shrinks is the shape, the rows, the steps and the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.plain_yaml import read_yaml
from maskloom.scalars import by_form, each_plain
from tests.architectures import TINY

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
STEPS, LANES, ROWS = 4, 2, 4
"""Of each phase."""
START_POSITIONS = 18
"""Of a RoBERTa: enough for rows of 16."""


def header(recipe: Path) -> str:
    """The comment that a recipe opens with, as one line."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def scaled_down(recipe: Path, corpora: Sequence[Path], tokenizer: Path, start: Path, run: Path) -> dict[str, Any]:
    """The settings of a run of some steps that has the form of a recipe.

    Args:
        corpora: folders of shards; a recipe that mixes several takes so many of them.
        start: a checkpoint with `START_POSITIONS`, for a recipe that begins from one. Its folder `extended` has a tokenizer
            with more words.
    """
    whole = load_config(recipe)
    if whole.model.init:
        tokenizer = start / "extended"
    tree: Any = each_plain(read_yaml(recipe.read_text(encoding="utf-8"), str(recipe)), by_form)
    tree |= {"run_dir": str(run), "tokenizer": str(tokenizer)}
    names = [str(corpus) for corpus in corpora]
    mixed = tree["data"]["train"]
    if isinstance(mixed, list):
        mixed = [{**one, "path": name} for one, name in zip(mixed, names, strict=False)]
    tree["data"] = {"train": mixed if isinstance(mixed, list) else names[0], "lanes": LANES, "workers": 0}
    longest = max(phase.seq_len for phase in whole.phases)
    tree["model"] = _small_model(tree.get("model", {}), whole, start)
    for phase, given in zip(tree["phases"], whole.phases, strict=True):
        _shrink_phase(phase, 32 if given.seq_len == longest else 16)
    first = tree["phases"][0]
    slots = first["seq_len"] * (LANES if "batch_warmup" in first else ROWS)
    optimizer = tree.setdefault("optimizer", {})
    _shrink(optimizer, {"warmup_steps": 1, "decay_steps": 1, "warmup_tokens": slots, "decay_tokens": ROWS * 32})
    tree["evaluation"] = {**tree.get("evaluation", {}), "every_steps": 0, "seq_len": 32, "micro_batch_rows": ROWS}
    tree["checkpoint"] = {"every_steps": STEPS + 1}  # inside of the second phase, if there is one
    tree["logging"] = {"every_steps": 1}
    tree["engine"] = {**tree.get("engine", {}), "precision": "fp32", "kernels": "eager"}
    return dict(tree)


def _small_model(given: dict[str, Any], whole: RunConfig, start: Path) -> dict[str, Any]:
    """Everything that a recipe says of its model, but for the shape."""
    if "init" in given:
        grown = {"max_position_embeddings": 34} if "max_position_embeddings" in given else {}
        return {**given, "init": str(start), **grown}
    shape = {key: value for key, value in TINY[whole.model.architecture].items() if not key.endswith("rope_theta")}
    kept = {key: value for key, value in given.items() if key != "layer_types"}
    if whole.model.architecture != "modernbert":
        shape["max_position_embeddings"] = 34 if "roberta" in whole.model.architecture else 32
    return {**kept, "architecture": whole.model.architecture, **shape}


def _shrink_phase(phase: dict[str, Any], seq_len: int) -> None:
    phase |= {"seq_len": seq_len, "global_batch_rows": ROWS, "micro_batch_rows": LANES}
    slots = seq_len * ROWS
    # In a growing batch the first half of the steps have `LANES` rows.
    whole = {"steps": STEPS, "tokens": slots * STEPS - (slots if "batch_warmup" in phase else 0)}
    _shrink(phase, whole)
    if growth := phase.get("batch_warmup"):
        growth["from_rows"] = LANES
        _shrink(growth, {"steps": STEPS // 2, "tokens": slots})
    if again := phase.get("rewarm_up"):
        _shrink(again, {"warmup_steps": 1, "decay_steps": 1, "warmup_tokens": slots, "decay_tokens": slots})


def _shrink(section: dict[str, Any], small: dict[str, int]) -> None:
    """Replace the lengths that a section has, and add none."""
    section |= {key: value for key, value in small.items() if section.get(key)}
