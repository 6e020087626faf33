"""`python -m rehearse`: what it asks of the environment, and its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from rehearse.__main__ import CASES, REPOSITORY, is_release_of, lowest_versions, main
from rehearse.report import MODERN, WHOLE


def test_the_lowest_versions_are_read_from_the_project() -> None:
    found = lowest_versions((REPOSITORY / "pyproject.toml").read_text())
    assert found.keys() == {"torch", "transformers"}
    assert lowest_versions('"torch>=2.11",  # tensors\n"transformers>=5.17",') == {
        "torch": "2.11",
        "transformers": "5.17",
    }


@pytest.mark.parametrize(
    ("version", "is_one"), [("2.11.0+cu130", True), ("2.11", True), ("2.110.0", False), ("2.13.0+cpu", False)]
)
def test_releases(version: str, is_one: bool) -> None:
    assert is_release_of(version, "2.11") is is_one


def test_every_case_is_one_of_the_benchmarks() -> None:
    from step.cases import CASES as KNOWN

    assert {*WHOLE, MODERN} == {*CASES} - {"zero3"}
    assert {*WHOLE, MODERN} <= {case.name for case in KNOWN["cuda"]}


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["rehearse", "--only", "compile,all"])
    with pytest.raises(SystemExit):
        main()
    assert "all: there are compile, fused-adam, unit" in capsys.readouterr().err


def test_the_environment_is_set_up_by_a_file_that_can_run() -> None:
    setup = Path(REPOSITORY, "benchmarks/rehearse/setup.sh")
    assert setup.stat().st_mode & 0o111
