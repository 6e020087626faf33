"""Tokenizers as they come: Hugging Face reads a folder, and we read the same ids; what cannot be read says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer

from maskloom.config_file import parse_config
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import find_tokenizer, load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.roles import SETTINGS
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from maskloom.tokenizers.writing import write_for_others
from tests.conftest import WORDS

LETTERS = "abcdefghijklmnopqrstuvwxyzABIéÉßσΣ中文。,.'[]#-123"
TOKENS = list(
    dict.fromkeys(
        [*SPECIAL_TOKENS, "[unused1]", *LETTERS, *("##" + mark for mark in LETTERS), *WORDS, "##er", "##ing", "River"]
    )
)
texts = st.lists(
    st.sampled_from(
        [*WORDS, "River", "RIVERS", "é", "É", "中文", "it's", "##er", "\x85", "\u2028", "\x0c", "\n", " ", "[unused1]"]
    )
    | st.text(st.sampled_from(LETTERS), max_size=6)
    | st.characters(exclude_categories=["Cs"]),
    max_size=20,
).map(" ".join)


def write(folder: Path, tokens: list[str] | bytes, **settings_: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = tokens if isinstance(tokens, bytes) else "".join(token + "\n" for token in tokens).encode()
    (folder / "vocab.txt").write_bytes(content)
    if settings_:
        (folder / SETTINGS).write_text(json.dumps(settings_))
    return folder


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


def test_tokenizer_json_goes_before_the_vocabulary(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path, TOKENS)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("names", "said", "not_said"),
    [
        (
            ["vocab.json", "merges.txt"],
            "it has vocab.json, of a byte-level BPE tokenizer. Convert it",
            "maskloom tokenizer",
        ),
        (["sentencepiece.bpe.model"], "of a SentencePiece tokenizer. Convert it", "maskloom tokenizer"),
        (["spiece.model", "config.json"], "of a SentencePiece tokenizer. Convert it", "maskloom tokenizer"),
        (["config.json", "model.safetensors"], "copy that of the model there", "maskloom tokenizer"),
        ([], "train one with `maskloom tokenizer CORPUS", "Convert"),
    ],
)
def test_a_folder_without_a_tokenizer_says_what_to_do(
    names: list[str], said: str, not_said: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert "tokenizer.json or vocab.txt is needed" in str(error.value)
    assert said in str(error.value)
    assert not_said not in str(error.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's copies on this machine, and no way to the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str) -> Path:
    """Where the files of a model are in the Hub's cache, as huggingface_hub lays it out."""
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("name", ["bert-tiny-of-ours", "our-group/bert-tiny"])
def test_a_name_on_the_hub_is_a_tokenizer(name: str, hub: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(cached(hub, name) / "tokenizer.json")
    assert load_tokenizer(name).fingerprint == tokenizer.fingerprint


def test_a_vocabulary_on_the_hub_comes_with_its_settings(hub: Path) -> None:
    write(cached(hub, "our-group/cased"), TOKENS, do_lower_case=False)
    tokenizer = load_tokenizer("our-group/cased")
    assert tokenizer.encode(["River"])[0].tolist() == [TOKENS.index("River")]


def test_a_name_that_is_nowhere_says_so(hub: Path) -> None:
    with pytest.raises(UserError) as error:
        load_tokenizer("bert-base-uncased")
    assert "no file or folder here has this name, and from the Hub neither" in str(error.value)
    assert "maskloom tokenizer" not in str(error.value)  # which would make another one, under the name of this


def test_a_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskloom.tokenizers.loading._from_hub", lambda name: pytest.fail(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="train one with `maskloom tokenizer CORPUS data/tok`"):
        find_tokenizer("data/tok")
    for path in (tmp_path / "none", tmp_path / "none" / "vocab.txt", Path("a/b/c"), Path("./a")):
        with pytest.raises(UserError, match=f"no tokenizer at .*{path.name}.*name a folder that holds"):
            find_tokenizer(str(path) if path.name != "a" else "./a")


def config(**more: object) -> dict:
    return {"run_dir": "run", "data": {"train": "corpus"}, "phases": [{"steps": 2}]} | more


def test_a_run_takes_the_tokenizer_of_the_model_it_starts_from() -> None:
    assert parse_config(config(model={"init": "my_model"}), "here").tokenizer == "my_model"
    assert parse_config(config(model={"init": "my_model"}, tokenizer="own"), "here").tokenizer == "own"
    assert parse_config(config(model={"init": "my_model"}, tokenizer=None), "here").tokenizer == "my_model"
    for tree in (
        config(),
        config(model={}),
        config(model={"init": None}),
        config(tokenizer=" "),
        config(tokenizer=None),
    ):
        with pytest.raises(UserError, match=r"tokenizer: it is missing: .*or model\.init"):
            parse_config(tree, "here")


@pytest.mark.parametrize("lowercase", [True, False])
def test_hugging_face_takes_what_we_write_as_it_is(lowercase: bool, tmp_path: Path) -> None:
    ours = load_tokenizer(write(tmp_path / "vocabulary", TOKENS, do_lower_case=lowercase))
    out = tmp_path / "out"
    out.mkdir()
    write_for_others(out, ours, 77)
    assert load_tokenizer(out).fingerprint == ours.fingerprint
    text = "The RIVER learns, É [MASK] 中文"
    for theirs in (AutoTokenizer.from_pretrained(out), BertTokenizer.from_pretrained(out)):
        plain, masked = theirs(text.replace("[MASK]", "x"))["input_ids"], theirs(text)
        assert plain[1:-1] == ours.encode([text.replace("[MASK]", "x")])[0].tolist()
        assert masked["input_ids"].count(ours.mask_id) == 1
        assert set(masked) == {"input_ids", "token_type_ids", "attention_mask"}
        assert (theirs.model_max_length, theirs.mask_token_id, theirs.pad_token_id) == (77, ours.mask_id, ours.pad_id)


@pytest.mark.parametrize(
    "given", [None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]
)
def test_a_text_gets_the_ends_that_the_model_was_trained_with(
    given: object, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    bare = tokenizer_of_definition(json.dumps(json.loads(tokenizer.definition) | {"post_processor": given}), "bare")
    write_for_others(tmp_path, bare)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = [bare.cls_id, *bare.encode(["the river"])[0].tolist(), bare.sep_id]
    assert theirs("the river")["input_ids"] == expected
    assert theirs("the river", "x")["token_type_ids"] == [0] * len(expected) + [1, 1]
