"""One tiny trained run for the commands that need one, and `maskloom` in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maskloom.cli import main

Command = Callable[..., str]


@pytest.fixture
def succeeds(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `maskloom ...` here and return what it prints; it must succeed."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `maskloom COMMAND ...` here and return its message; it must be refused as a user's fault."""

    def run(command: str, *arguments: object) -> str:
        capsys.readouterr()
        code = main([command, *(str(argument) for argument in arguments)])
        message = capsys.readouterr().err
        assert code == 1
        assert message.startswith(f"maskloom {command}: ")
        assert message.count(f"maskloom {command}: ") == 1
        assert "Traceback" not in message
        return message

    return run
