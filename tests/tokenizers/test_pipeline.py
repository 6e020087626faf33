"""Every kind of tokenizer gives the ids that Hugging Face gives for its file, but for literal roles, which stay text."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers import base as module
from maskloom.tokenizers import pipeline
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from tests.conftest import WORDS, same_tokenizer

from .character_tables import TABLE, table_of

TEXTS = [
    " ".join(WORDS),
    "the patient, [PATIENT] learns; unpatient (MASK) mask of 中文 a-b it's",
    "ÀÉ à é  two  blanks\n\tx",
] * 4
OWN = ["[PATIENT]", "<drug>", "xyz"]
LITERALS = [
    f"{before}{role}{after}" for role in SPECIAL_TOKENS for before in ("", " ", "a") for after in ("", " ", "a", ",")
]
ATOMS = [
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\xa0",
        "\u3000",
        "\x85",
        "\u2028",
        "\u200b",
        "\ufeff",
        "\x00",
        "\u0301",
        "\u0600",
    ),
    *(
        "-",
        ",",
        ".",
        "_",
        "'",
        "'s",
        "中",
        "文。",
        "ﬁ",
        "é",
        "İ",
        "Σ",
        "ΑΣ",
        "▁",
        "Ġ",
        "##a",
        "▁the",
        "[",
        "]",
        "MASK",
        "[MASK",
        "PAD]",
    ),
    *(
        "xyz",
        "[PATIENT]",
        "[patient]",
        "<drug>",
        "<drug",
        "patient",
        "the",
        " river",
        "Stone",
        "machine model",
        "123",
        "a",
        "B",
    ),
]
texts = st.lists(st.sampled_from(ATOMS) | st.characters(exclude_categories=["Cs"]), max_size=25).map("".join)


def word_piece(**changes: object) -> HFTokenizer:
    tree = json.loads(same_tokenizer(TEXTS, 400).definition)
    return HFTokenizer.from_str(json.dumps(tree | changes))


def trained(
    model: models.Model, pre_tokenizer: object, trainer: type, normalizer: object = None, **more: object
) -> HFTokenizer:
    made = HFTokenizer(model)
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator(
        TEXTS, trainer(vocab_size=400, special_tokens=list(SPECIAL_TOKENS), show_progress=False, **more)
    )
    return made


def byte_level(ignore_merges: bool = False, normalizer: object = None, **more: object) -> HFTokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | more)
    model = models.BPE(unk_token="[UNK]", ignore_merges=ignore_merges)
    return trained(model, pre_tokenizer, trainers.BpeTrainer, normalizer, initial_alphabet=alphabet)


def unigram(pre_tokenizer: object, normalizer: object = None) -> HFTokenizer:
    return trained(models.Unigram(), pre_tokenizer, trainers.UnigramTrainer, normalizer, unk_token="[UNK]")


def of_steps(*steps: normalizers.Normalizer) -> normalizers.Normalizer:
    return normalizers.Sequence(list(steps))


def llama_like() -> HFTokenizer:
    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(models.BPE(), pre_tokenizers.Sequence(steps), trainers.BpeTrainer, initial_alphabet=alphabet)


def metaspace(scheme: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme)


def behind_words(scheme: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace(scheme)])


KINDS: dict[str, Callable[[], HFTokenizer]] = {
    "BERT": word_piece,
    "BERT cased": lambda: word_piece(
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": False,
            "strip_accents": None,
            "lowercase": False,
        }
    ),
    "WordPiece at white space": lambda: word_piece(normalizer=None, pre_tokenizer={"type": "WhitespaceSplit"}),
    "WordPiece of whole texts": lambda: word_piece(normalizer=None, pre_tokenizer=None),
    "WordPiece at words": lambda: word_piece(pre_tokenizer={"type": "Whitespace"}),
    "WordLevel": lambda: trained(
        models.WordLevel(unk_token="[UNK]"), pre_tokenizers.WhitespaceSplit(), trainers.WordLevelTrainer
    ),
    "byte level": byte_level,
    "byte level with prefix space": lambda: byte_level(add_prefix_space=True),
    "byte level, NFC": lambda: byte_level(normalizer=normalizers.NFC()),
    "byte level, words found whole": lambda: byte_level(ignore_merges=True),
    "byte level without a pattern": lambda: byte_level(use_regex=False),
    "Llama's pattern": llama_like,
    "Unigram": lambda: unigram(metaspace("always")),
    "Unigram, first": lambda: unigram(metaspace("first")),
    "Unigram, never": lambda: unigram(metaspace("never")),
    "Unigram behind words": lambda: unigram(behind_words("always")),
    "Unigram behind words, first": lambda: unigram(behind_words("first")),
    "Unigram, NFKC": lambda: trained(
        models.Unigram(), metaspace("always"), trainers.UnigramTrainer, normalizers.NFKC(), unk_token="[UNK]"
    ),
    "XLM-R of transformers 4": lambda: unigram(behind_words("always"), of_steps(normalizers.Precompiled(TABLE))),
    "ALBERT": lambda: unigram(
        metaspace("always"),
        of_steps(
            normalizers.Replace("``", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Precompiled(TABLE),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ),
    ),
    "Unigram, first, and a table": lambda: unigram(
        metaspace("first"), of_steps(normalizers.Nmt(), normalizers.Precompiled(TABLE), normalizers.Strip(left=False))
    ),
    "Unigram whose table makes blanks": lambda: unigram(
        metaspace("never"),
        of_steps(normalizers.Precompiled(table_of({"e": " ", "t": "", "\u0301": " ", "A": "\u0300"}))),
    ),
}
FLAGS = [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}]
ADDED: dict[str, Callable[[HFTokenizer], object]] = {
    "nothing": lambda made: None,
    "runs of blanks": lambda made: made.add_tokens([" " * size for size in range(2, 7)]),
    "two words": lambda made: made.add_tokens(["machine model"]),
    "normalised, not ASCII": lambda made: made.add_tokens([AddedToken("中", normalized=True)]),
    **{
        f"special {flags}": lambda made, flags=flags: made.add_special_tokens(
            [AddedToken(token, **{"normalized": False} | flags) for token in OWN]
        )
        for flags in FLAGS
    },
}
_made: dict[tuple[str, str], tuple[Tokenizer, HFTokenizer]] = {}


def tokenizers_of(kind: str, added: str) -> tuple[Tokenizer, HFTokenizer]:
    """Ours, and Hugging Face's of the same file."""
    if (kind, added) not in _made:
        made = KINDS[kind]()
        ADDED[added](made)
        _made[kind, added] = tokenizer_of_definition(made.to_str(), kind), HFTokenizer.from_str(made.to_str())
    return _made[kind, added]


def has_a_role(text: str) -> bool:
    return any(role.lower() in text.lower() for role in SPECIAL_TOKENS)


# The library panics on every text if its normalizer leaves nothing of an added token.
STRIPPING = ("ALBERT", "Unigram, first, and a table")
TOGETHER = [(kind, added) for kind in KINDS for added in ADDED if not (kind in STRIPPING and added == "runs of blanks")]


@pytest.mark.parametrize(("kind", "added"), TOGETHER)
@settings(max_examples=25, deadline=None)
@given(text=texts.filter(lambda text: not has_a_role(text)), most=st.integers(1, 40))
def test_hugging_face_gives_the_same_ids(kind: str, added: str, text: str, most: int) -> None:
    """Of short texts, and of those that are long enough to be cut."""
    ours, theirs = tokenizers_of(kind, added)
    expected = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode([text])[0].tolist() == expected
    with patch.object(module, "MAX_ENCODE_CHARS", most):
        assert ours.encode([text])[0].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_of_a_user_are_one_token_and_never_masked(kind: str) -> None:
    ours, theirs = tokenizers_of(kind, "special {}")
    ids = [theirs.token_to_id(token) for token in OWN]
    found = ours.encode(["the [PATIENT] takes<drug>, xyz"])[0].tolist()
    assert [token for token in found if token in ids] == ids
    assert not ours.is_maskable[ids].any()
    assert not set(ids) & set(ours.random_ids.tolist())
    assert ours.token(ids[0]) == "[PATIENT]"
    assert "[PATIENT]" in ours.decode(found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.sampled_from(LITERALS) | texts, min_size=1, max_size=6))
def test_literal_roles_stay_text(kind: str, parts: list[str]) -> None:
    ours, _ = tokenizers_of(kind, "special {}")
    roles = {ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id}
    assert not roles & set(ours.encode(["".join(parts)])[0].tolist())


@pytest.mark.parametrize("where", ["not special", "not among the added"])
@pytest.mark.parametrize("kind", KINDS)
def test_literal_roles_stay_text_however_the_file_lists_them(kind: str, where: str) -> None:
    tree = json.loads(KINDS[kind]().to_str())
    if where == "not special":
        tree["added_tokens"] = [token | {"special": False} for token in tree["added_tokens"]]
    else:
        tree["added_tokens"] = []
    ours = tokenizer_of_definition(json.dumps(tree), kind)
    for role in SPECIAL_TOKENS:
        ids = ours.encode([f"the {role} of {role.lower()}{role}"])[0].tolist()
        assert not {ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id} & set(ids)
        assert ours.token(ours.vocabulary[role]) == role


@functools.cache
def stripping_before_masks(kind: str, strips: bool) -> tuple[Tokenizer, HFTokenizer]:
    tree = json.loads(KINDS[kind]().to_str())
    tree["added_tokens"] = [
        token | {"lstrip": strips and token["content"] == "[MASK]"} for token in tree["added_tokens"]
    ]
    return tokenizer_of_definition(json.dumps(tree), kind), HFTokenizer.from_str(json.dumps(tree))


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(parts=st.lists(texts.filter(lambda text: not has_a_role(text)), min_size=2, max_size=4))
def test_a_mask_is_what_hugging_face_makes_of_it(kind: str, strips: bool, parts: list[str]) -> None:
    ours, theirs = stripping_before_masks(kind, strips)
    text = "[MASK]".join(parts)
    found = ours.encode_with_masks(text)
    assert found == [ours.cls_id, *theirs.encode(text, add_special_tokens=False).ids, ours.sep_id]
    assert found.count(ours.mask_id) == len(parts) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_no_file_adds_is_one_all_the_same(kind: str) -> None:
    tree = json.loads(KINDS[kind]().to_str())
    ours = tokenizer_of_definition(json.dumps(tree | {"added_tokens": []}), kind)
    found = ours.encode_with_masks("the [MASK] river[MASK] [PAD]")
    assert found.count(ours.mask_id) == 2
    assert ours.pad_id not in found


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_a_file_adds_twice_is_one_all_the_same(kind: str) -> None:
    tree = json.loads(KINDS[kind]().to_str())
    once = tokenizer_of_definition(json.dumps(tree), kind)
    mask = next(token for token in tree["added_tokens"] if token["content"] == once.roles.mask)
    twice = tokenizer_of_definition(json.dumps(tree | {"added_tokens": [*tree["added_tokens"], mask]}), kind)
    text = "the [MASK] river[MASK]"
    assert twice.encode_with_masks(text) == once.encode_with_masks(text)
    assert once.encode_with_masks(text).count(once.mask_id) == 2


def test_a_merge_that_makes_a_role_is_not_applied() -> None:
    pieces = [*SPECIAL_TOKENS, *"ab[]MASK", "AS", "ASK", "[M", "[MASK", "[MASK]b"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("A", "S"), ("AS", "K"), ("[", "M"), ("[M", "ASK"), ("[MASK", "]"), ("[MASK]", "b")]
    made = HFTokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="[UNK]"))
    assert made.encode("a[MASK]b").tokens == ["a", "[MASK]b"]
    ours = tokenizer_of_definition(made.to_str(), "merged")
    assert [ours.token(number) for number in ours.encode(["a[MASK]b"])[0]] == ["a", "[MASK", "]", "b"]


PLAIN = {"BERT", "BERT cased"}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_tokenizers_keep_the_first_version_of_tokenizing(kind: str, added: str) -> None:
    ours, _ = tokenizers_of(kind, added)
    assert ours.tokenizing == module.TOKENIZING
    assert ours.as_of(module.TOKENIZING) is ours
    if kind in PLAIN and added == "nothing":
        assert ours.oldest_version == 1
        assert ours.as_of(1).tokenizing == 1
        assert ours.as_of(1).as_of(1).fingerprint == ours.fingerprint
    else:
        assert ours.oldest_version == module.TOKENIZING
        with pytest.raises(UserError, match=f"version 1 of tokenizing gave other ids for {kind}"):
            ours.as_of(1)
    for never in (0, 3):
        with pytest.raises(UserError, match=f"version {never} of tokenizing"):
            ours.as_of(never)


def test_the_first_version_cuts_long_stretches_as_it_did() -> None:
    """By hand: after every so many characters, also inside a word."""
    ours, theirs = tokenizers_of("BERT", "nothing")
    text = "river,mountain the " + "machine," * 5 + " x"
    stretches = ["river,mountain", "the", "machine," * 5, "x"]
    parts = [stretch[start : start + 10] for stretch in stretches for start in range(0, len(stretch), 10)]
    expected = [token for part in parts for token in theirs.encode(part, add_special_tokens=False).ids]
    with patch.object(module, "MAX_ENCODE_CHARS", 10):
        assert ours.as_of(1).encode([text])[0].tolist() == expected
        assert ours.encode([text])[0].tolist() == theirs.encode(text, add_special_tokens=False).ids != expected


@pytest.mark.parametrize(
    ("kind", "added", "expected"),
    [
        ("BERT", "nothing", "marks"),
        ("BERT", "special {}", "marks"),
        ("BERT", "special {'lstrip': True}", None),
        ("BERT", "two words", None),
        ("WordPiece at white space", "nothing", "blanks"),
        ("WordPiece of whole texts", "nothing", None),
        ("byte level", "nothing", "blanks"),
        ("byte level", "runs of blanks", "blanks"),
        ("byte level", "two words", None),
        ("byte level without a pattern", "nothing", None),
        ("Llama's pattern", "nothing", None),
        ("Unigram behind words", "nothing", "blanks"),
        ("Unigram behind words, first", "nothing", None),
        ("Unigram, NFKC", "nothing", "letters"),
        ("XLM-R of transformers 4", "nothing", "letters"),
        ("XLM-R of transformers 4", "special {}", "letters"),
        ("XLM-R of transformers 4", "special {'normalized': True}", None),
        ("XLM-R of transformers 4", "special {'lstrip': True}", None),
        ("XLM-R of transformers 4", "two words", None),
        ("ALBERT", "nothing", "letters"),
        ("Unigram whose table makes blanks", "nothing", "letters"),
    ],
)
def test_long_texts_are_cut_where_that_is_known_to_change_nothing(kind: str, added: str, expected: str | None) -> None:
    ours, _ = tokenizers_of(kind, added)
    points = ours._cut_points
    found = None if points is None else "blanks" if points is pipeline.AT_BLANKS else "marks"
    if points is not None and points.pattern.startswith("(?<=["):
        found = "letters"
    assert found == expected


def test_no_mark_of_an_added_token_is_cut_at() -> None:
    points = tokenizers_of("BERT", "special {}")[0]._cut_points
    assert points is not None
    assert [found.start() for found in points.finditer("a,b[c]d<e>f_g中h")] == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_the_package_has_know_where_words_begin(kind: str) -> None:
    assert tokenizers_of(kind, "nothing")[0].knows_words is (kind != "WordLevel")


def test_a_tokenizer_that_draws_is_refused() -> None:
    tree = json.loads(byte_level().to_str())
    tree["model"]["dropout"] = 0.1
    with pytest.raises(UserError, match=r"model\.dropout 0\.1 draws the tokens of a text at random"):
        tokenizer_of_definition(json.dumps(tree), "drawing")


def test_a_pattern_without_an_end_is_a_fault_and_no_traceback() -> None:
    tree = json.loads(byte_level().to_str())
    tree["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(UserError, match="endless cannot encode a text"):
        tokenizer_of_definition(json.dumps(tree), "endless").encode(["a" * 60 + "!"])


@pytest.mark.parametrize("role", ["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
@pytest.mark.parametrize("kind", ["BERT", "WordLevel", "byte level", "Unigram"])
def test_the_unknown_token_has_no_other_role(kind: str, role: str) -> None:
    tree = json.loads(KINDS[kind]().to_str())
    tree["model"] |= {"unk_id": SPECIAL_TOKENS.index(role)} if kind == "Unigram" else {"unk_token": role}
    with pytest.raises(UserError, match=rf"has \{role} for what its vocabulary does not hold"):
        tokenizer_of_definition(json.dumps(tree), kind)
