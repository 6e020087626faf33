"""Unigram behind Metaspace: trained as XLM-R's, and read as others write it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers.base import MAX_ENCODE_CHARS, Tokenizer
from maskloom.tokenizers.loading import kind_of, tokenizer_of_definition
from maskloom.tokenizers.training import train_tokenizer
from maskloom.tokenizers.unigram import COVERAGE, SPECIAL_TOKENS, UNIGRAM, rare_characters

from .character_tables import TABLE, table_of


@pytest.fixture(scope="module")
def trained(documents: list[str]) -> Tokenizer:
    return train_tokenizer([*documents, *["Ａ quiet ﬁsh"] * 200], 400, kind="unigram", multiple=1)


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token(number) for number in tokenizer.encode([text])[0].tolist()]


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    (ids,) = tokenizer.encode([text])
    begins = tokenizer.starts_word(ids[None], np.zeros((1, len(ids)), bool))[0]
    return ["".join(map(tokenizer.token, part)) for part in np.split(ids, np.flatnonzero(begins)[1:])]


def test_a_trained_one_has_the_special_tokens_of_xlm_r(trained: Tokenizer) -> None:
    assert [trained.token(number) for number in range(5)] == list(SPECIAL_TOKENS)
    assert (trained.cls_id, trained.pad_id, trained.sep_id, trained.unk_id, trained.mask_id) == (0, 1, 2, 3, 4)
    tree = json.loads(trained.definition)
    assert tree["model"]["unk_id"] == 3
    assert [token["lstrip"] for token in tree["added_tokens"]] == [False] * 4 + [True]
    assert not any(token["normalized"] for token in tree["added_tokens"])
    theirs = HFTokenizer.from_str(trained.definition)
    assert theirs.encode("the", "river").tokens == ["<s>", "▁the", "</s>", "</s>", "▁river", "</s>"]
    assert theirs.encode("the <mask> river").tokens == ["<s>", "▁the", " <mask>", "▁river", "</s>"]


def test_text_is_normalised_as_sentencepiece_does(trained: Tokenizer) -> None:
    plain = pieces_of(trained, "the ﬁsh A")
    assert plain == pieces_of(trained, " the\n\tfish\u3000 \x07Ａ ")
    assert "".join(plain) == "▁the▁fish▁A"
    assert trained.decode(trained.encode(["the  ﬁsh\nA"])[0]) == "the fish A"


@pytest.mark.parametrize("lowercase", [None, False, True])
def test_case_is_kept_unless_one_says_otherwise(lowercase: bool | None) -> None:
    made = train_tokenizer(["River RIVER river"] * 10, 100, lowercase, kind="unigram")
    upper, lower = (ids.tolist() for ids in made.encode(["RIVER", "river"]))
    assert (upper == lower) is bool(lowercase)


def test_text_that_spells_special_tokens_teaches_none() -> None:
    texts = ["a <mask> b<mask>c the <s> [unused0] [unused1]"] * 200
    made = train_tokenizer(texts, 200, kind="unigram", spare=2, multiple=1)
    vocabulary = [token for token, _ in json.loads(made.definition)["model"]["vocab"]]
    assert len(set(vocabulary)) == len(vocabulary) == made.vocab_size
    assert [token for token in vocabulary if token.startswith("[unused")] == ["[unused0]", "[unused1]"]
    (ids,) = made.encode(texts[:1])
    assert set(ids.tolist()).isdisjoint({*range(5), made.vocab_size - 1, made.vocab_size - 2})


def test_a_vocabulary_too_small_for_the_characters_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"no Unigram vocabulary of --vocab-size 20 can be made of this text: .*not large enough"
    ):
        train_tokenizer(["abcdefghijklmnopqrstuvwxyz"], 20, kind="unigram")
    with pytest.raises(UserError, match="--vocab-size 5 leaves no id beside the 5 special tokens"):
        train_tokenizer(["a"], 5, kind="unigram")


def test_the_rarest_characters_get_no_token() -> None:
    """By hand: 10,000 characters, of which 1 - 0.9995 are 5."""
    common = "ab" * 4998
    assert rare_characters([common + "zzéé"]) == ["z", "é"]
    assert rare_characters([common + "xyyé"[:3], "é"]) == ["x", "é", "y"]
    assert rare_characters([common + "xxxx", "é" * 4]) == ["x"]
    assert rare_characters(["ab", "", "é"]) == rare_characters([]) == []
    made = train_tokenizer(["the river reads"] * 1000 + ["中"], 100, kind="unigram")
    assert pieces_of(made, "the中")[-1] == "<unk>"
    assert pytest.approx(5) == (1 - COVERAGE) * 10_000


@pytest.mark.parametrize(
    ("model", "pre_tokenizer", "expected"),
    [
        ("Unigram", {"type": "Metaspace"}, True),
        ("Unigram", {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace"}]}, True),
        ("Unigram", {"type": "WhitespaceSplit"}, False),
        ("Unigram", None, False),
        ("BPE", {"type": "Metaspace"}, False),
    ],
)
def test_the_kind_is_told_by_the_model_and_the_blanks(model: str, pre_tokenizer: object, expected: bool) -> None:
    tree = {"model": {"type": model}, "pre_tokenizer": pre_tokenizer}
    assert UNIGRAM.is_of_kind(tree) is expected
    assert (kind_of(tree) is UNIGRAM) is expected


def made_of(
    pieces: Sequence[str],
    byte_fallback: bool = False,
    added: Sequence[str] = SPECIAL_TOKENS,
    normalizer: object = None,
    **metaspace: object,
) -> Tokenizer:
    """A tokenizer of these pieces and XLM-R's special tokens, the mask last as in its files."""
    vocabulary = [*dict.fromkeys([*SPECIAL_TOKENS[:-1], *pieces]), SPECIAL_TOKENS[-1]]
    ends = {token: {"id": token, "ids": [vocabulary.index(token)], "tokens": [token]} for token in ("<s>", "</s>")}
    text = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tree = {
        "version": "1.0",
        "added_tokens": [
            {"id": vocabulary.index(token), "content": token, **flags, "lstrip": token == "<mask>"}
            for token in sorted(added, key=vocabulary.index)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        | metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*text, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": ends,
        },
        "decoder": None,
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            # Special tokens have the best score of all, as in files of SentencePiece.
            "vocab": [[piece, 0.0 if piece in SPECIAL_TOKENS else -10.0 / len(piece)] for piece in vocabulary],
            "byte_fallback": byte_fallback,
        },
    }
    return tokenizer_of_definition(json.dumps(tree), "made")


def test_words_by_hand() -> None:
    made = made_of(["▁the", "▁", "riv", "er", "s", "'", "▁do", "n't", "中", "文", "7", "(", "▁("])
    assert words_of(made, "the rivers don't(7)") == ["▁the", "▁rivers", "▁don't", "(", "7", "<unk>"]
    assert words_of(made, "the 中文 7") == ["▁the", "▁中", "文", "▁7"]
    assert words_of(made, "the中文 (s") == ["▁the", "中", "文", "▁(", "s"]


def test_another_sign_for_blanks_counts_as_well() -> None:
    made = made_of(["_the", "_ri", "ver", "s"], replacement="_")
    assert words_of(made, "the rivers") == ["_the", "_rivers"]


def test_bytes_of_a_character_are_one_word() -> None:
    made = made_of(["▁a", "a", "(", *(f"<0x{byte:02X}>" for byte in range(256))], byte_fallback=True)
    assert words_of(made, "aé中中(a") == ["▁a<0xC3><0xA9>", *["<0xE4><0xB8><0xAD>"] * 2, "(", "a"]


LETTERS = [*"abcdkmnopsu<>/▁", "▁a", "▁b", "▁<"]
SPELLED = [
    f"{before}{token}{after}" for token in SPECIAL_TOKENS for before in ("", " ", "a") for after in ("", " ", "b")
]


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(SPELLED) | st.text("abc <>/s", max_size=5), max_size=8))
def test_text_that_spells_a_special_token_stays_text(parts: list[str]) -> None:
    """Although the token is a piece of the vocabulary, with the best score. All other ids are those of Hugging Face."""
    made = made_of(LETTERS)
    text = "".join(parts)
    (ids,) = made.encode([text])
    specials = {made.cls_id, made.pad_id, made.sep_id, made.unk_id, made.mask_id}
    assert not specials & set(ids.tolist())
    assert "".join(map(made.token, ids.tolist())).replace("▁", " ").strip() == text.strip()
    if not any(token in text for token in SPECIAL_TOKENS):
        assert ids.tolist() == HFTokenizer.from_str(made.definition).encode(text, add_special_tokens=False).ids


def test_the_last_token_of_a_vocabulary_masks_as_in_xlm_r() -> None:
    made = made_of(LETTERS)
    assert (made.cls_id, made.pad_id, made.sep_id, made.unk_id) == (0, 1, 2, 3)
    assert made.mask_id == made.vocab_size - 1
    assert made.roles.by_role() == {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    assert [made.token(number) for number in made.encode_with_masks("a [MASK] b<mask>")] == [
        *("<s>", "▁a", "<mask>", "▁b", "<mask>", "</s>")
    ]


@pytest.mark.parametrize("lists_them", [False, True])
def test_camemberts_tokens_that_are_not_used_are_none(lists_them: bool) -> None:
    """Its vocabulary begins with tokens of fairseq that nothing becomes, and has the real ones behind them."""
    unused = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")
    order = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    tree = json.loads(made_of(LETTERS).definition)
    model = [piece for piece in tree["model"]["vocab"] if piece[0] not in order]
    tree["model"]["vocab"] = [[token, -100.0 if token == "<unk>NOTUSED" else 0.0] for token in order] + model
    for token in tree["added_tokens"]:
        token["id"] = [piece for piece, _ in tree["model"]["vocab"]].index(token["content"])
    for token in ("<s>", "</s>"):
        tree["post_processor"]["special_tokens"][token]["ids"] = [order.index(token)]
    if lists_them:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tree["added_tokens"] += [
            {"id": order.index(token), "content": token, **flags, "special": True} for token in unused
        ]
        tree["added_tokens"].sort(key=lambda token: token["id"])
    made = tokenizer_of_definition(json.dumps(tree), "camembert")
    assert (made.pad_id, made.unk_id, made.cls_id, made.sep_id) == (1, 3, 5, 6)
    assert made.mask_id == made.vocab_size - 1
    assert not made.is_maskable[:7].any()
    assert made.is_maskable[7:-1].all()
    assert made.random_ids.tolist() == list(range(7, made.vocab_size - 1))


def test_long_texts_are_encoded_in_short_parts(trained: Tokenizer, documents: list[str]) -> None:
    """So that the encoder's memory does not grow with the longest text of a corpus."""
    text = "\n".join(["The quiet river, and — 2,026 times — a stone."] * 6000)
    assert len(text) > 4 * MAX_ENCODE_CHARS
    parts = trained._parts(text)
    assert "".join(parts) == text
    assert max(map(len, parts)) < MAX_ENCODE_CHARS + 100
    whole = HFTokenizer.from_str(trained.definition).encode(text, add_special_tokens=False).ids
    assert trained.encode([text])[0].tolist() == whole


def table_in_base64() -> str:
    return base64.b64encode(TABLE).decode()


@pytest.mark.parametrize(
    ("steps", "is_cut"),
    [
        ([{"type": "Precompiled", "precompiled_charsmap": table_in_base64()}], True),
        ([{"type": "Precompiled", "precompiled_charsmap": table_in_base64()}] * 2, False),
        ([{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}], True),
        ([{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": ""}], False),
        ([{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "a b"}, "content": "▁"}], False),
        ([{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": "a b"}, "content": "c"}], False),
        ([{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": "``"}, "content": "'"}], True),
        ([{"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": True}], True),
        ([{"type": "NFKC"}, {"type": "Prepend", "prepend": "x"}], False),
        ([{"type": "ByteLevel"}], False),
    ],
)
def test_texts_are_cut_behind_normalizers_that_look_at_no_blank(steps: list[dict[str, object]], is_cut: bool) -> None:
    made = made_of(LETTERS, normalizer={"type": "Sequence", "normalizers": steps})
    assert (made._cut_points is not None) is is_cut


def test_what_strips_the_front_of_a_part_has_to_be_put_back() -> None:
    strip = {
        "type": "Sequence",
        "normalizers": [{"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": False}],
    }
    assert made_of(LETTERS, normalizer=strip)._cut_points is not None
    assert made_of(LETTERS, normalizer=strip, prepend_scheme="first")._cut_points is None


def test_letters_that_a_table_drops_are_not_cut_beside() -> None:
    table = base64.b64encode(table_of({"a": "", "b": " "})).decode()
    made = made_of(LETTERS, normalizer={"type": "Precompiled", "precompiled_charsmap": table})
    assert made._cut_points is not None
    assert [found.start() for found in made._cut_points.finditer("cc cc ca cc cb cc bc cc")] == [2, 5, 11]
