"""What `maskloom eval` does: a run on what its own corpora hold out, or models on one text."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskloom.commands.loading import (
    LoadedPlain,
    LoadedRun,
    device,
    is_run,
    load_named,
    load_run,
    plain_model,
    run_and_step,
)
from maskloom.commands.run_figures import held_out_figures, lines_of_run
from maskloom.data.plan import open_corpora
from maskloom.errors import UserError
from maskloom.models.foreign import longest_piece_in
from maskloom.progress import Progress, show, show_json
from maskloom.runs import read_metrics
from maskloom.scoring.models import Scored
from maskloom.scoring.pseudo import choose_sentences, pseudo_perplexity, tokens_to_score
from maskloom.scoring.score import Prepared, difference, figures_of, pieces_to_score, prepare, score
from maskloom.scoring.texts import Texts, held_out_documents, read_texts, sample


def on_its_corpora(named: Sequence[str], overrides: Sequence[str], options: argparse.Namespace) -> int:
    """A run on what its corpora hold out."""
    if len(named) > 1:
        raise UserError("several models are compared on one text: name it with --data, such as the corpus of a run")
    folder, step = run_and_step(named[0], options.step)
    if not is_run(named[0]):
        raise UserError(f"{named[0]} is not a run (it has no config.yaml): name the text to evaluate on with --data")
    loaded = load_run(folder, step, overrides)
    figures, folders = held_out_figures(loaded, read_metrics(folder))
    if options.pseudo_perplexity:
        figures |= _pseudo_of_run(loaded, folder, options)
    if options.json:
        show_json(figures)
        return 0
    show("\n".join(lines_of_run(figures, f"step {loaded.step:,} of {folder}", folders)))
    return 0


def _pseudo_of_run(loaded: LoadedRun, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pseudo-perplexity of sentences that a run holds out."""
    texts = sample(held_out_documents(open_corpora(loaded.config.data)), options.documents, options.seed)
    model = plain_model(loaded)
    models = [Scored(str(folder), model.to(device()), loaded.tokenizer, longest_piece_in(model))]
    return _pseudo(models, _prepared(texts, models, options), options)[0]


def compare_named(named: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Models on one text."""
    loaded = [load_named(given, options.step, takes_any=True) for given in named]
    for each in loaded:
        each.model.to(device())
    return compare(loaded, options)


def compare(loaded: Sequence[LoadedPlain], options: argparse.Namespace) -> dict[str, Any]:
    """Models on one text, each where it is. `options` are those that the parser gives."""
    models = [Scored(each.source, each.model, each.tokenizer, longest_piece_in(each.model)) for each in loaded]
    texts = read_texts(options.data, options.text_key, options.blank_line, options.documents, options.seed)
    prepared = _prepared(texts, models, options)
    outcomes = []
    for number, model in enumerate(models):
        with Progress(model.name, pieces_to_score(prepared), "pieces") as progress:
            outcomes.append(score(number, model, prepared, progress.advance))
    figures = [
        {"model": each.source, "step": each.step, **figures_of(outcome, prepared)}
        for each, outcome in zip(loaded, outcomes, strict=True)
    ]
    for outcome, of_model in zip(outcomes[1:], figures[1:], strict=True):
        more, error = difference(outcome, outcomes[0], prepared)
        of_model |= {"more_nats_per_byte": more, "standard_error": None if math.isnan(error) else error}
    if options.pseudo_perplexity:
        for of_model, pseudo in zip(figures, _pseudo(models, prepared, options), strict=True):
            of_model |= pseudo
    return {
        "data": options.data,
        "documents": len(texts.documents),
        "documents_found": texts.found,
        "words": prepared.words,
        "masked_words": len(prepared.document),
        "masked_bytes": int(prepared.size_bytes.sum()),
        "left_out": dict(prepared.left_out),
        "joined_words": prepared.joins,
        "same_tokens": len({model.tokenizer.tokens_mark for model in models}) == 1,
        "models": figures,
    }


def _prepared(texts: Texts, models: Sequence[Scored], options: argparse.Namespace) -> Prepared:
    return prepare(texts.documents, models, options.mask_rate, options.seed, options.seq_len)


def _pseudo(models: Sequence[Scored], prepared: Prepared, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each model makes of the same sentences, token by token."""
    chosen = choose_sentences(prepared, models, options.sentences, options.seed, options.seq_len)
    if not chosen:
        raise UserError("the text has no sentence that every model can score: name more text")
    found = []
    for number, model in enumerate(models):
        with Progress(f"{model.name}, pseudo-perplexity", tokens_to_score(number, chosen), "tokens") as progress:
            found.append(pseudo_perplexity(number, model, chosen, progress.advance))
    return found
