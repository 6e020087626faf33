"""The files that sentence-transformers needs beside a model: a text becomes the mean of its tokens' last hidden states.

The names are those of releases before 6, which later ones read too. The weights stay those of the masked language model;
sentence-transformers leaves its head out.
"""

from __future__ import annotations

import json
from pathlib import Path

from maskloom.files import write_atomically

MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def write_pooling(folder: Path, hidden_size: int, longest: int) -> None:
    """Write the files beside an exported model.

    Args:
        hidden_size: width of the last hidden states, and so of a text's vector.
        longest: tokens that the model reads; longer texts are cut.
    """
    names = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(names.items())
    ]
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in MODES}
    (folder / "1_Pooling").mkdir()
    for path, content in {
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": hidden_size, **pooling, "include_prompt": True},
        "modules.json": modules,
    }.items():
        write_atomically(folder / path, json.dumps(content, indent=2) + "\n")
