"""tokenizer.json, vocab.txt and tokenizer_config.json from outside: read, or refused in a sentence."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers import base
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.roles import LARGEST_BYTES, SETTINGS, SPECIALS
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from maskloom.tokenizers.writing import write_for_others
from tests.fuzz.harness import INPUTS, Report, fuzz, guarded
from tests.tokenizers.character_tables import TABLE

TEXTS = ["the river [MASK] [PATIENT]", "ab ab ab <mask> <s>b</s>", "a" * 200 + "!", "", " \u0301中\x00é,b", "[UNK]" * 3]
PIECES = [*SPECIAL_TOKENS, "[unused1]", *"abehrtiv中,", "##a", "##e", "##r", "##i", "the", "river"]
VOCABULARY = {piece: number for number, piece in enumerate(PIECES)}
WORDS = [
    *(
        b'"special":true',
        b'"normalized":true',
        b'"lstrip":true',
        b'"content":"[MASK]"',
        b'"id":4',
        b'"dropout":0.5',
        b'"ignore_merges":true',
    ),
    *(
        b'"type":"Sequence"',
        b'"type":"BPE"',
        b'"type":"Unigram"',
        b'"type":"WordLevel"',
        b'"type":"Replace"',
        b'"type":"Split"',
    ),
    *(
        b'{"type":"NFC"}',
        b'{"type":"WhitespaceSplit"}',
        b'{"type":"ByteLevel"}',
        b'{"type":"Digits"}',
        b'"##"',
        b'"[MASK]"',
        b'"[PAD]"',
    ),
    *(
        b'{"Regex":"(a+)+$"}',
        b'{"Regex":"("}',
        b'{"Regex":""}',
        b'{"String":""}',
        b"{}",
        b"[]",
        b'""',
        b"true",
        b"false",
        b"4294967295",
    ),
    *(
        b"4294967296",
        b"[" * 200,
        b'{"a":' * 200,
        b'"\\ud800"',
        b'"\\uffff"',
        b"[unused2]\n",
        b"##\n",
        b"added_tokens_decoder",
        b"mask_token",
    ),
]


def of(model: models.Model, pre_tokenizer: object, normalizer: object = None) -> bytes:
    made = HFTokenizer(model)
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_special_tokens([*SPECIAL_TOKENS, "[PATIENT]"])
    made.add_tokens(["two words"])
    return made.to_str().encode()


XLM_R = ("<s>", "<pad>", "</s>", "<unk>")


def xlm_r(pre_tokenizer: pre_tokenizers.PreTokenizer, *steps: normalizers.Normalizer) -> bytes:
    """A tokenizer of Unigram in the style of XLM-R: the special tokens are pieces of the vocabulary, the mask the last one."""
    pieces = [
        *XLM_R,
        "▁",
        "▁the",
        "▁r",
        "iver",
        *"abehrtiv中,<>/s",
        *(f"<0x{byte:02X}>" for byte in range(4)),
        "<mask>",
    ]
    made = HFTokenizer(models.Unigram([(piece, -float(number)) for number, piece in enumerate(pieces)], 3, True))
    made.pre_tokenizer = pre_tokenizer
    made.normalizer = normalizers.Sequence(list(steps))
    made.add_special_tokens([*XLM_R, AddedToken("<mask>", lstrip=True, normalized=False)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made.to_str().encode()


SEEDS = [
    BertWordPieceTokenizer(VOCABULARY).to_str().encode(),
    of(models.WordPiece(VOCABULARY, unk_token="[UNK]"), pre_tokenizers.WhitespaceSplit(), normalizers.NFC()),
    of(
        models.BPE({**VOCABULARY, "th": 100, "he": 101}, [("t", "h"), ("h", "e")], unk_token="[UNK]"),
        pre_tokenizers.ByteLevel(),
    ),
    of(models.Unigram([(piece, -float(number)) for number, piece in enumerate(PIECES)], 1), pre_tokenizers.Metaspace()),
    of(
        models.WordLevel(VOCABULARY, unk_token="[UNK]"),
        pre_tokenizers.Split(" ", "removed"),
        normalizers.Replace("b", "a"),
    ),
    xlm_r(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])),
    xlm_r(
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        normalizers.Precompiled(TABLE),
        normalizers.Strip(left=False),
        normalizers.Replace(Regex(" {2,}"), "▁"),
    ),
]


def use(folder: Path) -> None:
    """What a command does with a tokenizer: load, encode also in parts, tell words, fill masks, name, write it for others."""
    tokenizer = load_tokenizer(folder)
    roles = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id}
    for most in (1 << 16, 4):
        with patch.object(base, "MAX_ENCODE_CHARS", most):
            for ids in tokenizer.encode(TEXTS):
                assert all(0 <= number < tokenizer.vocab_size for number in ids.tolist())
                assert not roles & set(ids.tolist())
                if tokenizer.knows_words:
                    assert tokenizer.starts_word(ids[None], np.zeros((1, len(ids)), bool)).shape == (1, len(ids))
    assert tokenizer.token(tokenizer.mask_id) in ("[MASK]", "<mask>")
    filled = tokenizer.encode_with_masks("the [MASK]")
    assert (filled[0], filled[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
    write_for_others(folder / "out", tokenizer)


def test_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def read_tokenizer_json(data: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(data)
        use(tmp_path)

    fuzz(read_tokenizer_json, SEEDS, WORDS, folder=tmp_path)


VALUES = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            1,
            -1,
            7,
            4,
            1 << 31,
            1 << 32,
            1e300,
            "",
            "##",
            "[MASK]",
            "[PAD]",
            "\ud800",
            "\uffff",
            "a",
            " ",
            [],
            {},
        ),
        *(
            "BPE",
            "WordPiece",
            "Unigram",
            "WordLevel",
            "ByteLevel",
            "Sequence",
            "Metaspace",
            "NFKC",
            "always",
            "never",
            "Isolated",
        ),
        *(
            {"type": "NFC"},
            {"type": "WhitespaceSplit"},
            {"type": "Digits", "individual_digits": True},
            {"Regex": "(a+)+$"},
        ),
        *({"type": "FixedLength", "length": 0}, {"type": "Replace", "pattern": {"String": ""}, "content": "[MASK]"}),
        *({"type": "Prepend", "prepend": "[MASK]"}, {"type": "Strip", "strip_left": True, "strip_right": True}),
        *(
            {"type": "Precompiled", "precompiled_charsmap": "////fwAA"},
            {"Regex": ""},
            {"type": "ByteLevel"},
            [["a", 1e308]],
        ),
        *([{"type": "Lowercase"}, {"type": "BertNormalizer"}], {"type": "Sequence", "normalizers": []}),
        {"type": "Split", "pattern": {"Regex": "(?=a)"}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": True},
    ]
)
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.sampled_from(["set", "drop", "repeat"]), VALUES), min_size=1, max_size=3
)


def places_in(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree; of a vocabulary some."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    for key, value in items:
        yield node, key
        yield from places_in(value)


def edited(tree: Any, edits: list[tuple[int, str, Any]]) -> Any:
    for where, what, value in edits:
        places = [
            place for place in places_in(tree) if not (len(place[0]) > 20 and isinstance(place[1], str) and where % 5)
        ]
        node, key = places[where % len(places)]
        if what == "set":
            node[key] = copy.deepcopy(value)
        elif what == "drop":
            del node[key]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[f"{key}2"] = node[key]
    return tree


def test_tokenizer_json_with_other_values(tmp_path: Path) -> None:
    """Edits of the tree: the file stays JSON, so that more of it is read."""
    (tmp_path / "out").mkdir()
    wanted, report = os.environ.get(INPUTS), Report()
    for seed in SEEDS:
        (tmp_path / "tokenizer.json").write_bytes(seed)
        use(tmp_path)

    @settings(
        max_examples=int(wanted or 500),
        derandomize=not wanted,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(SEEDS), EDITS)
    def run(seed: bytes, edits: list[tuple[int, str, Any]]) -> None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(edited(json.loads(seed), edits)))
        began_s, is_read = time.perf_counter(), True
        with guarded(tmp_path):
            try:
                use(tmp_path)
            except UserError:
                is_read = False
        report.add(is_read, time.perf_counter() - began_s)

    run()
    print(f"\ntrees of tokenizer.json: {report}")


def test_tokenizer_config_json_beside_a_definition(tmp_path: Path) -> None:
    """As transformers 4 and 5 write it for XLM-R and CamemBERT, and what special_tokens_map.json adds."""
    (tmp_path / "out").mkdir()
    (tmp_path / "tokenizer.json").write_bytes(SEEDS[-1])
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    given = {f"{role}_token": token for role, token in names.items()}
    seeds = [
        given | {"tokenizer_class": "XLMRobertaTokenizer", "extra_special_tokens": ["<s>", "</s>"], "unk_id": 0},
        {role: {"content": token, **flags} for role, token in given.items()}
        | {"additional_special_tokens": ["<s>NOTUSED"]},
        {"mask_token": "<mask>", "added_tokens_decoder": {"0": {"content": "<s>", **flags}}, "sp_model_kwargs": {}},
    ]

    def read(data: bytes) -> None:
        for name in (SETTINGS, SPECIALS):
            (tmp_path / name).write_bytes(data)
        use(tmp_path)

    more = [b'"cls_token":', b'"bos_token":', b'"<pad>"', b'"<mask>"', b'"<s>"', b'{"content":"</s>"}', b"null"]
    fuzz(read, [json.dumps(seed).encode() for seed in seeds], WORDS + more, folder=tmp_path)


def test_vocab_txt(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def read_vocab_txt(data: bytes) -> None:
        (tmp_path / "vocab.txt").write_bytes(data)
        use(tmp_path)

    fuzz(read_vocab_txt, [end.join(PIECES).encode() for end in ("\n", "\r\n")], WORDS, folder=tmp_path)


def test_tokenizer_config_json(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    added = {
        "content": "[PATIENT]",
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
    seeds = [
        {"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": True, "mask_token": "[MASK]"},
        {
            "mask_token": {"content": "[MASK]"},
            "added_tokens_decoder": {str(len(PIECES)): added, "4": {"content": "[MASK]"}},
        },
        {"additional_special_tokens": [], "extra_special_tokens": {}, "model_max_length": 512},
    ]

    def read_tokenizer_config(data: bytes) -> None:
        (tmp_path / SETTINGS).write_bytes(data)
        use(tmp_path)

    fuzz(read_tokenizer_config, [json.dumps(seed).encode() for seed in seeds], WORDS, folder=tmp_path)


def changed(**changes: object) -> bytes:
    return json.dumps(json.loads(SEEDS[0]) | changes).encode()


def with_model(**changes: object) -> bytes:
    return changed(model=json.loads(SEEDS[0])["model"] | changes)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (with_model(vocab=VOCABULARY | {"far": 4_000_000_000}), "has 23 tokens, and ids up to 4,000,000,000"),
        (with_model(vocab=VOCABULARY | {"far": 1 << 32}), r"is not a tokenizer\.json"),
        (with_model(vocab=VOCABULARY | {"low": -1}), r"is not a tokenizer\.json"),
        (with_model(vocab=VOCABULARY | {"same": 7}), "gives id 7 to '(b|same)' and to '(b|same)'"),
        (with_model(vocab=VOCABULARY | {"word": "7"}), r"is not a tokenizer\.json"),
        (with_model(vocab=[]), r"is not a tokenizer\.json"),
        (with_model(unk_token="absent"), "cannot encode a text|is not a tokenizer"),
        (changed(model=None), "a JSON object with a 'model' is needed"),
        (changed(added_tokens=3), r"is not a tokenizer\.json"),
        (b"[" * 1_000_000, r"is not a tokenizer\.json"),
        (b'{"model":' * 100_000, r"is not a tokenizer\.json"),
        (b"\xff" + SEEDS[0], r"is not a tokenizer\.json"),
    ],
)
def test_hostile_definitions_are_refused(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with guarded(), pytest.raises(UserError, match=match):
        load_tokenizer(tmp_path).encode(TEXTS)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", SETTINGS])
def test_a_file_without_end_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    with (tmp_path / name).open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with guarded(memory_bytes=64 << 20), pytest.raises(UserError, match="more than 256 MiB"):
        load_tokenizer(tmp_path)
