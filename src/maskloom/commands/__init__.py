"""What people type: one command a file, with `configure` for its parser and `run`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType

from maskloom import extensions
from maskloom.program import Parser

# Modules are imported when they are asked for: reader processes import this one again, and `--help` should be quick.
COMMANDS = {
    "shards": "write text as webdataset shards with an index",
    "index": "index webdataset tars that exist",
    "tokenizer": "train a tokenizer on shards, or extend one",
    "doctor": "check whether a run would start, on this machine or on the hosts of a hostfile",
    "train": "train, on this machine or on the hosts of a hostfile",
    "status": "how a run stands, and what to do next",
    "compare": "runs side by side: settings, figures, curves",
    "peek": "print the batches of some steps as text, or their digest",
    "monitor": "TensorBoard over runs, for this machine alone",
    "eval": "how well models predict masked tokens, on a run's held-out text or any other",
    "probe": "what frozen encoders know of labels",
    "finetune": "fine-tune an encoder for a task, GLUE's among them",
    "export": "write a run's model for Hugging Face",
    "fill": "fill the masks of a sentence",
    "completion": "print what lets bash, zsh or fish complete commands",
}

ACTIONS = {("tokenizer", "extend")}
"""A command, and a first argument that makes another command of it. A folder of that name is named as `./extend`."""


def load(words: Sequence[str]) -> tuple[ModuleType, Parser]:
    """The module of a command, and the parser of what follows it.

    Args:
        words: the command, or one of ACTIONS.
    """
    module = importlib.import_module(f"maskloom.commands.{'_'.join(words)}")
    parser = Parser(
        prog=f"maskloom {' '.join(words)}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    extensions.add_import(parser)
    return module, parser
