from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.reading.samples import (
    TOKENS_HEAD,
    TOKENS_MAGIC,
    TokenBlock,
    decode_text,
    document_from_json,
    read_documents,
    read_tokens,
    tokens_member,
)
from maskloom.errors import DataFault, UserError
from maskloom.tokenizers.base import Tokenized

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


def test_what_webdataset_skips_and_what_is_not_text_is_left_out() -> None:
    members = {
        "__meta__": b"x",
        "__info__/a.txt": b"x",
        "a.jpg": b"\xff\xd8",
        "no_extension": b"x",
        "b.TXT": b"b",
        ".txt": b"x",
    }
    assert documents_in(members) == ["b"]


def test_a_pickle_is_never_loaded() -> None:
    bomb = b"cos\nsystem\n(S'exit 3'\ntR."
    assert documents_in({"a.pyd": bomb, "a.pickle": bomb, "a.txt": b"a"}) == ["a"]


def test_names_longer_than_a_tar_header_holds() -> None:
    assert documents_in({f"{'d' * 90}/{'n' * 90}.txt": b"long", "é" * 60 + ".txt": b"accents"}) == ["long", "accents"]


def test_blank_lines_are_not_documents_and_the_last_line_may_lack_an_end() -> None:
    assert documents_in({"a.jsonl": b'\n{"text": "a"}\r\n  \n{"text": ""}\n{"text": "b\\n"}'}) == ["a", "", "b\n"]


def test_line_separators_inside_a_text_do_not_end_a_line() -> None:
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
        (b'{"text": "ab\xed\xa0\xbd"}', "not valid UTF-8 at byte 12"),
        ('{"text": "ab"}'.encode("utf-16-le"), "not valid JSON"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(line: bytes, said: str) -> None:
    with pytest.raises(UserError) as error:
        documents_in({"a.jsonl": b'{"text": "good"}\n' + line})
    assert str(error.value).startswith("shard my.tar, sample 'a'.jsonl line 2: ")
    assert said in str(error.value)


@pytest.mark.parametrize(("keys", "more"), [(10, ""), (11, " and 1 more"), (200_000, " and 199,990 more")])
def test_the_keys_of_an_object_are_named_up_to_a_number(keys: int, more: str) -> None:
    line = json.dumps({f"k{number}": number for number in range(keys)})
    named = ", ".join(f"'k{number}'" for number in range(10))
    with pytest.raises(DataFault) as fault:
        document_from_json(line, "text", "here")
    assert str(fault.value) == f"here: no 'text' in the object; it has {named}{more}: use --text-key"


def test_a_long_key_is_shortened() -> None:
    with pytest.raises(DataFault, match=r"it has 'k+\[\.\.\. 99,802 characters left out \.\.\.\]k+': use") as fault:
        document_from_json(json.dumps({"k" * 100_000: 1}), "text", "here")
    assert len(str(fault.value)) < 500


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
def test_bytes_that_are_not_a_tar_name_the_shard(data: bytes) -> None:
    with pytest.raises(UserError, match=r"shard my\.tar"):
        list(read_documents(io.BytesIO(data), "my.tar", "text"))


def test_a_name_that_stands_twice_in_a_sample_is_refused() -> None:
    stream: Any = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.txt")
            tar.addfile(info)
    stream.seek(0)
    with pytest.raises(UserError, match=r"shard my\.tar, .*duplicate"):
        list(read_documents(stream, "my.tar", "text"))


def test_what_cannot_be_read_is_reported_and_skipped() -> None:
    """Document by document: the other lines of a member are read."""
    told: list[DataFault] = []
    members = {"a.jsonl": b'{"text": "one"}\n{\n{"text": "two"}\n{"text": 3}', "b.txt": b"\xff", "c.txt": b"three"}
    found = list(read_documents(tar_of(members), "my.tar", "text", 1536, on_bad=told.append))
    assert found == ["one", "two", "three"]
    assert [(fault.kind, fault.shard, fault.offset, fault.key) for fault in told] == [
        ("json", "my.tar", 1536, "a"),
        ("json", "my.tar", 1536, "a"),
        ("utf-8", "my.tar", 1536, "b"),
    ]
    assert [str(fault).partition(":")[0] for fault in told] == [
        "shard my.tar, sample 'a'.jsonl line 2",
        "shard my.tar, sample 'a'.jsonl line 4",
        "shard my.tar, sample 'b'.txt",
    ]


def test_a_tar_that_cannot_be_read_is_never_skipped() -> None:
    data = tar_of({"a.txt": b"a" * 3000}).read()[:2000]
    with pytest.raises(DataFault) as fault:
        list(read_documents(io.BytesIO(data), "my.tar", "text", 512, on_bad=lambda told: None))
    assert (fault.value.kind, fault.value.shard, fault.value.offset) == ("tar", "my.tar", 512)


CUT_OFF = "there is none, or it is cut off"
OTHER_FORMAT = "it is of another format"
OTHER_SIZE = "its size does not fit the documents it lists"


class TestTokens:
    """Documents that were tokenised beforehand."""

    @staticmethod
    def read(members: dict[str, bytes]) -> TokenBlock:
        return read_tokens(tar_of(members), "my.tar", 512)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.lists(st.integers(0, 65535), max_size=8), max_size=6),
        st.sampled_from([65536, 65537, 1 << 20]),
        st.data(),
    )
    def test_what_was_written_is_read_back(self, texts: list[list[int]], vocab_size: int, data: st.DataObject) -> None:
        """Empty documents and held-out ones as well, of vocabularies that fit two bytes an id and that do not."""
        if vocab_size > 65536 and texts:
            texts = [*texts, [vocab_size - 1]]
        documents = Tokenized.of([np.asarray(text, dtype=np.int32) for text in texts])
        held_out = np.asarray(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), dtype=bool)
        member = tokens_member(documents, held_out, vocab_size)
        width = 2 if vocab_size <= 65536 else 4
        assert len(member) == TOKENS_HEAD.size + 4 * len(texts) + width * sum(map(len, texts))
        found = self.read({"a.tokens": member})
        assert [ids.tolist() for ids in found.documents] == texts
        assert (found.documents.ids.dtype, found.documents.lengths.dtype) == (np.int32, np.int64)
        assert found.held_out.tolist() == held_out.tolist()

    def test_several_members_are_one_after_the_other(self) -> None:
        parts = [(Tokenized.of([np.arange(n, dtype=np.int32)] * 2), np.asarray([n > 1, False])) for n in range(3)]
        members = {f"{n}.tokens": tokens_member(*part, [100, 1 << 17][n % 2]) for n, part in enumerate(parts)}
        found = self.read(members)
        assert found.documents.lengths.tolist() == [0, 0, 1, 1, 2, 2]
        assert found.documents.ids.tolist() == [0, 0, 0, 1, 0, 1]
        assert found.held_out.tolist() == [False] * 4 + [True, False]

    @staticmethod
    def member() -> bytes:
        documents = Tokenized.of([np.arange(5, dtype=np.int32), np.empty(0, np.int32), np.arange(3, dtype=np.int32)])
        return tokens_member(documents, np.asarray([False, True, True]), 100)

    def refused(self, member: bytes) -> str:
        """What is wrong with the member, in the words of the fault that names it."""
        with pytest.raises(
            DataFault, match=r"shard my\.tar, sample 'a', .* offset 512: no good \.tokens member: "
        ) as fault:
            self.read({"a.tokens": member})
        assert (fault.value.kind, fault.value.shard, fault.value.offset) == ("tokens", "my.tar", 512)
        assert fault.value.key == "a"
        return str(fault.value).rpartition(": ")[2]

    def test_a_member_cut_off_anywhere_is_refused(self) -> None:
        whole = self.member()
        table_end = TOKENS_HEAD.size + 3 * 4
        for end in range(len(whole)):
            said = CUT_OFF if end < TOKENS_HEAD.size else OTHER_FORMAT if end < table_end else OTHER_SIZE
            assert self.refused(whole[:end]) == said

    def test_a_member_with_more_bytes_is_refused(self) -> None:
        for more in range(1, 20):
            assert self.refused(self.member() + bytes(more)) == OTHER_SIZE

    @pytest.mark.parametrize(
        ("head", "said"),
        [
            ((b"MLTOKENX", 1, 2, 3), OTHER_FORMAT),
            ((TOKENS_MAGIC, 0, 2, 3), OTHER_FORMAT),
            ((TOKENS_MAGIC, 2, 2, 3), OTHER_FORMAT),
            ((TOKENS_MAGIC, 1, 0, 3), OTHER_FORMAT),
            ((TOKENS_MAGIC, 1, 1, 3), OTHER_FORMAT),
            ((TOKENS_MAGIC, 1, 4, 3), OTHER_SIZE),
            ((TOKENS_MAGIC, 1, 8, 3), OTHER_FORMAT),
            ((TOKENS_MAGIC, 1, 2, 2), OTHER_SIZE),
            ((TOKENS_MAGIC, 1, 2, 4), OTHER_SIZE),
            ((TOKENS_MAGIC, 1, 2, 2**32 - 1), OTHER_FORMAT),
            ((TOKENS_MAGIC, 1, 2, 0), OTHER_SIZE),
        ],
    )
    def test_a_wrong_head_is_refused(self, head: tuple[bytes, int, int, int], said: str) -> None:
        assert self.refused(TOKENS_HEAD.pack(*head) + self.member()[TOKENS_HEAD.size :]) == said

    def test_lengths_that_do_not_fit_are_refused(self) -> None:
        """Also where they would be right modulo 2^31 or 2^32."""
        for place in range(TOKENS_HEAD.size, TOKENS_HEAD.size + 12):
            for bit in range(8):
                member = bytearray(self.member())
                member[place] ^= 1 << bit
                if place % 4 == (TOKENS_HEAD.size + 3) % 4 and bit == 7:
                    continue  # the flag of a held-out document, which the index counts
                assert self.refused(bytes(member)) == OTHER_SIZE

    def test_a_block_without_such_a_member_is_refused(self) -> None:
        for members in ({"a.txt": b"text"}, {"a.tokens": self.member(), "b.txt": b"text"}, {}):
            with pytest.raises(DataFault, match=r"no good \.tokens member: there is none") as fault:
                self.read(members)
            assert fault.value.kind == "tokens"
