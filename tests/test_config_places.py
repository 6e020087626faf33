"""Which line of a file a fault is about."""

from __future__ import annotations

import pytest

from maskloom.config_places import NOWHERE, Places, inside, override_path
from maskloom.plain_yaml import Path

TEXT = """\
base: &base
  lr: 1
optimizer:
  <<: *base
  warmup_steps: 5
phases:
  - steps: 1
    seq_len: 8
  - {steps: 2}
"""


@pytest.mark.parametrize(
    ("path", "message", "said"),
    [
        (("optimizer", "lr"), "", "line 2: "),  # where it is written, not where it is merged
        (("optimizer", "beta1"), "", "line 3: "),  # the section, if the key itself is not there
        (("phases", 0, "seq_len"), "", "line 8: "),
        (("phases", 1, "steps"), "", "line 9: "),
        (("data",), "", ""),
        ((), "optimizer.warmup_steps 5 must be less than the run's 3 steps (the sum of phases.N.steps)", "line 5: "),
        ((), "phases.1.steps 2 and phases.0.seq_len 8 and phases.0.steps 1", "lines 7, 8 and 9: "),
        (("phases", 0), "steps is missing: set it, or seq_len", "lines 7 and 8: "),
        (("optimizer",), "the optimizer has lr", "line 3: "),  # `lr` may be a word
        ((), "data.train is what it is", ""),
    ],
)
def test_a_fault_is_about_the_lines_of_the_keys_that_it_names(path: Path, message: str, said: str) -> None:
    assert Places(TEXT).of(path, message).said == said


def test_a_setting_of_the_command_line_has_no_line() -> None:
    places = Places(TEXT, [override_path("phases.0.steps=3"), override_path(" deepspeed = {}")])
    for path in (("phases", 0, "steps"), ("deepspeed", "zero")):
        assert places.of(path).said == "command line: "
    assert places.of((), "phases.0.steps 3 is less than phases.1.steps").said == "command line: "
    assert places.of(("phases", 1, "steps")).said == "line 9: "


def test_without_a_file_there_are_no_places() -> None:
    assert Places().of(("optimizer", "lr"), "optimizer.lr is wrong") == NOWHERE


def test_the_keys_before_a_message_belong_to_the_path() -> None:
    assert inside(("deepspeed",), "Value error, 'a': 2: 'b.c': it is wrong") == (
        ("deepspeed", "a", 2, "b.c"),
        "it is wrong",
    )
