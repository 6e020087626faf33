"""What may be a secret is found, and is in no message; what a terminal obeys is written out."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator

import pytest

from maskloom.errors import DataFault
from maskloom.progress import add_reader, complain, remove_reader, say, show, warn
from maskloom.redaction import (
    HIDDEN,
    LONGEST_MESSAGE_CHARS,
    brief,
    is_secret_name,
    one_line,
    printable,
    redacted,
    sayable,
    secret_keys,
    secret_urls,
    shortened,
    shown,
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("no index at https://ada:pw@host/a: 404", "no index at https://host/a: 404"),
        ("'https://host/a?X-Amz-Signature=0123&x=1' failed", "'https://host/a' failed"),
        ("(http://host:80/a.tar?sig=S#part)", "(http://host:80/a.tar"),
        ("s3://bucket/a?b", "s3://bucket/a?b"),  # a name may have that character
        ("git+ssh://user:pw@host/x and http://u@h", "git+ssh://host/x and http://h"),
        ("lr=1e-4, 3:4, a//b, c@d", "lr=1e-4, 3:4, a//b, c@d"),
    ],
)
def test_urls_lose_what_opens_them(text: str, left: str) -> None:
    assert redacted(text, {}) == left
    assert shown("https://u:p@h/a?b#c") == "https://h/a"


class Vanishing(dict[str, str]):
    """Variables of which another thread removes one while they are looked through."""

    def __iter__(self) -> Iterator[str]:
        return iter(["GONE_TOKEN", *super().__iter__()])


def test_a_variable_may_go_meanwhile() -> None:
    assert redacted("with hf_abcdefgh", Vanishing(HF_TOKEN="hf_abcdefgh")) == f"with {HIDDEN}"


def test_values_of_the_environment_are_hidden_by_their_names() -> None:
    environment = {"HF_TOKEN": "hf_abcdefgh", "HOME": "/root/home", "MY_KEY": "short", "AWS_SECRET_FILE": "/run/secret"}
    text = "hf_abcdefgh was refused in /root/home by short, see /run/secret"
    assert redacted(text, environment) == f"{HIDDEN} was refused in /root/home by short, see /run/secret"


@pytest.mark.parametrize(
    "name", ["COMET_API_KEY", "apikey", "apiKey", "api-key", "key", "token", "AWS_SECRET_ACCESS_KEY"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert is_secret_name(f"MY_{name}")


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "tokenizer", "monkey", "keyboard", "token_file", "max_seqlen"]
)
def test_names_that_only_look_so(name: str) -> None:
    assert not is_secret_name(name)


def test_places_in_a_tree_are_named_and_values_are_not() -> None:
    tree = {
        "comet": {"enabled": True, "api_key": "S3CRET"},
        "several": [{"password": ""}, {"password": "S3CRET"}],
        "random_ltd": {"token_lr": 0.1},
        "url": "https://u:S3CRET@host",
        "plain": "mail a@b",
        "numbers": {"password": 12345678, "max_tokens": 512, "secrets": ["S3CRET"], "credentials": [], "api_key": None},
        "headers": {"Authorization": "Bearer S3CRET"},
    }
    secrets = ["comet.api_key", "several.1.password", "numbers.password", "numbers.secrets", "headers.Authorization"]
    assert list(secret_keys(tree)) == secrets
    assert list(secret_urls(tree)) == ["url"]


def test_lines_of_progress_are_redacted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "S3CRET-S3CRET")
    say("reading https://host/a?sig=S3CRET with S3CRET-S3CRET")
    warn("no https://u:S3CRET@host/a")
    printed = capsys.readouterr()
    assert "S3CRET" not in printed.out + printed.err
    assert printed.out == f"reading https://host/a with {HIDDEN}\n"


OBEYED = [*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]


@pytest.mark.parametrize("function", [printable, one_line, sayable])
def test_what_a_terminal_obeys_is_written_out(function: Callable[[str], str]) -> None:
    for number in [*OBEYED, 0xD800, 0xDCFF, 0xDFFF]:
        written = f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
        assert function(f"a{chr(number)}b") == f"a{written}b"


@pytest.mark.parametrize("text", ["日本語", "naïve", "e\u0301", "😀👩\u200d🔬", "العربية\u200f", "ไทย", "a\\b", "→ µ"])
def test_scripts_accents_and_emoji_stay(text: str) -> None:
    assert printable(text) == one_line(text) == text


def test_line_ends_and_tabs_stay_where_lines_are_ours() -> None:
    assert printable("a\n\tb") == "a\n\tb"
    assert one_line("a\n\tb\r") == r"a\n\tb\x0d"


def test_everything_that_is_said_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    add_reader(heard.append)
    for tell in (say, warn, complain, show):
        tell("the member \x1b]0;title\x07 of https://u:p@host/a?b \u202e\udcff")
    remove_reader(heard.append)
    captured = capsys.readouterr()
    said = r"the member \x1b]0;title\x07 of https://host/a \u202e\udcff"
    assert captured.out.splitlines() == [said, said]
    assert captured.err.splitlines() == [f"WARNING: {said}", said]
    assert heard == [said, f"WARNING: {said}", said]


def test_a_fault_in_data_is_one_line_whatever_a_key_holds() -> None:
    fault = DataFault("sample 'a\nWARNING: all is well\x1b[2J' is bad", kind="utf-8")
    assert str(pickle.loads(pickle.dumps(fault))) == r"sample 'a\nWARNING: all is well\x1b[2J' is bad"


@pytest.mark.parametrize(
    ("text", "most", "left"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abc[... 1 characters left out ...]efg"),
        ("abcdefg", 5, "abc[... 2 characters left out ...]fg"),
        ("a" * 2000, 0, "[... 2,000 characters left out ...]"),
    ],
)
def test_the_middle_of_a_long_text_is_left_out(text: str, most: int, left: str) -> None:
    assert shortened(text, most) == left


@pytest.mark.parametrize(
    "value", ["a" * 10_000, 10**400, {str(key): key for key in range(1000)}, ValueError("a" * 10_000)]
)
def test_a_value_from_outside_is_shortened(value: object) -> None:
    assert brief(value) == shortened(repr(value), 200)
    assert len(brief(value)) < 250


def test_what_is_said_is_cut_and_a_result_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a" * 1_000_000
    heard: list[str] = []
    add_reader(heard.append)
    for tell in (say, warn, complain):
        tell(text)
    remove_reader(heard.append)
    captured = capsys.readouterr()
    for line in [*heard, *captured.out.splitlines(), *captured.err.splitlines()]:
        assert LONGEST_MESSAGE_CHARS < len(line) < LONGEST_MESSAGE_CHARS + 100
    assert len(heard) == 3
    show(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_secret_at_the_cut_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-s3cr3t")
    half = LONGEST_MESSAGE_CHARS // 2
    for shift in range(20):
        assert "s3cr" not in sayable("a" * (half - shift) + "s3cr3t-s3cr3t" + "b" * LONGEST_MESSAGE_CHARS)


def test_a_fault_in_data_is_of_a_bounded_length() -> None:
    assert len(str(DataFault("\n" * 1_000_000))) < LONGEST_MESSAGE_CHARS + 100
