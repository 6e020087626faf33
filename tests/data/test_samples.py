from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.samples import decode_text, document_from_json, read_documents
from maskloom.errors import UserError

texts = st.lists(st.text(max_size=40), max_size=6)  # any Unicode but surrogates


def tar_of(members: dict[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    stream.seek(0)
    return stream


def documents_in(members: dict[str, bytes], text_key: str = "text") -> list[str]:
    return list(read_documents(tar_of(members), "my.tar", text_key))


@settings(max_examples=40, deadline=None)
@given(texts, st.sampled_from(["txt", "json", "jsonl"]), st.booleans())
def test_what_webdataset_writes_is_read_back(documents: list[str], kind: str, escaped: bool) -> None:
    stream = io.BytesIO()
    lines = [json.dumps({"text": text, "more": 1}, ensure_ascii=escaped).encode() for text in documents]
    with webdataset.TarWriter(stream) as tar:
        if kind == "jsonl":
            tar.write({"__key__": "all", "jsonl": b"\n".join(lines)})
        else:
            for number, (text, line) in enumerate(zip(documents, lines, strict=True)):
                tar.write({"__key__": f"{number:06d}", kind: text.encode() if kind == "txt" else line})
    stream.seek(0)
    assert list(read_documents(stream, "my.tar", "text")) == documents


def test_every_field_of_a_dotted_key_is_read() -> None:
    assert documents_in({"doc.0.txt": b"a", "doc.1.txt": b"b", "other.2.txt": b"c"}) == ["a", "b", "c"]


def test_the_json_beside_a_text_is_metadata() -> None:
    assert documents_in({"a.json": b'{"language": "en"}', "a.txt": b"text", "b.json": b'{"text": "only"}'}) == [
        "text",
        "only",
    ]


def test_what_webdataset_skips_and_what_is_no_text_is_left_out() -> None:
    members = {"__meta__": b"x", "__info__/a.txt": b"x", "a.jpg": b"\xff\xd8", "no_extension": b"x", "b.TXT": b"b"}
    assert documents_in(members) == ["b"]


def test_a_pickle_is_never_loaded() -> None:
    bomb = b"cos\nsystem\n(S'exit 3'\ntR."
    assert documents_in({"a.pyd": bomb, "a.pickle": bomb, "a.txt": b"a"}) == ["a"]


def test_names_longer_than_a_tar_header_holds() -> None:
    assert documents_in({f"{'d' * 90}/{'n' * 90}.txt": b"long", "é" * 60 + ".txt": b"accents"}) == ["long", "accents"]


def test_blank_lines_are_no_documents_and_a_last_line_needs_no_end() -> None:
    assert documents_in({"a.jsonl": b'\n{"text": "a"}\r\n  \n{"text": ""}\n{"text": "b\\n"}'}) == ["a", "", "b\n"]


def test_line_separators_inside_a_text_end_no_line() -> None:
    text = "a\u2028b\u0085c\x0cd"
    assert documents_in({"a.jsonl": json.dumps({"text": text}, ensure_ascii=False).encode()}) == [text]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a\xff"}', "not valid UTF-8 at byte 11"),
        (b'{"text": "a"', "not valid JSON"),
        (b"text", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'["a"]', "a JSON object is needed, not list"),
        (b"null", "a JSON object is needed, not NoneType"),
        (b'{"text": null}', "'text' holds NoneType, not text"),
        (b'{"text": ["a"]}', "'text' holds list, not text"),
        (b'{"content": "a", "id": 1}', "no 'text' in the object; it has 'content', 'id': use --text-key"),
        (b"{}", "no 'text' in the object; it has no key at all: use --text-key"),
        (b'{"text": "ab\\ud83d"}', r"'text' holds the lone surrogate \ud83d at character 2"),
        (b'{"text": "ab\xed\xa0\xbd"}', r"'text' holds the lone surrogate \ud83d at character 2"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(line: bytes, said: str) -> None:
    with pytest.raises(UserError) as error:
        documents_in({"a.jsonl": b'{"text": "good"}\n' + line})
    assert str(error.value).startswith("shard my.tar, sample 'a'.jsonl line 2: ")
    assert said in str(error.value)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert document_from_json(b'{"text": "\\ud83d\\ude00"}', "text", "here") == "\U0001f600"


def test_other_keys_may_hold_the_text() -> None:
    assert documents_in({"a.json": b'{"content": "a", "text": 3}'}, "content") == ["a"]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20), st.sampled_from([b"\xff", b"\xc3(", b"\xe2\x82", b"\xed\xa0\x80"]))
def test_invalid_utf8_names_sample_and_byte(before: str, bad: bytes) -> None:
    data = before.encode() + bad
    with pytest.raises(UserError) as error:
        documents_in({"a.txt": data})
    assert f"shard my.tar, sample 'a'.txt: not valid UTF-8 at byte {len(before.encode())}" in str(error.value)
    with pytest.raises(UserError, match=r"^here: not valid UTF-8"):
        decode_text(data, "here")


@pytest.mark.parametrize("data", [b"x" * 2000, tar_of({"a.txt": b"a" * 3000}).read()[:2000]])
def test_bytes_that_are_no_tar_name_the_shard(data: bytes) -> None:
    with pytest.raises(UserError, match=r"shard my\.tar"):
        list(read_documents(io.BytesIO(data), "my.tar", "text"))


def test_a_name_that_stands_twice_in_a_sample_is_refused() -> None:
    stream: Any = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.txt")
            tar.addfile(info)
    stream.seek(0)
    with pytest.raises(UserError, match=r"shard my\.tar .*duplicate"):
        list(read_documents(stream, "my.tar", "text"))
