"""Describes a run for those who show it: TensorBoard's texts and settings, and what reporters learn."""

from __future__ import annotations

import hashlib
import platform
import shlex
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from maskloom.config import RunConfig
from maskloom.config_file import config_tree, dump_config, without_queries
from maskloom.data.masking import MaskRule
from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.hardware import cores
from maskloom.models.masked_lm import layers_of
from maskloom.redaction import redacted
from maskloom.train.about import About, Run
from maskloom.train.evaluation import ENTROPY_BLOCKS, entropy, token_counts
from maskloom.train.panels import CONFIG, ENVIRONMENT, config_panel, environment_panel
from maskloom.train.run_dir import PACKAGES, RunDir
from maskloom.train.trainer import Trainer


def describe(trainer: Trainer, run: RunDir) -> About | None:
    """Describe a run that is ready to train, with its folder written. None on all ranks but the first."""
    if not run.is_writer:
        return None
    config = trainer.config
    saved = config.model_copy(update={"data": without_queries(config.data)})
    facts = environment(trainer, run)
    texts = {
        CONFIG: config_panel(dump_config(saved), run.attempt, trainer.step),
        ENVIRONMENT: environment_panel(facts),
    }
    origin = None if config.from_ is None else str(config.from_)
    tree = config_tree(saved)
    del tree["evaluation"]["sentences"]  # texts, which may be private: they stay in the run's folder
    known = Run(run.folder, id_of(run.folder), run.folder.resolve().name, _without_secrets(tree))
    return About(known, run.attempt, texts, settings_of(trainer), config.logging.reporters, origin)


def environment(trainer: Trainer, run: RunDir) -> dict[str, str]:
    """Versions, command and machines, and what the curves are to be judged by; in words."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    facts = {
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
        "ranks": f"{trainer.world.size} on {', '.join(run.hosts) or socket.gethostname()}",
        "device": device,
        "cores of the first host": str(cores()),
        "CPU threads a rank": str(torch.get_num_threads()),
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "clipping norm": _clipping(trainer.config),
    }
    if said := _unigram_entropy(trainer):
        facts["unigram entropy"] = said
    return facts


def settings_of(trainer: Trainer) -> dict[str, bool | float | str]:
    """Values of `board.SETTINGS`. Of several phases, the one with the most steps tells."""
    config, model = trainer.config, trainer.engine.model
    phase = max(config.phases, key=lambda phase: phase.steps)
    return {
        "lr": config.optimizer.lr,
        "global_batch_rows": phase.global_batch_rows,
        "seq_len": phase.seq_len,
        "mask_rate": config.masking.rate if phase.mask_rate is None else phase.mask_rate,
        "optimizer": config.optimizer.name,
        "hidden_size": int(model.config.hidden_size),
        "layers": len(layers_of(model)),
        "seed": config.seed,
        "parameters": trainer.engine.parameters,
        "precision": str(config.engine.precision),
    }


def id_of(run: Path) -> str:
    """What tells this run from all others: 16 letters and digits, the same for each attempt.

    It follows from the first line of attempts.jsonl, which says when and where the run began. A copy of the folder has it too.
    """
    try:
        first = read_plain(run / "attempts.jsonl").split(b"\n", 1)[0]
    except (OSError, UserError):
        first = str(run.resolve()).encode()
    return hashlib.sha256(first).hexdigest()[:16]


def _clipping(config: RunConfig) -> str:
    norms = [config.clipping_in(number) for number in range(len(config.phases))]
    said = [f"{norm:g}" if norm else "none: gradients are not clipped" for norm in norms]
    if len(set(said)) == 1:
        return said[0]
    return "; ".join(f"phase {number}: {each}" for number, each in enumerate(said))


def _unigram_entropy(trainer: Trainer) -> str:
    """For a run that begins, and evaluates. It costs a second or two, and more if the text had to come over a network."""
    corpora, settings = trainer.plan.corpora, trainer.config.evaluation
    begins = trainer.saver.last_good is None
    if not (begins and settings.every_steps) or any("://" in index.folder for index in corpora):
        return ""
    rule = MaskRule.held_out(trainer.plan.masking, settings.mask_rate, trainer.plan.tokenizer)
    try:
        blocks = max(ENTROPY_BLOCKS // len(corpora), 1)
        nats = entropy(token_counts(corpora, trainer.plan.tokenizer, rule, blocks))
    except (UserError, OSError) as error:  # a block that is damaged: training will say what to do about it
        return f"not known ({error})"
    return f"{nats:.3f} nats a token: the loss of guessing by how often tokens come"


def _without_secrets(value: Any) -> Any:
    """Plain values, with every text redacted."""
    if isinstance(value, Mapping):
        return {str(key): _without_secrets(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(each) for each in value]
    return redacted(value) if isinstance(value, str) else value
