"""A checkpoint gets rows for the tokens that its tokenizer was extended by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM, BertModel, ModernBertConfig, ModernBertForMaskedLM

from maskloom.config import Bert, ModernBert
from maskloom.errors import UserError
from maskloom.models.build import build_model
from maskloom.models.masked_lm import decoder_of, embedding_of
from maskloom.models.warm_start import check_init
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.extend import NewWord, extended
from tests.models.test_warm_start import tiny_config


@pytest.fixture(scope="module")
def longer(tokenizer: Tokenizer) -> Tokenizer:
    words = [NewWord(word, 1, ()) for word in ("riverstones", "stonerivers")]
    return extended(tokenizer, words)


def means(table: torch.Tensor, longer: Tokenizer, tokenizer: Tokenizer) -> torch.Tensor:
    """Of the rows that stood for the new tokens before."""
    words = [longer.token(number) for number in range(tokenizer.vocab_size, longer.vocab_size)]
    return torch.stack([table[torch.tensor(ids.tolist())].mean(dim=0) for ids in tokenizer.encode(words)])


@pytest.mark.parametrize("spare", [0, 1, 7])
def test_new_rows_are_means_and_old_ones_stay(
    spare: int, longer: Tokenizer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """`spare` rows beyond the old tokenizer's ids may be too few for the new ones, or more than enough."""
    torch.manual_seed(4)
    theirs = BertForMaskedLM(tiny_config(tokenizer.vocab_size + spare))
    theirs.cls.predictions.bias.data.normal_()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    check_init(str(tmp_path), longer, {})
    model, line = build_model(Bert(init=str(tmp_path), max_position_embeddings=128), longer, 0)
    assert f"2 tokens more than the {tokenizer.vocab_size:,} of its own tokenizer" in line
    rows, old = max(longer.vocab_size, tokenizer.vocab_size + spare), tokenizer.vocab_size
    assert model.config.vocab_size == rows
    for before, after in (
        (embedding_of(theirs).weight, embedding_of(model).weight),
        (theirs.cls.predictions.bias, decoder_of(model).bias),
    ):
        assert len(after) == rows
        assert torch.equal(after[:old], before[:old])
        torch.testing.assert_close(after[old : old + 2], means(before.detach(), longer, tokenizer))
        assert torch.equal(after[old + 2 :], before[old + 2 :])
    assert decoder_of(model).weight is embedding_of(model).weight


def test_an_untied_decoder_and_an_absent_head(longer: Tokenizer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("pad", "cls", "sep")}
    ids |= {"bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ModernBertConfig(vocab_size=tokenizer.vocab_size, tie_word_embeddings=False, **shape, **ids)
    untied = ModernBertForMaskedLM(config)
    untied.save_pretrained(tmp_path / "untied")
    BertModel(tiny_config(tokenizer.vocab_size)).save_pretrained(tmp_path / "headless")
    for folder in ("untied", "headless"):
        tokenizer.save(tmp_path / folder / "tokenizer.json")
    model, _ = build_model(ModernBert(init=str(tmp_path / "untied")), longer, 0)
    expected = means(untied.decoder.weight.detach(), longer, tokenizer)
    torch.testing.assert_close(decoder_of(model).weight[tokenizer.vocab_size :], expected)
    model, line = build_model(Bert(init=str(tmp_path / "headless")), longer, 0)
    assert "newly initialised: cls.predictions" in line
    assert decoder_of(model).bias.shape == (longer.vocab_size,)


def test_without_the_old_tokenizer_or_with_another_it_is_refused(
    longer: Tokenizer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    BertForMaskedLM(tiny_config(tokenizer.vocab_size)).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"its last 2 ids would have no embedding.*`maskloom tokenizer extend` made of it"
    ):
        check_init(str(tmp_path), longer, {})
    swapped = tokenizer.definition.replace('"river"', '"riverx"')
    (tmp_path / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(UserError, match="its last 2 ids would have no embedding"):
        check_init(str(tmp_path), longer, {})
