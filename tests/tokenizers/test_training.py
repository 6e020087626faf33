"""A tokenizer is trained on text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from maskloom.errors import UserError
from maskloom.tokenizers import TOKENIZERS, TokenizerKind
from maskloom.tokenizers.base import UNUSED
from maskloom.tokenizers.training import train_tokenizer, trainable_kinds, with_spare, without_long_runs
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS, train_word_piece

KINDS = list(TOKENIZERS)


@pytest.mark.parametrize("vocab_size", [150, 400])
def test_a_trained_vocabulary_keeps_to_its_size_and_knows_its_text(documents: list[str], vocab_size: int) -> None:
    tokenizer = train_tokenizer(iter(documents), vocab_size)
    assert len(SPECIAL_TOKENS) < tokenizer.vocab_size <= vocab_size
    for text, ids in zip(documents, tokenizer.encode(documents), strict=True):
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_lower_casing_is_a_choice() -> None:
    texts = ["River RIVER river"] * 10
    lower, cased = (
        train_tokenizer(texts, 100, lowercase=lowercase).encode(["RIVER", "river"]) for lowercase in (True, False)
    )
    assert lower[0].tolist() == lower[1].tolist()
    assert cased[0].tolist() != cased[1].tolist()


def test_a_kind_that_is_not_there_or_cannot_be_trained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENIZERS, "readable", TokenizerKind("readable", lambda tree: False))
    for kind in ("absent", "readable"):
        said = f"no kind of tokenizer '{kind}' that can be trained: choose one of {', '.join(KINDS)}; one of your own needs"
        with pytest.raises(UserError, match=said):
            train_tokenizer([], 100, kind=kind)
    assert trainable_kinds() == KINDS


def test_a_kind_that_does_not_know_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mistaken = TokenizerKind("mistaken", lambda tree: False, train=train_word_piece)
    monkeypatch.setitem(TOKENIZERS, "mistaken", mistaken)
    with pytest.raises(UserError, match="kind 'mistaken' trained would be read as one of kind 'wordpiece'"):
        train_tokenizer(["the river"] * 5, 100, kind="mistaken")


def test_a_vocabulary_has_room_beside_the_special_tokens() -> None:
    with pytest.raises(UserError, match="--vocab-size 5 leaves no id beside the 5 special tokens"):
        train_tokenizer(["the river"], 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spare", "multiple"), [(0, 1), (3, 1), (3, 64), (0, 7)])
def test_spare_tokens_are_kept_for_later(kind: str, spare: int, multiple: int, documents: list[str]) -> None:
    """They come behind all others, and neither text nor a mask becomes one."""
    texts = [*documents, *["[0123456789]"] * 200]
    plain = train_tokenizer(texts, 400 - spare, kind=kind, multiple=1)
    tokenizer = train_tokenizer(texts, 400, kind=kind, spare=spare, multiple=multiple)
    unused = {number: token for token, number in tokenizer.vocabulary.items() if token.startswith(UNUSED)}
    padding = len(unused) - spare
    assert 0 <= padding < multiple
    assert tokenizer.vocab_size % multiple == 0
    assert tokenizer.vocab_size <= 400 + padding
    assert sorted(unused) == list(range(tokenizer.vocab_size - len(unused), tokenizer.vocab_size))
    assert [unused[number] for number in sorted(unused)] == [f"[unused{place}]" for place in range(len(unused))]
    assert not tokenizer.is_maskable[list(unused)].any()
    assert not set(unused) & set(tokenizer.random_ids.tolist())
    assert len(tokenizer.random_ids) + len(unused) + len(tokenizer.roles.spellings) == tokenizer.vocab_size
    for text in (*documents[:20], "the [unused0] river[unused2]"):
        assert not set(unused) & set(tokenizer.encode([text])[0].tolist())
    assert plain.roles == tokenizer.roles


def test_spare_tokens_do_not_clash_with_ones_that_are_there() -> None:
    made = json.loads(train_tokenizer(["the river"] * 5, 100).definition)
    made["model"]["vocab"]["[unused1]"] = len(made["model"]["vocab"])
    found = json.loads(with_spare(json.dumps(made), 2, 1))["model"]["vocab"]
    assert list(found)[-3:] == ["[unused1]", "[unused0]", "[unused2]"]
    assert list(found.values())[-2:] == [len(found) - 2, len(found) - 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spare": 100}, "--spare 100 leaves no id of --vocab-size 100"),
        ({"spare": 96}, r"--vocab-size 4 leaves no id .*\(--spare keeps 96 of 100 ids\)"),
        ({"multiple": 101}, "--multiple 101 is more than --vocab-size 100"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_leave_nothing_are_refused(kind: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train_tokenizer(["the river"], 100, kind=kind, **options)


def test_a_size_that_its_characters_alone_exceed_is_refused(documents: list[str]) -> None:
    """WordPiece's trainer keeps every character, whatever size it is asked for."""
    with pytest.raises(
        UserError, match=r"--vocab-size 12 is too small: kind 'wordpiece' has \d+ ids for the characters"
    ):
        train_tokenizer(documents, 12)
    with pytest.raises(UserError, match=r"--vocab-size 100 is too small: .* alone, and --spare keeps 88"):
        train_tokenizer(documents, 100, spare=88)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("", [0]),
        ("a" * 1024, [1024]),
        ("a" * 1025, [1024, 1]),
        ("b " + "a" * 3000 + " b", [1026, 1024, 954]),
        ("a " * 5000, [10_000]),
        ("a" + "\n " * 513 + "a" * 1024, [1025, 1026]),
    ],
)
def test_a_run_without_end_is_cut_for_the_trainer(text: str, lengths: list[int]) -> None:
    parts = list(without_long_runs([text]))
    assert "".join(parts) == text
    assert [*map(len, parts)] == lengths


def test_trainers_see_no_run_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def train(texts: Iterable[str], vocab_size: int, lowercase: bool | None) -> str:
        seen.extend(texts)
        return train_word_piece(seen, vocab_size, lowercase)

    monkeypatch.setitem(TOKENIZERS, "wordpiece", replace(TOKENIZERS["wordpiece"], train=train))
    train_tokenizer(["ACGT" * 700, "the river"], 40)
    assert [*map(len, seen)] == [1024, 1024, 752, 9]
