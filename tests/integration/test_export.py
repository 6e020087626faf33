"""What we write for others is loaded by others: transformers 4 and 5, sentence-transformers, another user."""

from __future__ import annotations

import configparser
import json
import os
import re
import stat
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
from maskloom.commands.export import plain_model
from maskloom.commands.loading import load_run
from maskloom.data.batch import MicroBatch, make_micro_batch
from maskloom.data.rows import Rows
from maskloom.files import whole_folder
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from tests.conftest import missing

from .conftest import environment

PEERS = Path(__file__).with_name("peers.txt")
TEXTS = ["The RIVER learns, Éa quiet stone 中文.", "a [PATIENT] reads[PATIENT]", " before \n the [mask] of water", ""]
LOAD = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, __version__

folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
found = {"version": __version__, "longest": tokenizer.model_max_length}
found["roles"] = [getattr(tokenizer, f"{role}_token_id") for role in ("pad", "unk", "cls", "sep", "mask")]
found["ids"] = [tokenizer(text)["input_ids"] for text in texts]
found["names"] = sorted(tokenizer(texts[0]))
found["mask"] = [tokenizer.mask_token, str(tokenizer.bos_token), str(tokenizer.eos_token)]
found["lstrip"] = tokenizer.backend_tokenizer.get_added_tokens_decoder()[tokenizer.mask_token_id].lstrip
found["filled"] = tokenizer(f"the quiet {tokenizer.mask_token} reads {tokenizer.mask_token}.")["input_ids"]
found["batch"] = tokenizer(texts, padding=True)["input_ids"]
pair = tokenizer(texts[0], texts[1], return_token_type_ids=True)
found["types"] = pair["token_type_ids"] == [int(n) for n in pair["token_type_ids"]] and sorted(set(pair["token_type_ids"]))
if sys.argv[3:]:
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    masked = tokenizer("the quiet [MASK] reads", return_tensors="pt")
    with torch.no_grad():
        found["logits"] = model(**masked).logits[0].tolist()
    found["masked"] = masked["input_ids"][0].tolist()
print("FOUND" + json.dumps(found))
"""
EMBED = """
import json, sys
from sentence_transformers import SentenceTransformer, models

folder, texts = sys.argv[1], json.loads(sys.argv[2])
words = models.Transformer(folder)
model = SentenceTransformer(modules=[words, models.Pooling(words.get_embedding_dimension())])
vectors = model.encode(texts)
print("FOUND" + json.dumps({"shape": list(vectors.shape), "longest": model.max_seq_length, "vector": vectors[0].tolist(),
    "ids": [words.tokenizer(text)["input_ids"] for text in texts]}))
"""


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a library of `peers.txt`, installed when it is first asked for."""
    folder = tmp_path_factory.mktemp("peers")
    listed = configparser.ConfigParser(allow_no_value=True, delimiters=["\0"])
    listed.read(PEERS)

    def install(name: str) -> Path:
        if not (folder / name).exists():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary", ":all:", "--target", str(folder / f"{name}.partial"), *listed[name]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                missing(f"{name}, which pip could not install ({done.stderr.strip()[-300:]})")
            (folder / f"{name}.partial").rename(folder / name)
        return folder / name

    return install


def ask(script: str, arguments: Sequence[str], library: Path | None = None) -> Any:
    """What a script says that runs beside a library."""
    path = [str(library)] if library else []
    more = {
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(**more),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("FOUND")[2])


@pytest.fixture(scope="module", params=["uncased", "cased"])
def exported(request: pytest.FixtureRequest, documents: list[str], corpus_dir: Path, tmp_path_factory: Any) -> Path:
    """The export of a run of two steps, RUN beside it: its tokenizer has a token of the user's."""
    folder = tmp_path_factory.mktemp(request.param)
    trained = BertWordPieceTokenizer(lowercase=request.param == "uncased")
    trained.train_from_iterator([*documents, *TEXTS], vocab_size=300, show_progress=False)
    made = HFTokenizer.from_str(trained.to_str())
    made.add_special_tokens([AddedToken("[PATIENT]", lstrip=True, normalized=False)])
    made.enable_truncation(7)
    made.enable_padding(length=64)
    (folder / "tokenizer").mkdir()
    made.save(str(folder / "tokenizer" / "tokenizer.json"))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = {
        "run_dir": str(folder / "RUN"),
        "tokenizer": str(folder / "tokenizer"),
        "data": {"train": str(corpus_dir), "workers": 0},
        "model": shape | {"max_position_embeddings": 64},
        "phases": [{"steps": 2, "seq_len": 32, "global_batch_rows": 4, "micro_batch_rows": 4}],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "maskloom.train", str(folder / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["export", str(folder / "RUN"), str(folder / "export")]) == 0
    return folder / "export"


def with_ends(tokenizer: Tokenizer) -> list[list[int]]:
    return [[tokenizer.cls_id, *ids.tolist(), tokenizer.sep_id] for ids in tokenizer.encode(TEXTS)]


@pytest.mark.parametrize("version", ["4", "5"])
def test_transformers_loads_an_export(version: str, exported: Path, peer: Callable[[str], Path]) -> None:
    library = peer("transformers-4") if version == "4" else None
    found = ask(LOAD, [str(exported), json.dumps(TEXTS), "with the model"], library)
    assert found["version"].partition(".")[0] == version
    tokenizer = load_tokenizer(exported.parent / "tokenizer")
    assert found["ids"] == with_ends(tokenizer)
    assert tokenizer.vocabulary["[PATIENT]"] in found["ids"][1]
    roles = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert found["roles"] == list(roles)
    assert found["names"] == ["attention_mask", "input_ids", "token_type_ids"]
    assert (found["types"], found["longest"]) == ([0, 1], 64)
    assert tokenizer.mask_id in found["masked"]
    with torch.no_grad():
        model = plain_model(load_run(exported.parent / "RUN", None))
        expected = model(input_ids=torch.tensor([found["masked"]])).logits[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("cased", [False, True])
def test_transformers_loads_a_tokenizer_that_was_trained(
    version: str, cased: bool, corpus_dir: Path, tmp_path: Path, peer: Callable[[str], Path]
) -> None:
    assert main(["tokenizer", str(corpus_dir), str(tmp_path), "--vocab-size", "200", *["--cased"] * cased]) == 0
    found = ask(LOAD, [str(tmp_path), json.dumps(TEXTS)], peer("transformers-4") if version == "4" else None)
    tokenizer = load_tokenizer(tmp_path)
    assert found["ids"] == with_ends(tokenizer)
    assert found["roles"] == [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert found["names"] == ["attention_mask", "input_ids", "token_type_ids"]


@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("kind", ["byte-bpe", "unigram"])
def test_transformers_loads_every_kind_that_was_trained(
    kind: str, version: str, corpus_dir: Path, tmp_path: Path, peer: Callable[[str], Path]
) -> None:
    """As the file says it: ids, roles, a mask that takes the blank before it, and no token types."""
    options = ["--kind", kind, "--vocab-size", "400", "--spare", "3"]
    assert main(["tokenizer", str(corpus_dir), str(tmp_path), *options]) == 0
    found = ask(LOAD, [str(tmp_path), json.dumps(TEXTS)], peer("transformers-4") if version == "4" else None)
    assert found["version"].partition(".")[0] == version
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size % 64 == 0
    assert found["ids"] == with_ends(tokenizer)
    longest = max(map(len, found["ids"]))
    assert found["batch"] == [ids + [tokenizer.pad_id] * (longest - len(ids)) for ids in found["ids"]]
    assert found["roles"] == [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert found["mask"] == ["<mask>", "<s>", "</s>"]
    assert found["lstrip"] is True
    assert found["filled"] == tokenizer.encode_with_masks("the quiet [MASK] reads <mask>.")
    assert found["names"] == ["attention_mask", "input_ids"]


def test_sentence_transformers_embeds_with_an_export(exported: Path, peer: Callable[[str], Path]) -> None:
    found = ask(EMBED, [str(exported), json.dumps(TEXTS)], peer("sentence-transformers"))
    assert (found["shape"], found["longest"]) == ([len(TEXTS), 16], 64)
    assert found["ids"] == with_ends(load_tokenizer(exported.parent / "tokenizer"))
    model = plain_model(load_run(exported.parent / "RUN", None))
    with torch.no_grad():
        hidden = model.bert(input_ids=torch.tensor([found["ids"][0]])).last_hidden_state[0]
    torch.testing.assert_close(torch.tensor(found["vector"]), hidden.mean(0), atol=1e-5, rtol=0)


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


def a_piece(ids: list[int], tokenizer: Tokenizer) -> MicroBatch:
    """A row with one piece of text, as in training; its masks are predicted."""
    tokens = np.array([ids], np.int32)
    starts, chosen = np.zeros(tokens.shape, bool), tokens == tokenizer.mask_id
    starts[:, 0] = True
    return make_micro_batch(Rows(tokens, tokens, starts, chosen), 1, int(chosen.sum()), tokenizer)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


COMMANDS = """
import json, shutil, sys
from pathlib import Path
from maskloom.cli import main

for command in json.loads(sys.argv[1]):
    if command[0] == "index":
        folder = Path(command[1])
        folder.mkdir()
        for tar in (folder.parent / "corpus").glob("*.tar"):
            shutil.copyfile(tar, folder / tar.name)
    if code := main(command):
        sys.exit(code)
"""


@pytest.mark.parametrize("exported", ["uncased"], indirect=True)
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_who_may_read_what_we_write_follows_from_the_umask(
    umask: int, exported: Path, documents: list[str], tmp_path: Path
) -> None:
    """Of every command that writes a folder for others, and of every file in it."""
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[:40]))
    corpus, tokenizer = tmp_path / "corpus", exported.parent / "tokenizer"
    config = yaml.safe_load((exported.parent / "run.yaml").read_text()) | {"run_dir": str(tmp_path / "RUN")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    commands = [
        ["shards", tmp_path / "text.jsonl", corpus, "--processes", 1],
        ["shards", corpus, tmp_path / "tokens", "--tokenizer", tokenizer, "--processes", 1],
        ["tokenizer", corpus, tmp_path / "tokenizer", "--vocab-size", 100],
        ["index", tmp_path / "tars"],
        ["export", exported.parent / "RUN", tmp_path / "export"],
        ["train", tmp_path / "run.yaml"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([list(map(str, command)) for command in commands])],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
        umask=umask,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("corpus", "tokens", "tars", "tokenizer", "export", "RUN"):
        found = modes(tmp_path / name)
        assert len(found) > 2
        for path, mode in found.items():
            due = (0o777 if (tmp_path / name / path).is_dir() else 0o666) & ~umask
            assert mode == due, f"{name}/{path} has {mode:o}, due is {due:o}"


def test_a_folder_is_private_until_it_is_whole(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with whole_folder(tmp_path / "out") as partial:
            (partial / "inner").mkdir(mode=0o700)
            for file in (partial / "private", partial / "inner" / "program"):
                file.touch(mode=0o700)
            assert stat.S_IMODE(partial.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert modes(tmp_path / "out") == {".": 0o755, "inner": 0o755, "private": 0o644, "inner/program": 0o644}


def test_every_peer_is_pinned() -> None:
    lines = [line for line in PEERS.read_text().splitlines() if line and line[0] not in "#["]
    assert lines
    assert all(re.fullmatch(r"[a-z-]+==\d+(\.\d+)+", line) for line in lines)
