"""WordPiece: `vocab.txt` as Hugging Face's `BertTokenizer` reads it, words by `##`, and stretches of text looked up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from transformers import BertTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.roles import SETTINGS
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from tests.conftest import WORDS

from .vocabularies import LETTERS, TOKENS, write

texts = st.lists(
    st.sampled_from(
        [*WORDS, "River", "RIVERS", "é", "É", "中文", "it's", "##er", "\x85", "\u2028", "\x0c", "\n", " ", "[unused1]"]
    )
    | st.text(st.sampled_from(LETTERS), max_size=6)
    | st.characters(exclude_categories=["Cs"]),
    max_size=20,
).map(" ".join)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, BertTokenizer]]:
    """Ours and Hugging Face's of one folder, for each way in which its files may be."""
    strange = [
        *TOKENS,
        "form\x0cfeed",
        "next\x85line",
        "line\u2028break",
        "with blank ",
        "\u3000",
        "tie\x1c",
        "\ttab",
        "the",
        "River",
    ]
    added = {
        "content": "[PATIENT]",
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
    decoder = {
        str(len(TOKENS)): added,
        **{str(number): {"content": token, "special": True} for number, token in enumerate(SPECIAL_TOKENS)},
    }
    folders = {
        "without settings": {"tokens": TOKENS},
        "cased": {"tokens": TOKENS, "do_lower_case": False},
        "uncased": {"tokens": TOKENS, "do_lower_case": True, "tokenizer_class": "BertTokenizer"},
        "accents kept": {"tokens": TOKENS, "do_lower_case": True, "strip_accents": False},
        "cased, accents stripped": {"tokens": TOKENS, "do_lower_case": False, "strip_accents": True},
        "Chinese words": {"tokens": TOKENS, "tokenize_chinese_chars": False},
        "roles named": {
            "tokens": TOKENS,
            "mask_token": "[MASK]",
            "unk_token": {"content": "[UNK]", "__type": "AddedToken"},
        },
        "an added token": {"tokens": TOKENS, "added_tokens_decoder": decoder, "do_lower_case": False},
        "strange lines": {"tokens": strange},
        "CRLF": {"tokens": "\r\n".join(TOKENS).encode()},
        "CR inside": {"tokens": [*TOKENS, "x\ry", "\rz", "w\r"]},
        "no last line end": {"tokens": "\n".join(TOKENS).encode()},
        "blank lines": {"tokens": "\n".join([*TOKENS[:30], "", *TOKENS[30:], "", ""]).encode()},
    }
    found = {}
    for name, content in folders.items():
        folder = write(tmp_path_factory.mktemp("vocabulary"), **content)
        found[name] = load_tokenizer(folder), BertTokenizer.from_pretrained(folder)
    return found


NAMES = [
    *(
        "without settings",
        "cased",
        "uncased",
        "accents kept",
        "cased, accents stripped",
        "Chinese words",
        "roles named",
    ),
    *("an added token", "strange lines", "CRLF", "CR inside", "no last line end", "blank lines"),
]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_a_vocabulary_gives_hugging_faces_ids(
    name: str, pairs: dict[str, tuple[Tokenizer, BertTokenizer]], text: str
) -> None:
    ours, theirs = pairs[name]
    assert ours.encode([text])[0].tolist() == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_has_hugging_faces_numbers(name: str, pairs: dict[str, tuple[Tokenizer, BertTokenizer]]) -> None:
    ours, theirs = pairs[name]
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id")
    assert {token: number for token, number in theirs.get_vocab().items() if token} == ours.vocabulary
    assert ours.oldest_version == (2 if name == "an added token" else 1)
    assert ours.knows_words


def test_an_added_token_is_one_token_and_never_masked(pairs: dict[str, tuple[Tokenizer, BertTokenizer]]) -> None:
    ours, _ = pairs["an added token"]
    ids = ours.encode(["the [PATIENT] learns"])[0].tolist()
    assert ids[1] == len(TOKENS)
    assert not ours.is_maskable[ids[1]]


def test_the_same_vocabulary_is_the_same_tokenizer_however_its_lines_end(tmp_path: Path) -> None:
    contents = ["\n".join(TOKENS), "\n".join(TOKENS) + "\n", "\r\n".join(TOKENS), "\ufeff" + "\n".join(TOKENS)]
    found = {load_tokenizer(write(tmp_path / str(n), text.encode())).fingerprint for n, text in enumerate(contents)}
    assert len(found) == 1
    assert load_tokenizer(tmp_path / "0" / "vocab.txt").fingerprint in found


def test_lines_without_a_token_and_repeated_lines_leave_ids_that_are_never_used(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, [*SPECIAL_TOKENS, "river", "", "tree", "river"]))
    assert tokenizer.vocabulary["river"] == 8  # the last line counts
    assert tokenizer.vocab_size == 9
    assert tokenizer.random_ids.tolist() == [7, 8]
    assert [tokenizer.token(number) for number in (5, 6)] == ["", ""]


@pytest.mark.parametrize("absent", SPECIAL_TOKENS)
def test_a_vocabulary_without_a_role_is_refused_by_its_name(absent: str, tmp_path: Path) -> None:
    folder = write(tmp_path, [token for token in TOKENS if token != absent])
    with pytest.raises(UserError, match=rf"vocab\.txt has no \{absent}:"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"do_lower_case": "no"}, "do_lower_case is 'no', not true or false"),
        ({"strip_accents": 1}, "strip_accents is 1, not"),
        ({"tokenize_chinese_chars": None}, "tokenize_chinese_chars is None, not"),
        ({"mask_token": "<mask>"}, r"mask_token '<mask>': of a vocab\.txt it has to be \[MASK\]"),
        ({"cls_token": {"content": "<s>"}}, "cls_token '<s>'"),
        ({"added_tokens_decoder": {"5": 3}}, "added_tokens_decoder is damaged"),
        ({"added_tokens_decoder": ["x"]}, "added_tokens_decoder is damaged"),
        ({"added_tokens_decoder": {"x": {"content": "[P]"}}}, "added_tokens_decoder is damaged"),
        ({"added_tokens_decoder": {"5": {"content": "river"}}}, "gives 'river' another id than vocab.txt"),
        ({"added_tokens_decoder": {"99999999": {"content": "[P]"}}}, r"gives '\[P\]' id 99999999, and it would be"),
        ({"additional_special_tokens": ["[PATIENT]"]}, r"adds '\[PATIENT\]' to its vocab\.txt without saying how"),
        ({"extra_special_tokens": {"a": "[PATIENT]"}}, r"adds '\[PATIENT\]'"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(said: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        load_tokenizer(write(tmp_path, TOKENS, **said))


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff", b"[" * 100_000])
def test_damaged_settings_are_refused_by_their_file(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, TOKENS)
    (tmp_path / SETTINGS).write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_tokens_in_a_file_of_their_own_are_not_lost_in_silence(tmp_path: Path) -> None:
    write(tmp_path, TOKENS)
    (tmp_path / "added_tokens.json").write_text('{"[PATIENT]": 999}')
    with pytest.raises(UserError, match=r"adds '\[PATIENT\]'.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80"])
def test_a_vocabulary_that_is_not_text_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab\.txt is not a vocab\.txt"):
        load_tokenizer(write(tmp_path, content))


def test_pieces_that_continue_a_word_are_known(tokenizer: Tokenizer) -> None:
    every = np.arange(tokenizer.vocab_size, dtype=np.int32)
    begins = tokenizer.starts_word(every[None], np.zeros((1, len(every)), bool))[0]
    for number in every.tolist():
        assert begins[number] != tokenizer.token(number).startswith("##")
    assert not begins.all()


def variant(tokenizer: Tokenizer, **normalizer: object) -> Tokenizer:
    tree = json.loads(tokenizer.definition)
    tree["normalizer"].update(normalizer)
    return tokenizer_of_definition(json.dumps(tree), "a variant")


NASTY = (
    "\x00\x1c\x1f\x85\xa0\xad\u0300\u0301\u0316\u03a3\u0130\u1680\u180e\u200b\u200d\u2028\u3000\u4e2d\uac00\ufeff\ufffd"
)


nasty_texts = st.lists(
    st.sampled_from([*NASTY, " ", "\n", "\t", "\r", "\r\n", "[MASK]", "[SEP]", "##a", "ΑΣ", "river", "Stone."])
    | st.characters(exclude_categories=["Cs"]),
    max_size=25,
).map("".join)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lowercase": False, "strip_accents": False},
        {"clean_text": False, "handle_chinese_chars": False, "lowercase": False},
    ],
)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(nasty_texts, max_size=5))
def test_looking_stretches_up_gives_what_encoding_the_whole_text_gives(
    tokenizer: Tokenizer, changes: dict[str, object], texts: list[str]
) -> None:
    """Also for every other kind of white space, for controls, combining marks and literal special tokens."""
    tested = variant(tokenizer, **changes)
    assert tested._stretches
    whole = [encoding.ids for encoding in tested._encoder.encode_batch(texts, add_special_tokens=False)]
    for _ in range(2):  # unknown, and known
        assert [ids.tolist() for ids in tested.encode(texts)] == whole


def test_a_token_that_can_hold_white_space_is_found_across_it(tokenizer: Tokenizer) -> None:
    encoder = HFTokenizer.from_str(tokenizer.definition)
    encoder.add_tokens(["river stone"])
    tested = tokenizer_of_definition(encoder.to_str(), "with a token of two words")
    assert tested._stretches is None
    (ids,) = tested.encode(["the river stone"])
    assert ids.tolist()[-1] == encoder.token_to_id("river stone")
