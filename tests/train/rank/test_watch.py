"""The watch of a rank: limits of time, how failures are told, and what is a peer's fault."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import DistBackendError

from maskloom.config import RunConfig
from maskloom.config_file import parse_config
from maskloom.distributed import World
from maskloom.errors import PassingFault, UserError
from maskloom.models.build import build_model
from maskloom.status import EXIT_FAILED, EXIT_STOPPED, read_status
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.rank.watch import GROUPS_MORE_S, Watch, is_a_peers
from maskloom.train.run_dir import RunDir


@pytest.fixture
def config(run_config: dict) -> RunConfig:
    run_config["timeouts"] = {"start_s": 500.0, "train_s": 50.0}
    return parse_config(run_config, "run.yaml")


@pytest.fixture
def watch(config: RunConfig, tokenizer: Tokenizer) -> Iterator[Watch]:
    """Of a run that has begun, alone."""
    with Watch() as watch:
        run = RunDir(config, World())
        watch.take_up(run, config.timeouts)
        run.meet()
        watch.join()
        run.begin(config, build_model(config.model, tokenizer, 0)[0], tokenizer, World(), 0)
        watch.log_to(run)
        yield watch


def test_limits_follow_what_the_rank_is_at(watch: Watch) -> None:
    limits: list[float] = []
    assert watch.limit_s() == 500
    watch.pulse.tick("update")
    watch.pulse.stepped(1)
    watch.keep_limits(limits.append)
    watch.keep_limits(limits.append)
    watch.pulse.tick("data")
    assert watch.limit_s() == 50
    with watch.section("save", limits.append):
        assert watch.limit_s() == 500
    assert watch.limit_s() == 50
    watch.pulse.tick("report")  # to a service that may be slow: the run has ended
    assert watch.limit_s() == 500
    # The groups wait longer than the watch, which has more to say.
    assert limits == pytest.approx([55 + GROUPS_MORE_S, 550 + GROUPS_MORE_S, 55 + GROUPS_MORE_S])


def test_the_live_line_says_that_a_request_to_stop_was_heard(watch: Watch) -> None:
    watch.pulse.stepped(3)
    assert watch.doing() == ("training", 3)
    watch.requests.ask("SIGINT")
    assert watch.doing() == ("stopping", 3)


def test_a_signal_is_heard_while_the_main_thread_does_something_else(watch: Watch) -> None:
    signal.raise_signal(signal.SIGUSR2)
    for _ in range(200):
        if watch.requests.reason:
            break
        threading.Event().wait(0.1)
    assert watch.requests.reason == "SIGUSR2"


SPEECHLESS = """
import signal, threading
from maskloom.train.rank import watch

def complain(line):
    raise RuntimeError("nothing can be said")

watch.complain = complain
with watch.Watch():
    signal.raise_signal(signal.SIGTERM)
    threading.Event().wait(60)
"""


def test_a_stop_before_the_start_ends_the_rank_whatever_goes_wrong_on_the_way() -> None:
    done = subprocess.run([sys.executable, "-c", SPEECHLESS], stdin=subprocess.DEVNULL, check=False, timeout=120)
    assert done.returncode == EXIT_STOPPED


@pytest.mark.parametrize(
    ("error", "said", "can_retry"),
    [
        (UserError("the learning rate is blue"), "the learning rate is blue", False),
        (PassingFault("the port is taken"), "the port is taken", True),
        (OSError(28, "No space left on device"), "No space left on device", True),
        (ArithmeticError("one and one is three"), "ArithmeticError: one and one is three", True),
    ],
)
def test_a_failure_is_told_once_and_recorded(
    error: Exception, said: str, can_retry: bool, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch.fail(error) == EXIT_FAILED
    assert watch.run is not None
    status = read_status(watch.run.folder)
    assert status is not None
    assert (status.state, status.can_retry) == ("failed", can_retry)
    assert said in status.reason
    assert ("The same command resumes" in status.advice) == can_retry
    assert capsys.readouterr().err.count(f"maskloom: failed after step 0 of 12: {status.reason}") == 1
    assert said in (watch.run.folder / "logs" / "rank-0.log").read_text()


def test_a_rank_log_names_each_attempt_and_holds_what_is_said(
    config: RunConfig, tokenizer: Tokenizer, watch: Watch
) -> None:
    from maskloom.progress import say, warn

    say("hello")
    warn("beware")
    text = (Path(config.run_dir) / "logs" / "rank-0.log").read_text()
    assert "---- attempt 1: rank 0 on " in text
    assert "torch " in text.splitlines()[0]
    assert " hello\n" in text
    assert " WARNING: beware\n" in text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[pair.cc:537] Connection closed by peer [10.0.0.1]:1"), True),
        (RuntimeError("NCCL error: remote process exited"), True),
        (DistBackendError("x"), True),
        (RuntimeError("shapes do not match"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_what_is_a_peers_fault(error: Exception, expected: bool) -> None:
    assert is_a_peers(error) == expected


def test_memory_that_lacks_from_the_start_lacks_again(watch: Watch) -> None:
    assert watch.fail(MemoryError()) == EXIT_FAILED
    status = read_status(watch.run.folder)
    assert not status.can_retry
    assert "more memory than there is" in status.advice
    assert "resumes" not in status.advice


def test_memory_that_lacks_later_may_be_there_again(watch: Watch) -> None:
    watch.pulse.stepped(1)
    assert watch.fail(MemoryError()) == EXIT_FAILED
    assert read_status(watch.run.folder).can_retry
