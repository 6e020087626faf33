"""vocab.json, merges.txt and what stands beside them, from outside: read, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.tokenizers.byte_bpe import BYTE_OF
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.merges import MERGES, SPECIAL_TOKENS, VOCABULARY
from maskloom.tokenizers.roles import LARGEST_BYTES, SETTINGS
from maskloom.tokenizers.writing import write_for_others
from tests.fuzz.harness import fuzz, guarded

TEXTS = ["the river <mask> it's", "a" * 200 + "!", "", " \u0301中\x00é,b", "<s>" * 3]
PAIRS = ["t h", "th e", "Ġ the", "r i", "# #", "ä ¸"]
VOCABULARY_OF_PAIRS = {
    token: number
    for number, token in enumerate([*SPECIAL_TOKENS, *BYTE_OF, *(pair.replace(" ", "") for pair in PAIRS)])
}
LINES = "#version: 0.2\n" + "".join(pair + "\n" for pair in PAIRS)
WORDS = [
    *(
        b"\n",
        b" ",
        b"t h\n",
        b"th e",
        b"#version",
        b"<mask>",
        b'"<mask>":4',
        b"4294967295",
        b"-1",
        b"1e3",
        b"true",
        b"null",
    ),
    *(b"{}", b"[]", b"[" * 200, b'"\\ud800"', "Ġ".encode(), "ł".encode(), b"RobertaTokenizer", b"add_prefix_space"),
    *(b"added_tokens_decoder", b"mask_token", b"lstrip", b'"special":true', b"\r\n", b"\xef\xbb\xbf"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / VOCABULARY).write_text(json.dumps(VOCABULARY_OF_PAIRS))
    (tmp_path / MERGES).write_text(LINES)
    use(tmp_path)
    return tmp_path


def use(folder: Path) -> None:
    """What a command does with a tokenizer: load, encode, name, write it for others."""
    tokenizer = load_tokenizer(folder)
    for ids in tokenizer.encode(TEXTS):
        assert all(0 <= number < tokenizer.vocab_size for number in ids.tolist())
        assert not {tokenizer.mask_id, tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id} & set(ids.tolist())
    assert tokenizer.token(tokenizer.mask_id) == "<mask>"
    write_for_others(folder / "out", tokenizer)


@pytest.mark.parametrize("name", [VOCABULARY, MERGES])
def test_both_files(name: str, folder: Path) -> None:
    seed = (folder / name).read_bytes()

    def read_one(data: bytes) -> None:
        (folder / name).write_bytes(data)
        use(folder)

    fuzz(read_one, [seed, seed.replace(b"\n", b"\r\n")], WORDS, folder=folder)


def test_settings_beside_them(folder: Path) -> None:
    added = {"content": "[PATIENT]", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    mask = {"content": "<mask>", "lstrip": True, "special": True}
    seeds = [
        {"add_prefix_space": True, "trim_offsets": False, "tokenizer_class": "RobertaTokenizer", "bos_token": "<s>"},
        {"mask_token": mask, "added_tokens_decoder": {str(len(VOCABULARY_OF_PAIRS)): added, "4": mask}},
        {"additional_special_tokens": [], "extra_special_tokens": {}, "model_max_length": 512},
    ]

    def read_settings(data: bytes) -> None:
        (folder / SETTINGS).write_bytes(data)
        use(folder)

    fuzz(read_settings, [json.dumps(seed).encode() for seed in seeds], WORDS, folder=folder)


@pytest.mark.parametrize("name", [VOCABULARY, MERGES, SETTINGS, "config.json", "added_tokens.json"])
def test_a_file_without_end_is_not_read(name: str, folder: Path) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with guarded(memory_bytes=64 << 20), pytest.raises(UserError, match="more than 256 MiB"):
        load_tokenizer(folder)
