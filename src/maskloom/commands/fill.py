"""Fill the masks of a sentence: the likeliest tokens for each [MASK].

MODEL is a run directory, an exported folder, or any folder with a Hugging Face checkpoint of
BertForMaskedLM and its tokenizer.

example:
  maskloom fill runs/quickstart "Returns the [MASK] of the array."
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertForMaskedLM
from transformers.utils import logging

from maskloom.commands.arguments import positive
from maskloom.errors import UserError
from maskloom.model.warm_start import load_checkpoint, open_checkpoint
from maskloom.progress import show
from maskloom.redaction import one_line


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("text", metavar="TEXT", help="a sentence with one [MASK] or more")
    add("--top", type=positive, default=5, help="tokens to print for each (default: 5)")


def run(options: argparse.Namespace) -> int:
    try:
        options.text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the text is not UTF-8: {one_line(options.text)}") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, tokenizer = _load(Path(options.model))
    ids = tokenizer(options.text, return_tensors="pt")["input_ids"]
    most = model.config.max_position_embeddings
    if ids.shape[1] > most:
        raise UserError(f"the text has {ids.shape[1]} tokens, the model reads at most {most}: shorten it")
    places = (ids[0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    if not places:
        raise UserError(f"no [MASK] in the text: {options.text!r}")
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, places]
    likely = logits.softmax(-1)[:, : len(tokenizer)]  # a padded vocabulary has rows that are no tokens
    shares, tokens = likely.topk(min(options.top, likely.shape[-1]))
    for place, token_row, share_row in zip(places, tokens.tolist(), shares.tolist(), strict=True):
        likeliest = ", ".join(
            f"{tokenizer.convert_ids_to_tokens(token)} {share:.1%}"
            for token, share in zip(token_row, share_row, strict=True)
        )
        show(f"[MASK] at token {place}: {one_line(likeliest)}")
    show(one_line(_filled(ids[0].tolist(), dict(zip(places, tokens[:, 0].tolist(), strict=True)), tokenizer)))
    return 0


def _load(source: Path) -> tuple[BertForMaskedLM, Any]:
    if (source / "config.yaml").exists():
        from transformers import PreTrainedTokenizerFast

        from maskloom.commands.export import plain_model
        from maskloom.commands.loading import load_run

        loaded = load_run(source, None)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=loaded.tokenizer.source, mask_token="[MASK]", pad_token="[PAD]"
        )
        return plain_model(loaded), tokenizer
    if not (source / "config.json").exists():
        raise UserError(
            f"{source} is neither a run directory nor a Hugging Face checkpoint: no config.yaml or config.json"
        )
    model, missing, _ = load_checkpoint(BertForMaskedLM, open_checkpoint(str(source), str(source)))
    if missing:
        raise UserError(
            f"{source} is no trained BertForMaskedLM: it lacks {len(missing)} weights, such as {min(missing)}"
        )
    if not any((source / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{source} has no tokenizer: put the model's tokenizer.json or vocab.txt there")
    try:
        return model.eval(), AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the library raises many kinds for a damaged file
        raise UserError(f"the tokenizer in {source} cannot be loaded: {error}") from None


def _filled(ids: list[int], best: dict[int, int], tokenizer: Any) -> str:
    text: str = tokenizer.decode([best.get(place, token) for place, token in enumerate(ids)], skip_special_tokens=True)
    return text
