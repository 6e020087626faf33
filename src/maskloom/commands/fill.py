"""Fill the masks of a sentence: the likeliest tokens for each.

MODEL is a run, RUN@STEP or RUN@best, a folder with a masked language model of Hugging Face's and its tokenizer, or a name on
the Hub. Write a mask as [MASK], or as the tokenizer spells it (<mask>). In some tokenizers, as RoBERTa's and
ModernBERT's, it takes the blank before it, too. Shares are of the whole vocabulary.

example:
  maskloom fill runs/quickstart "Returns the [MASK] of the array."
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskloom.commands.arguments import add_step, positive
from maskloom.errors import UserError
from maskloom.progress import show, show_json
from maskloom.redaction import one_line
from maskloom.tokenizers.base import MASK


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("text", metavar="TEXT", help=f"a sentence with one {MASK} or more")
    add_step(parser)
    add("--top", type=positive, default=5, help="tokens to print for each (default: 5)")
    add("--json", action="store_true", help="print one JSON object, with ids and whole numbers")


def run(options: argparse.Namespace) -> int:
    try:
        options.text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the text is not UTF-8: {one_line(options.text)}") from None
    import torch
    from transformers.utils import logging

    from maskloom.commands.loading import load_plain
    from maskloom.models.architecture import longest_piece_of

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, tokenizer = load_plain(Path(options.model), options.step)
    ids = tokenizer.encode_with_masks(options.text)
    most, mask = longest_piece_of(model.config), tokenizer.roles.mask
    if len(ids) > most:
        raise UserError(f"the text has {len(ids)} tokens, the model reads at most {most}: shorten it")
    places = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
    if not places:
        spellings = " or ".join(dict.fromkeys((MASK, mask)))
        raise UserError(f"no {spellings} in the text: {options.text!r}")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, places]
    likely = logits.softmax(-1)[:, : tokenizer.vocab_size]  # a padded vocabulary has rows without a token
    shares, tokens = (found.tolist() for found in likely.topk(min(options.top, likely.shape[-1])))
    best = dict(zip(places, (row[0] for row in tokens), strict=True))
    filled = tokenizer.decode([best.get(place, token) for place, token in enumerate(ids)][1:-1])
    if options.json:
        masks = [
            {"place": place, "tokens": row, "spellings": [*map(tokenizer.token, row)], "shares": share_row}
            for place, row, share_row in zip(places, tokens, shares, strict=True)
        ]
        show_json({"ids": ids, "masks": masks, "text": filled})
        return 0
    for place, row, share_row in zip(places, tokens, shares, strict=True):
        likeliest = (f"{tokenizer.shown(token)} {share:.1%}" for token, share in zip(row, share_row, strict=True))
        show(f"{mask} at token {place}: {one_line(', '.join(likeliest))}")
    show(one_line(filled))
    return 0
