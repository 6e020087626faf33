"""YAML that runs nothing, hides nothing and does not grow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.plain_yaml import MOST_CHARACTERS, MOST_VALUES, read_yaml, write_yaml
from maskloom.scalars import Plain, read_by_form

words = st.sampled_from(
    ["1e3", "0123", "no", "y", "1:40", "1_0", "0x1F", "2026-11-28", "~", "", "=", "<<", ".inf", "# x", "'"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
    | st.text(max_size=8)
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | words, inner, max_size=3)
)


def refusal(text: str) -> str:
    with pytest.raises(UserError, match=r"^run.yaml is not valid YAML: ") as error:
        read_yaml(text, "run.yaml")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("run.yaml is not valid YAML: ")


def read(text: str) -> object:
    return read_by_form(read_yaml(text, "run.yaml"))


@given(trees)
def test_what_was_written_is_read_here_and_by_others(tree: object) -> None:
    text = write_yaml(tree)
    assert read(text) == tree
    assert yaml.safe_load(text) == tree


def test_values_without_quotes_stay_as_they_are() -> None:
    values = read_yaml("[1e3, '1e3', no, \"0123\", ~, null, true # a comment\n]", "run.yaml")
    assert values == ["1e3", "1e3", "no", "0123", None, None, "true"]
    assert [isinstance(value, Plain) for value in values] == [True, False, True, False, False, False, True]


def test_keys_are_text() -> None:
    assert read_yaml("1: a\non: b\n~: c\n'x': d\n2026-11-28: e", "run.yaml") == {
        "1": "a",
        "on": "b",
        "~": "c",
        "x": "d",
        "2026-11-28": "e",
    }


def test_what_two_places_refer_to_becomes_two_values() -> None:
    first, second = read_yaml("[&a {steps: 1}, *a]", "run.yaml")
    first["steps"] = 2
    assert second == {"steps": "1"}


@pytest.mark.parametrize("text", ["[a] #b", "'a' #b", "'a' b", "{a: 1} x", "[a]\n---\n[b]"])
def test_nothing_may_stand_behind_one_value(text: str) -> None:
    with pytest.raises(UserError, match="the value is not valid YAML"):
        read_yaml(text, "the value", is_one_value=True)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system",
        "!!python/object/new:os.system",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!int",
        "!!binary",
        "!mine",
    ],
)
def test_tags_are_refused_and_run_nothing(tag: str, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    said = refusal(f"a: 1\nb: {tag} ['touch {trap}']")
    assert "tags mean nothing here" in said
    assert "(line 2, column 4)" in said
    assert not trap.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  lr: 1\n  lr: 2", "the key 'lr' stands here and in line 3: remove one (line 4, column 3)"),
        ("a: 1\n'a': 2", "the key 'a' stands here and in line 1"),
        ("[{b: 1, b: 1}]", "the key 'b' stands here and in line 1"),
        ("a: &x {k: 1, k: 2}", "the key 'k' stands here"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text: str, said: str) -> None:
    assert said in refusal(text)


def test_a_bomb_of_references_is_refused_before_it_is_built() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert f"stands for more than {MOST_VALUES:,} values" in refusal("\n".join(lines))
    merges = ["b0: &b0 {x: 1}"] + [f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 10)}]}}" for n in range(1, 30)]
    assert f"stands for more than {MOST_VALUES:,} values" in refusal("\n".join(merges))


def test_references_that_stay_small_are_read() -> None:
    assert read("a: &a {lr: 1}\nb: {<<: *a, c: 2}\nd: *a") == {
        "a": {"lr": 1},
        "b": {"lr": 1, "c": 2},
        "d": {"lr": 1},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "a value refers to itself"),
        ("a: b\n---\na: c", "but found another document"),
        ("a:\n\tb: 1", "found character '\\t' that cannot start any token"),
        ("a: x\u2028y", "it holds U+2028"),
        ("a: x\x85y", "it holds U+0085"),
        ("<<: 3", "<< takes a mapping"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "x" * MOST_CHARACTERS, "characters, more than"),
        ("a: [1", "expected ',' or ']'"),
        ("a: 1\nb: \x00", "U+0000, which YAML does not allow: remove it (line 2)"),
        ("? [a]\n: 1", "a key is a list or a mapping"),
    ],
)
def test_what_cannot_be_is_one_line(text: str, said: str) -> None:
    assert said in refusal(text)


def test_messages_quote_no_value() -> None:
    assert "S3CRET" not in refusal("password: S3CRET: x")
    assert "S3CRET" not in refusal("password: !!python/object:S.S 'S3CRET'")
