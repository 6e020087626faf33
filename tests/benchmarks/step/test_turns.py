"""Processes that answer, refuse, fail or end; and whose turn it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from step import turns
from step.cases import TINY, choose_systems
from step.jobs import Job, Training
from step.text import Text

from maskloom.errors import UserError

SYSTEMS = choose_systems(["maskloom-eager", "hf-sdpa", "hf-eager"], "cpu")


def test_a_job_survives_its_way_to_the_process() -> None:
    job = Job(SYSTEMS[0], Training(TINY, vocab_size=512, seed=7), Text("corpus", "tokenizer"), "cpu", 2, True)
    assert Job.loads(job.dumps()) == job


class Scripted:
    """Stands for a process: answers from a table of (system, request)."""

    answers: dict[tuple[str, str], Any]
    asked: list[tuple[str, str]]

    def __init__(self, job: Job) -> None:
        self.name = job.system.name

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *error: object) -> None: ...

    def ask(self, what: str, **given: Any) -> dict[str, Any]:
        self.asked.append((self.name, what))
        answer = self.answers.get((self.name, what), {"step_s": [1.0]})
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.answers, Scripted.asked = {}, []
    monkeypatch.setattr(turns, "Process", Scripted)
    return Scripted


def measure(profiles: bool = False) -> dict[str, Any]:
    return turns.measure_case(TINY, SYSTEMS, Text("c", "t"), "cpu", 1, profiles, lambda line: None)


def test_systems_take_turns_forwards_and_backwards(scripted: type[Scripted]) -> None:
    found = measure(profiles=True)
    names = [system.name for system in SYSTEMS]
    ready = [(name, "ready") for name in names]
    rounds = [(name, "turn") for name in [*names, *reversed(names)]]
    assert scripted.asked == [*ready, *rounds, *((name, "profile") for name in names)]
    assert [turn["round"] for turn in found["systems"]["hf-sdpa"]["turns"]] == [0, 1]
    assert not found["failures"]


def test_a_system_that_fails_is_listed_and_the_others_continue(scripted: type[Scripted]) -> None:
    scripted.answers = {
        ("hf-sdpa", "ready"): RuntimeError("no memory"),
        ("hf-eager", "turn"): RuntimeError("the loss is nan"),
    }
    found = measure()
    assert found["systems"].keys() == {"maskloom-eager"}
    assert found["failures"] == {"hf-sdpa": "ready: no memory", "hf-eager": "turn: the loss is nan"}
    assert scripted.asked.count(("hf-eager", "turn")) == 1


def test_what_a_user_can_mend_ends_it(scripted: type[Scripted]) -> None:
    scripted.answers = {("hf-sdpa", "ready"): UserError("no tokenizer")}
    with pytest.raises(UserError, match="no tokenizer"):
        measure()


def test_a_process_that_ends_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "dumps", lambda job: json.dumps({"no": "job"}))
    reason = r"(?s)the process ended with 1: .*KeyError: 'training'"
    job = Job(SYSTEMS[0], Training(TINY), Text("c", "t"), "cpu", 1)
    with turns.Process(job) as process, pytest.raises(RuntimeError, match=reason):
        process.ask("ready")
