"""Which errors another attempt of the same command may get past."""

from __future__ import annotations

import errno
import os

import pytest

from maskloom.errors import DataFault, PassingFault, SaveFailed, UserError, restart_may_help


@pytest.mark.parametrize(
    "error", [PassingFault("down"), SaveFailed("full"), ChildProcessError("killed"), TimeoutError()]
)
def test_what_may_pass(error: Exception) -> None:
    assert restart_may_help(error)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "ESTALE", "ECONNRESET", "ENOMEM", "EADDRINUSE", "EMFILE"])
def test_what_the_system_may_answer_otherwise_later(name: str) -> None:
    number = getattr(errno, name)
    assert restart_may_help(OSError(number, os.strerror(number)))


@pytest.mark.parametrize("error", [UserError("bad"), DataFault("bad"), OSError("AF_UNIX path too long")])
def test_what_lasts(error: Exception) -> None:
    assert not restart_may_help(error)


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "EROFS", "EFBIG", "ENAMETOOLONG", "ENOTDIR", "EISDIR", "ELOOP"])
def test_what_the_system_answers_until_somebody_changes_something(name: str) -> None:
    number = getattr(errno, name)
    assert not restart_may_help(OSError(number, os.strerror(number)))
