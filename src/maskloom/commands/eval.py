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
import re
from pathlib import Path

from maskloom.commands.arguments import add_step, fraction, natural, positive
from maskloom.commands.tables import comparison
from maskloom.errors import UserError
from maskloom.progress import show, show_json

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
    from maskloom.commands.evaluating import compare_named, on_its_corpora  # heavy

    if options.data is None:
        return on_its_corpora(named, overrides, options)
    if overrides:
        raise UserError(f"{overrides[0]} is for a run on its own corpora: leave it out with --data")
    found = compare_named(named, options)
    if options.json:
        show_json(found)
    else:
        show("\n".join(comparison(found)))
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
