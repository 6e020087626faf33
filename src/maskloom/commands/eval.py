"""Held-out loss, perplexity and accuracy of a run's model, beside what token frequencies alone would give.

example:
  maskloom eval runs/quickstart
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from maskloom.commands.arguments import add_step
from maskloom.commands.loading import load_run
from maskloom.data.masking import MaskRule
from maskloom.data.plan import open_corpora
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.program import add_overrides
from maskloom.progress import show
from maskloom.redaction import shown
from maskloom.train.evaluation import evaluate, unigram_entropy
from maskloom.train.metrics import read_metrics


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run directory")
    add_overrides(parser, "settings that replace the run's: data.train if the data moved")
    add_step(parser)
    add("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    loaded = load_run(options.run, options.step, options.overrides)
    corpora = open_corpora(loaded.config.data)
    folders = ", ".join(index.folder for index in corpora)
    if not any(len(index.held_out_blocks) for index in corpora):
        raise UserError(
            f"{folders} holds no held-out documents: write it with a larger --val-fraction, so that some are held out"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded.model.to(device)
    tokenizer, settings = loaded.tokenizer.as_of(loaded.tokenizing), loaded.config.evaluation_filled
    for index in corpora:
        index.check_tokenizer(tokenizer)
    rule = MaskRule.held_out(loaded.config.masking, settings.mask_rate, tokenizer)
    figures = evaluate(model, corpora, tokenizer, settings, rule, device, World())
    if not figures:
        raise UserError(
            f"no token of the held-out documents of {folders} is predicted: they are too short, or "
            f"evaluation.mask_rate {loaded.config.evaluation.mask_rate} is too low"
        )
    last = range(int(0.9 * loaded.step) + 1, loaded.step + 1)
    losses = [line["loss_mean"] for line in read_metrics(options.run) if "loss" in line and line["step"] in last]
    figures |= {"step": loaded.step, "unigram_entropy": unigram_entropy(corpora, tokenizer, rule)}
    if losses:
        figures["training_loss"] = float(np.mean(losses))
    if options.json:
        show(json.dumps(figures))
        return 0
    show(f"step {loaded.step:,} of {options.run}")
    show(
        f"  held-out loss     {figures['evaluation_loss']:.3f} nats a token "
        f"({int(figures['evaluation_tokens']):,} tokens)"
    )
    for number, index in enumerate(corpora if len(corpora) > 1 else ()):
        if (loss := figures.get(f"evaluation_loss_{number}")) is not None:
            show(f"    of {shown(index.folder)}: {loss:.3f}")
    show(f"  perplexity        {figures['evaluation_perplexity']:,.1f}")
    show(f"  accuracy          {figures['evaluation_accuracy']:.1%} of the masked tokens")
    if losses:
        show(f"  training loss     {figures['training_loss']:.3f} nats a token (mean of the last tenth of the steps)")
    show(
        f"  unigram entropy   {figures['unigram_entropy']:.3f} nats a token: the loss of knowing token frequencies only"
    )
    return 0
