"""Print the batches of some steps as text, with the masks shown, or their digest.

TARGET is a configuration or a run directory. A run is read as a resume would read it: from its newest checkpoint at or before
the first step, without the rows that it skipped after a rollback. Steps count from 0. The digest is a SHA-256 of the global
batches. It is the same for every --world, for every --workers, and wherever the run was resumed. In the text, [MASK]{word} is a
masked token, {a>b} was replaced by a random b, and {a} is predicted but stays. [MASK] is spelled as the tokenizer does.

--json prints one object: target, world, vocab_size, ids (pad, cls, sep, mask), digest, and steps. Each step has step, rows,
seq_len, predicted_tokens, and shown: so many rows as --rows says (none with --digest). Each of these has row, and lists with
a value for every slot:
  tokens     ids of the text
  input_ids  what the model sees
  labels     the id to predict, -100 if there is none
  pieces     number of the piece in the row, -1 for padding
  positions  of the slot in its piece, from 0
  spellings  of the tokens

examples:
  maskloom peek configs/quickstart.yaml --steps 10:12 --world 2 --digest
  maskloom peek configs/quickstart.yaml --rows 1 --json
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.commands.arguments import natural, positive, step_range
from maskloom.config_file import load_config
from maskloom.data.cursors import first_cursors
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.rows import Rows
from maskloom.errors import UserError
from maskloom.program import add_overrides
from maskloom.progress import show, show_json
from maskloom.redaction import one_line
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.world import World

NOT_PREDICTED = -100
"""Label of a slot that is not predicted, as in Hugging Face's models."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", type=Path, metavar="TARGET", help="YAML file of a run, or its run directory")
    add_overrides(parser)
    add("--steps", type=step_range, default=range(1), metavar="A:B", help="from step A to before step B (default: 0:1)")
    add("--world", type=positive, default=1, metavar="P", help="ranks to read as (default: 1)")
    add("--workers", type=natural, default=0, metavar="W", help="reader processes a rank (default: 0)")
    add("--rows", type=positive, default=4, help="rows a step to print (default: 4)")
    add("--digest", action="store_true", help="print one digest instead of the text")
    add("--json", action="store_true", help="print one JSON object, with the digest")


def run(options: argparse.Namespace) -> int:
    steps: range = options.steps
    is_run = options.target.is_dir()
    config = load_config(options.target / "config.yaml" if is_run else options.target, options.overrides)

    from maskloom.data.stream import read_steps, skip_steps
    from maskloom.train.checkpoint import known_intervals, resumable_cursors
    from maskloom.train.checkpoint.fit import stored_tokenizing
    from maskloom.train.refusal import jumps

    begun = stored_tokenizing(options.target if is_run else Path(config.run_dir), config.from_)
    tokenizer, corpora = _tokenizer(config.tokenizer, config.model.init), open_corpora(config.data)
    plan = DataPlan.of(config.data, config.phases, config.masking, config.seed, corpora, tokenizer, begun)
    if steps.stop > plan.total_steps:
        raise UserError(f"--steps {steps.start}:{steps.stop}: the run has {plan.total_steps} steps")
    if is_run:
        plan = replace(plan, jumps=jumps(known_intervals(options.target), plan.lanes, len(plan.corpora)))
    # A run's own checkpoint saves reading from step 0; the rest of the way is skipped without masking.
    begin = resumable_cursors(options.target, steps.start, plan) if is_run else None
    first, cursors = begin or (0, first_cursors(plan.lanes, len(plan.corpora)))
    cursors = skip_steps(plan, cursors, first, steps.start)
    ranks = [
        read_steps(plan, World(rank, options.world), cursors, steps.start, steps.stop, options.workers)
        for rank in range(options.world)
    ]
    digest, shown = hashlib.sha256(), 0 if options.digest else options.rows
    objects: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        for rank in ranks:
            stack.enter_context(contextlib.closing(rank))
        for parts in zip(*ranks, strict=True):
            rows = Rows.concatenate([part.rows for part in parts])
            rows.update(digest)
            if options.json:
                objects.append(step_object(parts[0].number, rows, shown, plan.tokenizer))
            elif not options.digest:
                count, seq_len = rows.tokens.shape
                show(f"step {parts[0].number}: {count} rows of {seq_len}, {rows.chosen.sum()} predicted tokens")
                for number in range(min(shown, len(rows))):
                    show(f"  row {number}: {one_line(_shown(rows, number, plan.tokenizer))}")
    if options.json:
        ids = {name: getattr(plan.tokenizer, f"{name}_id") for name in ("pad", "cls", "sep", "mask")}
        found = {"target": str(options.target), "world": options.world, "vocab_size": plan.tokenizer.vocab_size}
        show_json({**found, "ids": ids, "digest": digest.hexdigest(), "steps": objects})
    elif options.digest:
        show(digest.hexdigest())
    return 0


def step_object(step: int, rows: Rows, shown: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """What --json prints of a step, with its first `shown` rows."""
    count, seq_len = rows.tokens.shape
    return {
        "step": step,
        "rows": count,
        "seq_len": seq_len,
        "predicted_tokens": int(rows.chosen.sum()),
        "shown": [row_object(rows, number, tokenizer) for number in range(min(shown, count))],
    }


def row_object(rows: Rows, number: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """What --json prints of a row."""
    tokens, starts, slots = rows.tokens[number], rows.starts[number], np.arange(rows.tokens.shape[1])
    first = np.maximum.accumulate(np.where(starts, slots, 0))  # of the piece that a slot belongs to
    is_padding = tokens == tokenizer.pad_id
    return {
        "row": number,
        "tokens": tokens.tolist(),
        "input_ids": rows.input_ids[number].tolist(),
        "labels": np.where(rows.chosen[number], tokens, NOT_PREDICTED).tolist(),
        "pieces": np.where(is_padding, -1, np.cumsum(starts) - 1).tolist(),
        "positions": (slots - first).tolist(),
        "spellings": [tokenizer.shown(token) for token in tokens.tolist()],
    }


def _tokenizer(source: str, init: str | None) -> Tokenizer:
    """The tokenizer of a run, which may come from the model that it begins with (`init`)."""
    if init is None:
        return load_tokenizer(source)
    from maskloom.models.warm_start import tokenizer_of  # heavy: it knows models

    return tokenizer_of(source, init)


def _shown(rows: Rows, number: int, tokenizer: Tokenizer) -> str:
    words = []
    for token, given, is_chosen in zip(
        *(part[number] for part in (rows.tokens, rows.input_ids, rows.chosen)), strict=True
    ):
        name = tokenizer.shown(int(token))
        if token == tokenizer.pad_id:
            continue
        if not is_chosen:
            words.append(name)
        elif given == tokenizer.mask_id:
            words.append(f"{tokenizer.roles.mask}{{{name}}}")
        else:
            words.append(f"{{{name}}}" if given == token else f"{{{name}>{tokenizer.shown(int(given))}}}")
    padding = int(np.sum(rows.tokens[number] == tokenizer.pad_id))
    return " ".join(words) + (f" {tokenizer.roles.pad}*{padding}" if padding else "")
