"""Roles are read from what says them most plainly, and never from the spelling alone if a file says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Encoder
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.roles import SETTINGS, SPECIALS, Roles, read_object, roles_beside
from maskloom.tokenizers.writing import write_for_others

ROBERTA = Roles(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")
LLAMA = ("<|pad|>", "<|begin|>", "<|end|>", "<|mask|>")


def made(specials: tuple[str, ...], post_processor: object = None, **model: object) -> Encoder:
    """A tokenizer of letters with special tokens."""
    vocabulary = {token: number for number, token in enumerate([*specials, *"abcdefghij"])}
    encoder = Encoder(models.BPE(vocab=vocabulary, merges=[], **model))
    encoder.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder.add_special_tokens(list(specials))
    if post_processor is not None:
        encoder.post_processor = post_processor
    return encoder


def around(first: str, last: str, encoder: Encoder) -> processors.TemplateProcessing:
    ids = [(token, encoder.token_to_id(token)) for token in (first, last)]
    return processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)


def roles_of(encoder: Encoder, said: dict[str, str] | None = None) -> Roles:
    return tokenizer_of_definition(encoder.to_str(), "mine", said).roles


def test_the_post_processor_says_what_begins_and_ends_a_text() -> None:
    encoder = made((*ROBERTA.by_role().values(), "[CLS]", "[SEP]"), unk_token="<unk>")
    for post_processor in (
        processors.RobertaProcessing(("</s>", 3), ("<s>", 2)),
        processors.BertProcessing(("</s>", 3), ("<s>", 2)),
        around("<s>", "</s>", encoder),
        processors.Sequence([processors.ByteLevel(), around("<s>", "</s>", encoder)]),
    ):
        encoder.post_processor = post_processor
        assert roles_of(encoder) == ROBERTA


def test_without_a_post_processor_the_usual_spellings_count_if_they_are_special() -> None:
    encoder = made(tuple(ROBERTA.by_role().values()), unk_token="<unk>")
    assert roles_of(encoder) == ROBERTA
    tree = json.loads(encoder.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] != "<mask>"]
    with pytest.raises(UserError, match=r"mine has no \[MASK\], nor another token with that role"):
        tokenizer_of_definition(json.dumps(tree), "mine")


BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
LLAMA3 = (BEGIN, END, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
STYLES: dict[str, tuple[tuple[str, ...], tuple[str, str], dict[str, str], dict[str, str | None], Roles]] = {
    "BERT": (
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        ("[CLS]", "[SEP]"),
        {"unk_token": "[UNK]"},
        {},
        Roles(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    ),
    "RoBERTa, whose model has no unknown token": (
        ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        ("<s>", "</s>"),
        {},
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>", "pad_token": "<pad>"},
        ROBERTA,
    ),
    "ModernBERT without [UNK]": (
        ("|||IP_ADDRESS|||", "<|padding|>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[unused0]", "[unused1]"),
        ("[CLS]", "[SEP]"),
        {},
        {},
        Roles(pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    ),
    "ModernBERT": (
        ("|||IP_ADDRESS|||", "<|padding|>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[unused0]"),
        ("[CLS]", "[SEP]"),
        {},
        {"unk_token": "[UNK]", "bos_token": None, "eos_token": None},
        Roles(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    ),
    "Llama 3": (
        LLAMA3,
        (BEGIN, END),
        {},
        {"bos_token": BEGIN, "eos_token": END, "pad_token": LLAMA3[2], "mask_token": LLAMA3[3]},
        Roles(pad=LLAMA3[2], cls=BEGIN, sep=END, mask=LLAMA3[3]),
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_roles_are_read_from_files_of_every_style(style: str, tmp_path: Path) -> None:
    specials, (first, last), model, settings, expected = STYLES[style]
    encoder = made(specials, **model)
    encoder.post_processor = around(first, last, encoder)
    encoder.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.roles == expected
    assert tokenizer.cls_id == specials.index(expected.cls)
    assert not tokenizer.is_maskable[: len(specials)].any()
    assert tokenizer.is_maskable[len(specials) :].all()
    assert (tokenizer.unk_id is None) is (expected.unk is None)


def test_llama_as_it_comes_lacks_tokens_and_says_where_to_name_them(tmp_path: Path) -> None:
    encoder = made(LLAMA3)
    encoder.post_processor = around(BEGIN, END, encoder)
    encoder.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / SETTINGS).write_text(json.dumps({"bos_token": BEGIN, "eos_token": END}))
    with pytest.raises(UserError, match=r"has no \[PAD\], \[MASK\], .*name them in tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_berts_spellings_go_before_the_post_processor() -> None:
    specials = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>")
    encoder = made(specials, processors.RobertaProcessing(("</s>", 5), ("<s>", 4)))
    assert roles_of(encoder) == Roles(pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]")


def test_files_beside_go_before_all_else(tmp_path: Path) -> None:
    encoder = made((*LLAMA, "[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    encoder.save(str(tmp_path / "tokenizer.json"))
    plain = load_tokenizer(tmp_path)
    names = {"pad_token": LLAMA[0], "mask_token": {"content": LLAMA[3], "lstrip": True}, "unk_token": None}
    (tmp_path / SPECIALS).write_text(json.dumps(names | {"pad_token": "[SEP]"}))
    (tmp_path / SETTINGS).write_text(json.dumps(names | {"bos_token": LLAMA[1], "eos_token": "absent"}))
    assert roles_beside(tmp_path) == {"pad": LLAMA[0], "mask": LLAMA[3], "bos": LLAMA[1], "eos": "absent"}
    told = load_tokenizer(tmp_path)
    assert told.roles == Roles(pad=LLAMA[0], cls="[CLS]", sep="[SEP]", mask=LLAMA[3])
    assert told.fingerprint != plain.fingerprint
    assert told.definition == plain.definition


def test_the_ends_of_a_sequence_stand_in_for_those_of_a_text() -> None:
    said = {"bos": LLAMA[1], "eos": LLAMA[2], "pad": LLAMA[0], "mask": LLAMA[3]}
    assert roles_of(made(LLAMA), said) == Roles(pad=LLAMA[0], cls=LLAMA[1], sep=LLAMA[2], mask=LLAMA[3])


def test_roles_that_only_a_file_says_are_saved_beside_the_definition(tmp_path: Path) -> None:
    said = {"pad": LLAMA[0], "cls": LLAMA[1], "sep": LLAMA[2], "mask": LLAMA[3]}
    tokenizer = tokenizer_of_definition(made(LLAMA).to_str(), "mine", said)
    for folder in (tmp_path / "saved", tmp_path / "written"):
        folder.mkdir()
    tokenizer.save(tmp_path / "saved" / "tokenizer.json")
    write_for_others(tmp_path / "written", tokenizer)
    saved, written = (load_tokenizer(tmp_path / name) for name in ("saved", "written"))
    assert saved.roles == written.roles == tokenizer.roles
    assert saved.fingerprint == tokenizer.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path / "written")
    assert [theirs.pad_token, theirs.cls_token, theirs.sep_token, theirs.mask_token] == list(LLAMA)
    assert theirs("abc")["input_ids"] == [1, *tokenizer.encode(["abc"])[0].tolist(), 2]
    plain = tokenizer_of_definition(made(tuple(ROBERTA.by_role().values())).to_str(), "plain", ROBERTA.by_role())
    plain.save(tmp_path / "tokenizer.json")
    assert not (tmp_path / SPECIALS).exists()  # the definition says it


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"pad": "<|end|>"}, r"has <\|end\|> for both pad and sep"),
        ({"mask": "<|begin|>"}, r"has <\|begin\|> for both mask and cls"),
    ],
)
def test_two_roles_are_two_tokens(said: dict[str, str], match: str) -> None:
    every = {"pad": LLAMA[0], "cls": LLAMA[1], "sep": LLAMA[2], "mask": LLAMA[3]}
    with pytest.raises(UserError, match=match):
        roles_of(made(LLAMA), every | said)
    assert roles_of(made(LLAMA), every | {"sep": LLAMA[1]}).sep == LLAMA[1]  # the ends of a text may be one


def test_an_unknown_token_that_the_model_never_gives_is_none() -> None:
    every = {"pad": LLAMA[0], "cls": LLAMA[1], "sep": LLAMA[2], "mask": LLAMA[3], "unk": LLAMA[2]}
    assert roles_of(made(LLAMA), every).unk is None
    with pytest.raises(UserError, match=r"has <\|end\|> for what its vocabulary does not hold"):
        roles_of(made(LLAMA, unk_token=LLAMA[2]), every)


def test_no_text_becomes_a_role_however_it_is_spelled() -> None:
    tokenizer: Tokenizer = tokenizer_of_definition(made(tuple(ROBERTA.by_role().values())).to_str(), "mine")
    roles = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    (ids,) = tokenizer.encode(["a<mask>b <s> </s> <pad>c"])
    assert not roles & set(ids.tolist())
    assert [tokenizer.token(number) for number in ids] == list("aabadc")  # what the vocabulary has of them


@pytest.mark.parametrize("lstrip", [False, True])
def test_masks_are_written_as_berts_or_as_the_tokenizers_own(lstrip: bool) -> None:
    tree = json.loads(made(tuple(ROBERTA.by_role().values())).to_str())
    tree["pre_tokenizer"] = None
    tree["model"]["vocab"] |= {" ": 15}
    for token in tree["added_tokens"]:
        token["lstrip"] = lstrip and token["content"] == "<mask>"
    tokenizer = tokenizer_of_definition(json.dumps(tree), "mine")
    for text in ("a [MASK] b<mask>", "a <mask> b[MASK]"):
        ids = tokenizer.encode_with_masks(text)
        before = "a" if lstrip else "a "
        expected = ["<s>", *before, "<mask>", " ", "b", "<mask>", "</s>"]
        assert [tokenizer.token(number) for number in ids] == expected


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_file_beside_a_definition_is_named(content: bytes, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / SPECIALS).write_bytes(content)
    with pytest.raises(UserError, match=r"special_tokens_map\.json.*restore it, or remove it"):
        load_tokenizer(tmp_path)


def test_values_that_name_no_token_say_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for value in (None, 3, [], {}, {"content": 3}, "absent"):
        (tmp_path / SETTINGS).write_text(json.dumps({"mask_token": value}))
        again = load_tokenizer(tmp_path)
        assert (again.roles, again.fingerprint) == (tokenizer.roles, tokenizer.fingerprint)
    assert read_object(tmp_path / "absent") == {}
