"""Exports of every architecture: Hugging Face's own classes load them, and fill masks as `maskloom fill` does.

Both releases of transformers are asked. Each architecture has a tokenizer as its published models have.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

from maskloom.cli import main
from maskloom.commands.loading import load_run
from maskloom.data.batch import MicroBatch, make_micro_batch
from maskloom.data.rows import Rows
from maskloom.tokenizers.base import Tokenizer

from .conftest import environment
from .peers import COMMANDS, EMBED, TEXTS, ask, assert_embeds_as

BERTS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
ROBERTAS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True)
class Encoder:
    """An architecture, a tokenizer as its models have, and what Hugging Face calls them."""

    architecture: str
    hf_class: str
    makes_tokenizer: Callable[[list[str]], HFTokenizer]
    longest: int
    model: dict[str, Any] = field(default_factory=dict)
    has_token_types: bool = False


def of_bytes(documents: list[str]) -> HFTokenizer:
    """As RoBERTa's: special tokens first."""
    made = HFTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=specials(ROBERTAS), show_progress=False
    )
    made.train_from_iterator(documents, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


def of_bytes_composed(documents: list[str]) -> HFTokenizer:
    """As ModernBERT's: composed characters, and special tokens last, so that the id of padding is large."""
    made = HFTokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        documents, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(specials(BERTS))
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return made


def of_pieces(scheme: str) -> Callable[[list[str]], HFTokenizer]:
    """As XLM-R's and CamemBERT's, whose blanks are a character."""

    def make(documents: list[str]) -> HFTokenizer:
        made = HFTokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=specials(ROBERTAS), unk_token="<unk>", show_progress=False
        )
        made.train_from_iterator(documents, trainer)
        ends = [("<s>", 0), ("</s>", 2)]
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ends)
        return made

    return make


def of_words(documents: list[str]) -> HFTokenizer:
    made = BertWordPieceTokenizer()
    made.train_from_iterator(documents, vocab_size=300, show_progress=False)
    return HFTokenizer.from_str(made.to_str())


def specials(names: Sequence[str]) -> list[AddedToken]:
    """The mask takes the blanks before it, as in published tokenizers."""
    return [AddedToken(name, lstrip="mask" in name.lower(), normalized=False, special=True) for name in names]


WINDOWS = {
    "num_hidden_layers": 4,
    "local_attention": 16,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 100.0,
    "local_rope_theta": 30.0,
    "initializer_range": 0.1,
}
UNTIED = {"attention_bias": True, "norm_bias": True, "decoder_bias": False}
ENCODERS = {
    "bert": Encoder("bert", "BertForMaskedLM", of_words, 130, has_token_types=True),
    "roberta": Encoder("roberta", "RobertaForMaskedLM", of_bytes, 128),
    "xlm-roberta": Encoder("xlm-roberta", "XLMRobertaForMaskedLM", of_pieces("always"), 128),
    "camembert": Encoder("camembert", "CamembertForMaskedLM", of_pieces("first"), 128),
    "modernbert": Encoder("modernbert", "ModernBertForMaskedLM", of_bytes_composed, 130, WINDOWS),
    "roberta-words": Encoder("roberta", "RobertaForMaskedLM", of_words, 129),
    "modernbert-words": Encoder("modernbert", "ModernBertForMaskedLM", of_words, 130, WINDOWS | UNTIED),
}
"""The last two have a tokenizer of words, whose padding has id 0."""
MASKED = [
    "the {mask} of the river",
    "{mask} the river",
    "the {mask} under a {mask} tree",
    "a stone,{mask}tree  {mask}.\n{mask}\n",
    "the small wind {mask} " * 9 + "because every machine reads some paper and writes a number " * 2,
]
"""Masks in the middle, at the ends, without a blank, and further apart than the window."""
FILL = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, __version__, pipeline

answers = {"version": __version__}
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    found = {"class": type(model).__name__, "report": sorted(map(str, sum(map(list, report.values()), [])))}
    found |= {"longest": tokenizer.model_max_length, "inputs": sorted(tokenizer("a", "b")), "texts": []}
    fill = pipeline("fill-mask", model=model.eval(), tokenizer=tokenizer, top_k=4)
    for text in json.loads(sys.argv[1]):
        text = text.format(mask=tokenizer.mask_token)
        filled = fill(text)
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
        masks = filled if isinstance(filled[0], list) else [filled]
        found["texts"].append({
            "ids": inputs["input_ids"][0].tolist(), "logits": logits.tolist(),
            "masks": [[[each["token"], each["score"]] for each in mask] for mask in masks],
        })
    pair = model(**tokenizer("the river", "a tree", return_tensors="pt")).logits
    found["pair"] = bool(torch.isfinite(pair).all())
    answers[folder] = found
print("FOUND" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def encoders(documents: list[str], corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run RUN-NAME and the export NAME of every encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    commands = []
    for name, encoder in ENCODERS.items():
        (folder / f"tokenizer-{name}").mkdir()
        encoder.makes_tokenizer([*documents, *TEXTS]).save(str(folder / f"tokenizer-{name}" / "tokenizer.json"))
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        tree = {
            "run_dir": str(folder / f"RUN-{name}"),
            "tokenizer": str(folder / f"tokenizer-{name}"),
            "data": {"train": str(corpus_dir), "workers": 0},
            "model": {"architecture": encoder.architecture, **shape, "max_position_embeddings": 130, **encoder.model},
            "optimizer": {"lr": 1e-2, "warmup_steps": 2},
            "phases": [{"steps": 8, "seq_len": 64, "global_batch_rows": 4, "micro_batch_rows": 4}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        commands += [["train", str(folder / f"{name}.yaml")], ["export", tree["run_dir"], str(folder / name)]]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[transformers]" not in done.stderr
    return folder


@pytest.fixture(scope="module", params=["4", "5"])
def answers(request: pytest.FixtureRequest, encoders: Path, peer: Callable[[str], Path]) -> dict[str, Any]:
    """What transformers of a version says of each encoder's export."""
    library = peer("transformers-4") if request.param == "4" else None
    found = ask(FILL, [json.dumps(MASKED), *(str(encoders / name) for name in ENCODERS)], library)
    assert found.pop("version").partition(".")[0] == request.param
    return {Path(folder).name: found[folder] for folder in found}


@pytest.mark.parametrize("name", ENCODERS)
def test_transformers_fills_masks_as_we_do(
    name: str, answers: dict[str, Any], encoders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own class loads every weight, and gives the tokens and shares that `maskloom fill` and the training forward do."""
    encoder, found = ENCODERS[name], answers[name]
    assert (found["class"], found["report"], found["longest"]) == (encoder.hf_class, [], encoder.longest)
    inputs = ["attention_mask", "input_ids", *["token_type_ids"] * encoder.has_token_types]
    assert (found["inputs"], found["pair"]) == (inputs, True)
    written = json.loads((encoders / name / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (encoder.architecture, [encoder.hf_class])
    loaded = load_run(encoders / f"RUN-{name}", None)
    for text, theirs in zip(MASKED, found["texts"], strict=True):
        said = text.format(mask=loaded.tokenizer.roles.mask)
        for source in (encoders / name, encoders / f"RUN-{name}"):
            capsys.readouterr()
            assert main(["fill", str(source), said, "--top", "4", "--json"]) == 0
            ours = json.loads(capsys.readouterr().out)
            assert ours["ids"] == theirs["ids"]
            assert [mask["tokens"] for mask in ours["masks"]] == [
                [token for token, _ in mask] for mask in theirs["masks"]
            ]
            shares = [mask["shares"] for mask in ours["masks"]]
            assert shares == [[pytest.approx(share, abs=1e-6) for _, share in mask] for mask in theirs["masks"]]
        batch = a_piece(ours["ids"], loaded.tokenizer)
        with torch.no_grad():
            logits = loaded.model.masked_logits(batch)[: len(theirs["logits"])]
        torch.testing.assert_close(logits, torch.tensor(theirs["logits"]), atol=1e-5, rtol=0)


def test_sentence_transformers_embeds_with_every_encoder(encoders: Path, peer: Callable[[str], Path]) -> None:
    names = ["roberta", "camembert", "modernbert"]
    arguments = [json.dumps(TEXTS), *(str(encoders / name) for name in names)]
    for name, found in zip(names, ask(EMBED, arguments, peer("sentence-transformers")), strict=True):
        assert (found["shape"], found["longest"]) == ([len(TEXTS), 32], ENCODERS[name].longest)
        assert_embeds_as(found, encoders / f"RUN-{name}")


def a_piece(ids: list[int], tokenizer: Tokenizer) -> MicroBatch:
    """A row with one piece of text, as in training; its masks are predicted."""
    tokens = np.array([ids], np.int32)
    starts, chosen = np.zeros(tokens.shape, bool), tokens == tokenizer.mask_id
    starts[:, 0] = True
    return make_micro_batch(Rows(tokens, tokens, starts, chosen), 1, int(chosen.sum()), tokenizer)
