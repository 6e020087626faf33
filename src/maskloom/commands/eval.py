"""How well models guess masked words: what they lose, and how many they get right, of the frequent ones and the rare.

  maskloom eval RUN                   on what the run's own corpora hold out, as during training
  maskloom eval MODEL... --data TEXT  one model or several side by side, on any text

MODEL is a run, RUN@STEP or RUN@best. Or a folder with a masked language model of Hugging Face's and its tokenizer. Or a name on
the Hub, or NAME@REVISION. TEXT is a corpus, of which the held-out documents are read, or any INPUT of `maskloom shards`.

With --data, the same words of the text are masked for all models, each with all its tokens. If models have different
tokenizers, compare nats a byte and words that are right. Figures a token do not compare then. docs/evaluate.md says more.

examples:
  maskloom eval runs/quickstart
  maskloom eval runs/quickstart@500 runs/quickstart my_model --data my_texts/
  maskloom eval google-bert/bert-base-uncased --data data/my_corpus --pseudo-perplexity
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskloom.commands.arguments import add_step, fraction, natural, positive
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
from maskloom.commands.tables import comparison
from maskloom.data.plan import open_corpora
from maskloom.errors import UserError
from maskloom.models.foreign import longest_piece_in
from maskloom.progress import Progress, show
from maskloom.scoring.models import Scored
from maskloom.scoring.pseudo import choose_sentences, pseudo_perplexity, tokens_to_score
from maskloom.scoring.score import Prepared, difference, figures_of, pieces_to_score, prepare, score
from maskloom.scoring.texts import Texts, held_out_documents, read_texts, sample
from maskloom.train.metrics import read_metrics

DEFAULTS = {
    "documents": 1000,
    "mask_rate": 0.15,
    "seq_len": 512,
    "seed": 0,
    "sentences": 100,
    "text_key": "text",
    "blank_line": "file",
}
OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=.*", re.DOTALL)


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="and key=value: settings that replace a run's, if its data moved")
    add("--data", nargs="+", action="extend", metavar="TEXT", help="default: what the run's own corpora hold out")
    add_step(parser)
    add("--documents", type=positive, help=f"of more documents, a sample of so many (default: {DEFAULTS['documents']})")
    add("--mask-rate", type=fraction, help=f"share of the words that are masked (default: {DEFAULTS['mask_rate']})")
    add(
        "--seq-len",
        type=positive,
        help=f"most tokens of a piece, if each model reads as many (default: {DEFAULTS['seq_len']})",
    )
    add("--seed", type=natural, help=f"of the sample and of the masks (default: {DEFAULTS['seed']})")
    add("--pseudo-perplexity", action="store_true", help="also mask each token of some sentences in turn")
    add("--sentences", type=positive, help=f"for --pseudo-perplexity (default: {DEFAULTS['sentences']})")
    add("--text-key", help="where the text stands in a JSON object, or the column of a table")
    add(
        "--blank-line",
        action="store_const",
        const="blank-line",
        help="documents in .txt files are separated by blank lines",
    )
    add("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    named = [given for given in options.models if not OVERRIDE.fullmatch(given) or Path(given).exists()]
    overrides = [given for given in options.models if given not in named]
    if not named:
        raise UserError("name a model: a run, a folder with a Hugging Face checkpoint, or a name on the Hub")
    if options.step is not None and len(named) > 1:
        raise UserError("--step is for one run: with several models, write RUN@STEP")
    _fill(options)
    if options.data is None:
        return _on_its_corpora(named, overrides, options)
    if overrides:
        raise UserError(f"{overrides[0]} is for a run on its own corpora: leave it out with --data")
    found = _compare(named, options)
    show(json.dumps(found) if options.json else "\n".join(comparison(found)))
    return 0


def _fill(options: argparse.Namespace) -> None:
    """Give options their defaults. Raises UserError for one that would do nothing."""
    given = {name for name in DEFAULTS if getattr(options, name) is not None}
    if options.data is None:
        of_text = {"mask_rate", "text_key", "blank_line"}
        if not options.pseudo_perplexity:
            of_text |= {"documents", "seq_len", "seed"}
        if idle := sorted(given & of_text):
            name = idle[0].replace("_", "-")
            raise UserError(f"--{name} is for --data: for a run on its own corpora, its section `evaluation` counts")
    if "sentences" in given and not options.pseudo_perplexity:
        raise UserError("--sentences is for --pseudo-perplexity")
    for name in DEFAULTS.keys() - given:
        setattr(options, name, DEFAULTS[name])


def _on_its_corpora(named: Sequence[str], overrides: Sequence[str], options: argparse.Namespace) -> int:
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
        show(json.dumps(figures))
        return 0
    show("\n".join(lines_of_run(figures, f"step {loaded.step:,} of {folder}", folders)))
    return 0


def _pseudo_of_run(loaded: LoadedRun, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pseudo-perplexity of sentences that a run holds out."""
    texts = sample(held_out_documents(open_corpora(loaded.config.data)), options.documents, options.seed)
    model = plain_model(loaded)
    models = [Scored(str(folder), model.to(device()), loaded.tokenizer, longest_piece_in(model))]
    return _pseudo(models, _prepared(texts, models, options), options)[0]


def _compare(named: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
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
