"""YAML that runs nothing, hides nothing and does not grow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.plain_yaml import MOST_CHARACTERS, MOST_VALUES, read_yaml

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def refusal(text: str) -> str:
    with pytest.raises(UserError, match=r"^run.yaml is not valid YAML: ") as error:
        read_yaml(text, "run.yaml")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("run.yaml is not valid YAML: ")


@given(trees)
def test_what_was_written_is_read(tree: object) -> None:
    assert read_yaml(yaml.safe_dump(tree), "run.yaml") == tree


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system",
        "!!python/object/new:os.system",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_tags_of_python_are_refused_and_run_nothing(tag: str, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    said = refusal(f"a: 1\nb: {tag} ['touch {trap}']")
    assert "could not determine a constructor for the tag" in said
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
    assert read_yaml("a: &a {lr: 1}\nb: {<<: *a, c: 2}\nd: *a", "x") == {
        "a": {"lr": 1},
        "b": {"lr": 1, "c": 2},
        "d": {"lr": 1},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "a value refers to itself"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "x" * MOST_CHARACTERS, "characters, more than"),
        ("a: [1", "expected ',' or ']'"),
        ("a: \x00", "special characters are not allowed"),
        ("? [a]\n: 1", "found unhashable key"),
    ],
)
def test_what_cannot_be_is_one_line(text: str, said: str) -> None:
    assert said in refusal(text)


def test_messages_quote_no_value() -> None:
    assert "S3CRET" not in refusal("password: S3CRET: x")
    assert "S3CRET" not in refusal("password: !!python/object:S.S 'S3CRET'")
