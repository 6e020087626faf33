"""What ranks tell each other with every step."""

from __future__ import annotations

import pytest
import torch

from maskloom.distributed import World
from maskloom.train.rank.notices import Notices, agreed_reason, in_words


def test_before_the_first_step_nothing_was_heard() -> None:
    assert Notices().heard.read() == {"stop": 0, "saved": 0, "not_saved": 0}


def test_what_was_said_is_heard_as_a_sum_by_name() -> None:
    first, second = Notices(), Notices()
    first.mine["stop"] = 1
    second.mine |= {"stop": 1, "not_saved": 1}
    heard = first.hear(first.said() + second.said())
    assert heard.read() == {"stop": 2, "saved": 0, "not_saved": 1}
    assert first.heard is heard


def test_sums_belong_to_their_step() -> None:
    notices = Notices()
    notices.mine["stop"] = 1
    heard = notices.hear(notices.said())
    notices.hear(torch.zeros(3, dtype=torch.int64))
    assert heard.read()["stop"] == 1
    assert notices.heard.read()["stop"] == 0


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([None, None], ""),
        (["SIGTERM"], "SIGTERM on rank 0"),
        (["SIGTERM", "SIGTERM"], "SIGTERM on all ranks"),
        ([None, "SIGTERM", None, "SIGTERM"], "SIGTERM on rank 1, 3"),
        (["the file stop (enough)", None, "SIGUSR2"], "the file stop (enough) on rank 0; SIGUSR2 on rank 2"),
    ],
)
def test_reasons_are_said_with_their_ranks(reasons: list[str | None], said: str) -> None:
    assert in_words(reasons) == said


def test_one_rank_agrees_with_itself() -> None:
    assert agreed_reason(None, World()) == ""
    assert agreed_reason("SIGTERM", World()) == "SIGTERM on rank 0"
