"""What we write for others is loaded by others: transformers 4 and 5, sentence-transformers, another user."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

from maskloom.cli import main
from maskloom.commands.loading import load_run, plain_model
from maskloom.files import whole_folder
from maskloom.tokenizers.loading import load_tokenizer

from .conftest import environment
from .peers import COMMANDS, EMBED, PEERS, TEXTS, ask, assert_embeds_as, with_ends

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
    (found,) = ask(EMBED, [json.dumps(TEXTS), str(exported)], peer("sentence-transformers"))
    assert (found["shape"], found["longest"]) == ([len(TEXTS), 16], 64)
    assert_embeds_as(found, exported.parent / "RUN")


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


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
