"""The figures of a run on what its own corpora hold out: as training logs them, and how well it does on rare tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from maskloom.commands.loading import LoadedRun, device
from maskloom.data.masking import MaskRule
from maskloom.data.plan import open_corpora
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.models.masked_lm import MaskedLM
from maskloom.redaction import shown
from maskloom.scoring.bands import BANDS, band_by_token, band_name
from maskloom.train.evaluation import entropy, evaluate, token_counts


def held_out_figures(loaded: LoadedRun, lines: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What `maskloom eval RUN` reports.

    Args:
        lines: of the run's metrics, for its training loss.

    Returns:
        the figures of `evaluate`, `step` and `unigram_entropy`. `training_loss` is the mean of the last tenth of the steps, if
        they were logged. `accuracy_by_frequency` has bands of tokens, by their counts in the training text. Then the folders of
        the corpora.
    """
    corpora = open_corpora(loaded.config.data)
    folders = ", ".join(index.folder for index in corpora)
    if not any(len(index.held_out_blocks) for index in corpora):
        raise UserError(
            f"{folders} holds no held-out documents: write it with a larger --val-fraction, so that some are held out"
        )
    model = loaded.model.to(device())
    tokenizer, settings = loaded.tokenizer.as_of(loaded.tokenizing), loaded.config.evaluation_filled
    for index in corpora:
        index.check_tokenizer(tokenizer)
    rule = MaskRule.held_out(loaded.config.masking, settings.mask_rate, tokenizer)
    counts = token_counts(corpora, tokenizer, rule)
    by_band = count_by_band(model, torch.from_numpy(band_by_token(counts)).to(device()))
    figures: dict[str, Any] = {**evaluate(model, corpora, tokenizer, settings, rule, device(), World())}
    if not figures:
        raise UserError(
            f"no token of the held-out documents of {folders} is predicted: they are too short, or "
            f"evaluation.mask_rate {loaded.config.evaluation.mask_rate} is too low"
        )
    figures |= {"step": loaded.step, "unigram_entropy": entropy(counts)}
    last = range(int(0.9 * loaded.step) + 1, loaded.step + 1)
    losses = [line["loss_mean"] for line in lines if "loss" in line and line["step"] in last]
    if losses:
        figures["training_loss"] = float(np.mean(losses))
    figures["accuracy_by_frequency"] = [
        {"band": band_name(band), "tokens": int(tokens), "accuracy": int(hits) / int(tokens)}
        for band, (tokens, hits) in enumerate(by_band.tolist())
        if tokens
    ]
    return figures, [index.folder for index in corpora]


def count_by_band(model: MaskedLM, band_of: torch.Tensor) -> torch.Tensor:
    """Count hits by band, in all that the model does from here on. What it gives stays as it is.

    Args:
        band_of: int64 [vocabulary].

    Returns:
        int64 [bands, 2], which grows: tokens, and hits.
    """
    found = torch.zeros(BANDS, 2, dtype=torch.int64, device=band_of.device)
    original = model.kernels.cross_entropy

    def counting(
        logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_hit = logits.argmax(-1) == targets  # first of all, since the logits may be written over
        bands = band_of[targets]
        for column, chosen in enumerate((weights > 0, (weights > 0) & is_hit)):
            found[:, column] += torch.bincount(bands[chosen], minlength=BANDS)
        return original(logits, targets, weights)

    model.kernels = model.kernels._replace(cross_entropy=counting)
    return found


def lines_of_run(figures: dict[str, Any], title: str, folders: Sequence[str]) -> list[str]:
    """The figures for people."""
    lines = [
        title,
        f"  held-out loss     {figures['evaluation_loss']:.3f} nats a token "
        f"({int(figures['evaluation_tokens']):,} tokens)",
    ]
    for number, folder in enumerate(folders if len(folders) > 1 else ()):
        if (loss := figures.get(f"evaluation_loss_{number}")) is not None:
            lines.append(f"    of {shown(folder)}: {loss:.3f}")
    lines += [
        f"  perplexity        {figures['evaluation_perplexity']:,.1f}",
        f"  accuracy          {figures['evaluation_accuracy']:.1%} of the masked tokens",
    ]
    for band in figures["accuracy_by_frequency"]:
        lines.append(f"    {band['band'] + ':':<24}{band['accuracy']:.1%} of {band['tokens']:,}")
    if "training_loss" in figures:
        lines.append(
            f"  training loss     {figures['training_loss']:.3f} nats a token (mean of the last tenth of the steps)"
        )
    lines.append(
        f"  unigram entropy   {figures['unigram_entropy']:.3f} nats a token: the loss of guessing by how often tokens come"
    )
    return lines
