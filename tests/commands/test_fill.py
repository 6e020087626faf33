"""`maskloom fill`: the likeliest tokens for each mask, from a run, an export, or any checkpoint of BertForMaskedLM."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, ElectraConfig, ElectraForMaskedLM

from maskloom.commands.loading import load_run, plain_model
from maskloom.models.architecture import ARCHITECTURES
from maskloom.tokenizers.base import Tokenizer

from .conftest import Command

TEXT = "the river [MASK] under a [MASK] tree"
SENTENCE = (
    "After Abraham Lincoln won the November 1860 presidential [MASK] on an anti-slavery platform, an initial seven "
    "slave states declared their secession from the country to form the Confederacy. War broke out in April 1861 when "
    "secessionist forces [MASK] Fort Sumter in South Carolina, just over a month after Lincoln's inauguration."
)


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> list[int]:
    """TEXT as the model should see it."""
    words = [tokenizer.encode([part])[0].tolist() for part in TEXT.split("[MASK]")]
    mask = tokenizer.mask_id
    return [tokenizer.cls_id, *words[0], mask, *words[1], mask, *words[2], tokenizer.sep_id]


def test_a_runs_likeliest_tokens_are_printed(
    trained_run: Path, tokenizer: Tokenizer, ids: list[int], succeeds: Command
) -> None:
    with torch.no_grad():
        logits = plain_model(load_run(trained_run, None))(input_ids=torch.tensor([ids])).logits[0]
    places = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
    *lines, filled = succeeds("fill", trained_run, TEXT, "--top", 3).splitlines()
    assert len(lines) == len(places) == 2
    best = []
    for place, line in zip(places, lines, strict=True):
        shares, tokens = logits[place].softmax(-1).topk(3)
        named = [f"{tokenizer.token(int(token))} {share:.1%}" for token, share in zip(tokens, shares, strict=True)]
        assert line == f"[MASK] at token {place}: {', '.join(named)}"
        best.append(tokens[0].item())
    for place, token in zip(places, best, strict=True):
        ids = [*ids[:place], token, *ids[place + 1 :]]
    assert filled == tokenizer.decode(ids[1:-1])


def test_one_object_for_programs(trained_run: Path, tokenizer: Tokenizer, ids: list[int], succeeds: Command) -> None:
    found = json.loads(succeeds("fill", trained_run, TEXT, "--top", tokenizer.vocab_size, "--json"))
    *lines, filled = succeeds("fill", trained_run, TEXT, "--top", 2).splitlines()
    assert (found["ids"], found["text"]) == (ids, filled)
    for mask, line in zip(found["masks"], lines, strict=True):
        assert ids[mask["place"]] == tokenizer.mask_id
        assert sum(mask["shares"]) == pytest.approx(1.0)
        assert mask["spellings"] == [tokenizer.token(number) for number in mask["tokens"]]
        shown = [f"{name} {share:.1%}" for name, share in zip(mask["spellings"][:2], mask["shares"][:2], strict=True)]
        assert line == f"[MASK] at token {mask['place']}: {', '.join(shown)}"


def test_an_export_gives_what_its_run_gives(trained_run: Path, tmp_path: Path, succeeds: Command) -> None:
    succeeds("export", trained_run, tmp_path / "model")
    assert succeeds("fill", tmp_path / "model", TEXT) == succeeds("fill", trained_run, TEXT)


def test_the_number_of_tokens_is_settable(trained_run: Path, tokenizer: Tokenizer, succeeds: Command) -> None:
    for top, expected in ((1, 1), (7, 7), (10**6, tokenizer.vocab_size)):
        first, *_ = succeeds("fill", trained_run, TEXT, "--top", top).splitlines()
        assert len(re.findall(r" \d+\.\d%", first)) == expected


def test_the_reference_sentence(minilm_dir: Path, tmp_path: Path, succeeds: Command) -> None:
    """With the published tokenizer, whose file asks for truncation and padding to 128 tokens."""
    torch.manual_seed(0)
    BertForMaskedLM.from_pretrained(minilm_dir).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm_dir / name, tmp_path)
    first, second, filled = succeeds("fill", tmp_path, SENTENCE).splitlines()
    assert first.startswith("[MASK] at token 9: ")
    assert second.startswith("[MASK] at token 43: ")
    assert filled.startswith("after abraham lincoln won the november 1860 presidential")
    assert "[MASK]" not in filled
    assert filled.endswith("inauguration.")


def test_a_text_without_a_mask_is_refused(trained_run: Path, fails: Command) -> None:
    assert "no [MASK] in the text: 'the river'" in fails("fill", trained_run, "the river")


def test_a_text_that_is_too_long_is_refused(trained_run: Path, fails: Command) -> None:
    # [CLS], [MASK], 511 words and [SEP].
    message = fails("fill", trained_run, "[MASK]" + " river" * 511)
    assert "the text has 514 tokens, the model reads at most 512" in message


def test_a_head_that_was_never_trained_is_refused(minilm_dir: Path, fails: Command) -> None:
    message = fails("fill", minilm_dir, TEXT)
    assert "is not a trained BertForMaskedLM: it lacks" in message
    assert "cls.predictions" in message


def test_rows_beyond_the_tokenizer_are_no_tokens(
    tokenizer_dir: Path, tokenizer: Tokenizer, tmp_path: Path, succeeds: Command
) -> None:
    """They stay in the softmax, and are not printed although the model finds them likeliest."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size + 6, **shape))
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.vocab_size :] = 10.0
    model.save_pretrained(tmp_path)
    shutil.copy(tokenizer_dir / "tokenizer.json", tmp_path)
    first, *_ = succeeds("fill", tmp_path, TEXT, "--top", 10**6).splitlines()
    shares = [float(share) for share in re.findall(r" (\d+\.\d)%", first)]
    assert len(shares) == tokenizer.vocab_size
    assert sum(shares) < 1.0
    assert "None" not in first


class TestBadFolders:
    @pytest.fixture
    def model(self, tokenizer_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> Path:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, **shape)).save_pretrained(tmp_path / "model")
        shutil.copy(tokenizer_dir / "tokenizer.json", tmp_path / "model")
        return tmp_path / "model"

    def test_neither_a_run_nor_a_model(self, tmp_path: Path, fails: Command) -> None:
        assert "is neither a run directory nor" in fails("fill", tmp_path, TEXT)
        assert "is neither a run directory nor" in fails("fill", tmp_path / "absent", TEXT)

    def test_without_a_tokenizer(self, model: Path, fails: Command) -> None:
        (model / "tokenizer.json").unlink()
        assert "no tokenizer in" in fails("fill", model, TEXT)

    def test_with_a_damaged_tokenizer(self, model: Path, fails: Command) -> None:
        (model / "tokenizer.json").write_text("{")
        assert f"{model / 'tokenizer.json'} is not a tokenizer.json" in fails("fill", model, TEXT)

    def test_with_damaged_weights(self, model: Path, fails: Command) -> None:
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        assert f"{model} cannot be loaded" in fails("fill", model, TEXT)

    @pytest.mark.parametrize(
        ("key", "value"), [("is_decoder", True), ("position_embedding_type", "relative_key"), ("hidden_size", "16")]
    )
    def test_of_another_function(self, key: str, value: object, model: Path, fails: Command) -> None:
        file = model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        assert f"{key} is {value!r}" in fails("fill", model, TEXT)

    def test_of_another_kind(self, tmp_path: Path, tokenizer_dir: Path, tokenizer: Tokenizer, fails: Command) -> None:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        ElectraForMaskedLM(ElectraConfig(vocab_size=tokenizer.vocab_size, **shape)).save_pretrained(tmp_path)
        shutil.copy(tokenizer_dir / "tokenizer.json", tmp_path)
        message = fails("fill", tmp_path, TEXT)
        assert f"is a 'electra' model: only {', '.join(map(repr, ARCHITECTURES))} are supported" in message

    def test_a_run_whose_newest_checkpoints_are_damaged(
        self, trained_run: Path, tmp_path: Path, fails: Command
    ) -> None:
        run = shutil.copytree(trained_run, tmp_path / "run")
        for manifest in (run / "checkpoints").glob("*/manifest.json"):
            manifest.unlink()
        assert "No good checkpoint is left" in fails("fill", run, TEXT)


def test_tokens_are_printed_on_their_line_whatever_they_hold(
    trained_run: Path, tmp_path: Path, succeeds: Command
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    file = run / "model" / "tokenizer.json"
    definition = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = definition["model"]["vocab"]
    for name, hostile in (("river", "a\x1b[2J"), ("wind", "b\u202e"), ("stone", "c\nd"), ("water", "😀é")):
        vocabulary[hostile] = vocabulary.pop(name)
    file.write_text(json.dumps(definition), encoding="utf-8")
    lines = succeeds("fill", run, "the [MASK] of", "--top", len(vocabulary)).splitlines()
    assert len(lines) == 2
    for printed in (r"a\x1b[2J ", r"b\u202e ", r"c\nd ", "😀é "):
        assert printed in lines[0]


def test_text_that_is_not_utf_8_is_refused(trained_run: Path, fails: Command) -> None:
    assert r"the text is not UTF-8: a \udcff [MASK]" in fails("fill", trained_run, "a \udcff [MASK]")
