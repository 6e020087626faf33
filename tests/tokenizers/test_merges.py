"""`vocab.json` with `merges.txt`: as Hugging Face's `RobertaTokenizer` reads them, or refused by their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from transformers import AutoTokenizer, RobertaTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.byte_bpe import train_byte_bpe
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.merges import MERGES, SPECIAL_TOKENS, VOCABULARY
from maskloom.tokenizers.roles import SETTINGS, SPECIALS
from tests.conftest import WORDS

from .test_byte_bpe import TEXTS, texts

SIZE = 400
ADDED = {"content": "[PATIENT]", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


@pytest.fixture(scope="module")
def parts() -> tuple[dict[str, int], list[list[str]]]:
    """The tokens and merges of a small tokenizer; the mask has the last id, as in RoBERTa's."""
    tree = json.loads(train_byte_bpe([*TEXTS, " ".join(WORDS)], SIZE, None))
    found = tree["model"]["vocab"]
    tokens = [*SPECIAL_TOKENS[:4], *sorted(found, key=found.get)[5:], "<mask>"]
    assert len(tokens) == SIZE
    return {token: number for number, token in enumerate(tokens)}, tree["model"]["merges"]


def write(
    folder: Path, vocabulary: dict, merges: list, end: str = "\n", head: str = "#version: 0.2\n", **said: object
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCABULARY).write_text(json.dumps(vocabulary))
    (folder / MERGES).write_bytes(
        (head + "".join(" ".join(pair) + "\n" for pair in merges)).replace("\n", end).encode()
    )
    if said:
        (folder / SETTINGS).write_text(json.dumps(said))
    return folder


SAID: dict[str, dict] = {
    "nothing said": {},
    "a blank in front": {"add_prefix_space": True},
    "its class": {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "trim_offsets": False},
    "another class of its pipeline": {
        "tokenizer_class": "LongformerTokenizerFast",
        "mask_token": ADDED | {"__type": "AddedToken", "content": "<mask>"},
    },
    "an added token": {
        "tokenizer_class": "RobertaTokenizer",
        "added_tokens_decoder": {str(SIZE): ADDED | {"special": True}},
    },
}


@pytest.fixture(scope="module")
def pairs(parts: tuple, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, RobertaTokenizer]]:
    found = {}
    for name, said in SAID.items():
        folder = write(tmp_path_factory.mktemp("merges"), *parts, **said)
        found[name] = load_tokenizer(folder), RobertaTokenizer.from_pretrained(folder)
    return found


@pytest.mark.parametrize("name", SAID)
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_the_files_give_hugging_faces_ids(name: str, pairs: dict, text: str) -> None:
    ours, theirs = pairs[name]
    expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # literal ones stay text
    assert ours.encode([text])[0].tolist() == expected


@pytest.mark.parametrize("name", SAID)
def test_the_files_have_hugging_faces_numbers(name: str, pairs: dict) -> None:
    ours, theirs = pairs[name]
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id")
    assert theirs.get_vocab() == ours.vocabulary
    assert (ours.kind, ours.knows_words) == ("byte-bpe", True)
    for text in ("the river", "", "é\n"):
        assert ours._whole.encode(text).ids == theirs(text)["input_ids"]
        assert ours._whole.encode(text, "Stone").ids == theirs(text, "Stone")["input_ids"]
        assert ours._whole.encode(text).offsets == theirs(text, return_offsets_mapping=True)["offset_mapping"]


def test_an_added_token_is_one_token_and_never_masked(pairs: dict) -> None:
    ours, theirs = pairs["an added token"]
    (ids,) = ours.encode(["the [PATIENT] learns"])
    assert ids.tolist() == theirs("the [PATIENT] learns", add_special_tokens=False)["input_ids"]
    assert SIZE in ids
    assert not ours.is_maskable[SIZE]


def test_the_mask_takes_the_blank_before_it_unless_the_files_say_otherwise(parts: tuple, tmp_path: Path) -> None:
    said = {"content": "<mask>", "special": True}
    number = str(parts[0]["<mask>"])
    for case, (more, takes) in enumerate(
        [
            ({}, True),
            ({"mask_token": said}, True),
            ({"mask_token": said | {"lstrip": False}}, False),
            ({"added_tokens_decoder": {number: said | {"lstrip": False}}, "mask_token": "<mask>"}, False),
            ({"added_tokens_decoder": {number: said | {"lstrip": True}}, "mask_token": said | {"lstrip": False}}, True),
        ]
    ):
        tokenizer = load_tokenizer(write(tmp_path / str(case), *parts, **more))
        the, blank = (tokenizer.encode([text])[0].tolist() for text in ("the", " "))
        middle = [*the, *([] if takes else blank), tokenizer.mask_id]
        assert tokenizer.encode_with_masks("the <mask>") == [tokenizer.cls_id, *middle, tokenizer.sep_id]


def test_the_same_files_are_the_same_tokenizer_however_their_lines_end(parts: tuple, tmp_path: Path) -> None:
    write(tmp_path / "0", *parts)
    write(tmp_path / "1", *parts, end="\r\n")
    write(tmp_path / "2", *parts, head="")
    write(tmp_path / "3", *parts, add_prefix_space=False, model_max_length=512)
    merges = (tmp_path / "0" / MERGES).read_bytes()
    (write(tmp_path / "4", *parts) / MERGES).write_bytes(merges.rstrip(b"\n"))
    assert len({load_tokenizer(tmp_path / str(case)).fingerprint for case in range(5)}) == 1
    assert load_tokenizer(tmp_path / "0" / VOCABULARY).kind == "byte-bpe"


def test_saved_it_is_read_as_the_same_tokenizer(parts: tuple, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, *parts))
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("absent", SPECIAL_TOKENS)
def test_a_vocabulary_without_a_role_is_refused_by_its_name(absent: str, parts: tuple, tmp_path: Path) -> None:
    vocabulary = {token: number for token, number in parts[0].items() if token != absent}
    with pytest.raises(UserError, match=rf"vocab\.json has no {absent}: .*has to come as tokenizer\.json"):
        load_tokenizer(write(tmp_path, vocabulary, parts[1]))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"add_prefix_space": "no"}, "add_prefix_space is 'no', not true or false"),
        ({"trim_offsets": None}, "trim_offsets is None, not"),
        ({"mask_token": "[MASK]"}, r"mask_token '\[MASK\]': of a vocab\.json it has to be <mask>"),
        ({"bos_token": {"content": "<|endoftext|>"}}, "bos_token '<|endoftext|>'"),
        (
            {"tokenizer_class": "Qwen2Tokenizer"},
            "tokenizer_class 'Qwen2Tokenizer', whose vocab.json cuts a text otherwise",
        ),
        ({"tokenizer_class": 3}, "tokenizer_class 3"),
        ({"added_tokens_decoder": {"5": 3}}, "added_tokens_decoder is damaged"),
        ({"added_tokens_decoder": ["x"]}, "added_tokens_decoder is damaged"),
        ({"added_tokens_decoder": {"9999": ADDED}}, r"gives '\[PATIENT\]' id 9999, and it would be"),
        ({"additional_special_tokens": ["[PATIENT]"]}, r"adds '\[PATIENT\]' to its vocab\.json without saying how"),
        ({"extra_special_tokens": 3}, "extra_special_tokens is 3, not a list"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(said: dict, match: str, parts: tuple, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        load_tokenizer(write(tmp_path, *parts, **said))


def test_files_of_another_models_tokenizer_are_refused(parts: tuple, tmp_path: Path) -> None:
    write(tmp_path, *parts)
    for model, is_known in (("roberta", True), ("longformer", True), ("clip", False), ("xlm", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
        if is_known:
            load_tokenizer(tmp_path)
        else:
            with pytest.raises(UserError, match=rf"config\.json has model_type '{model}', whose vocab\.json"):
                load_tokenizer(tmp_path)


def test_roles_of_the_other_file_count_too(parts: tuple, tmp_path: Path) -> None:
    write(tmp_path, *parts)
    (tmp_path / SPECIALS).write_text('{"cls_token": "[CLS]"}')
    with pytest.raises(UserError, match=rf"{SPECIALS} has cls_token '\[CLS\]'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is not a vocab.json: "),
        (b"\xff{}", "is not a vocab.json: "),
        (b"[" * 100_000, "is not a vocab.json: "),
        (b"[]", "a JSON object with an id for each token is needed"),
        (b"{}", "a JSON object with an id for each token is needed"),
        (b'{"a": "1"}', "gives 'a' the id '1': it has to be a whole number from 0"),
        (b'{"a": -1}', "gives 'a' the id -1"),
        (b'{"a": true}', "gives 'a' the id True"),
        (b'{"a": 4294967296}', "gives 'a' the id 4294967296"),
    ],
)
def test_a_damaged_vocabulary_is_refused(content: bytes, match: str, parts: tuple, tmp_path: Path) -> None:
    write(tmp_path, *parts)
    (tmp_path / VOCABULARY).write_bytes(content)
    with pytest.raises(UserError, match=match):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"vocab\.json needs merges\.txt beside it, and there is none"),
        (b"\xff\n", r"merges\.txt is not a merges\.txt"),
        (b"#version: 0.2\na\n", r"merges\.txt, line 2: 'a' is not a pair of tokens"),
        (b"a b c\n", "line 1: 'a b c' is not a pair"),
        (b"a  b\n", "line 1: 'a  b' is not a pair"),
        ("Ġ t\n\nh e\n".encode(), "line 2: '' is not a pair"),
        (b"t nope\n", r"line 1: vocab\.json has no 'nope': the two have to be of one tokenizer"),
        ("t \u0141\n".encode(), "line 1: vocab.json has no 't\u0141'"),
        (b"", r"merges\.txt has no pair of tokens"),
        (b"#version: 0.2\rt h\rth e\r", r"merges\.txt has no pair of tokens"),
    ],
)
def test_damaged_merges_are_refused_by_their_line(
    content: bytes | None, match: str, parts: tuple, tmp_path: Path
) -> None:
    write(tmp_path, *parts)
    if content is None:
        (tmp_path / MERGES).unlink()
    else:
        (tmp_path / MERGES).write_bytes(content)
    with pytest.raises(UserError, match=match):
        load_tokenizer(tmp_path)


def test_transformers_without_a_class_reads_the_same(parts: tuple, tmp_path: Path) -> None:
    """Found by the model of the folder, as in a model that was published."""
    write(tmp_path, *parts)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in TEXTS[:3]:
        assert ours.encode([text])[0].tolist() == theirs(text, add_special_tokens=False)["input_ids"]
