"""RoBERTa's published form of a tokenizer, `vocab.json` with `merges.txt`: read as transformers 4 and 5 read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.tokenizers.byte_bpe import train_byte_bpe
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.writing import write_for_others

from .peers import TEXTS, ask, with_ends

READ = """
import json, sys
from transformers import AutoTokenizer, __version__

texts, answers = json.loads(sys.argv[1]), []
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    roles = [getattr(tokenizer, f"{role}_token_id") for role in ("pad", "unk", "cls", "sep", "mask")]
    answers.append([__version__.partition(".")[0], ids, roles, sorted(tokenizer("a", "b"))])
    marks = tokenizer.added_tokens_decoder[tokenizer.mask_token_id].lstrip
print("FOUND" + json.dumps([answers, marks, tokenizer("the quiet <mask> reads")["input_ids"]]))
"""


@pytest.mark.parametrize("version", ["4", "5"])
def test_transformers_reads_the_same_ids(
    version: str, documents: list[str], tmp_path: Path, peer: Callable[[str], Path]
) -> None:
    """Of the files, and of what we write of them. In both versions the mask of the latter takes the blank before it."""
    model = json.loads(train_byte_bpe(documents, 400, None))["model"]
    folders, tokenizers = [], []
    for blank_in_front in (False, True):
        folder = tmp_path / f"blank-{blank_in_front}"
        (folder / "written").mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        pairs = "".join(" ".join(pair) + "\n" for pair in model["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + pairs)
        (folder / "config.json").write_text('{"model_type": "roberta"}')
        said = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": blank_in_front}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
        tokenizer = load_tokenizer(folder)
        write_for_others(folder / "written", tokenizer)
        folders += [str(folder), str(folder / "written")]
        tokenizers += [tokenizer, tokenizer]
    library = peer("transformers-4") if version == "4" else None
    answers, mask_strips, masked = ask(READ, [json.dumps(TEXTS), *folders], library)
    for answer, tokenizer in zip(answers, tokenizers, strict=True):
        roles = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
        assert answer == [version, with_ends(tokenizer), roles, ["attention_mask", "input_ids"]]
    assert with_ends(tokenizers[0]) != with_ends(tokenizers[2])
    assert mask_strips is True
    assert masked == tokenizers[-1].encode_with_masks("the quiet <mask> reads")
