"""The run's folder: what a resumed run may change, and that one process at a time holds it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.files import write_atomically
from maskloom.runs import read_metrics
from maskloom.status import attempt_steps, note_attempt, read_status
from maskloom.tokenizers.loading import read_definition
from maskloom.train.checkpoint.state import read_state
from maskloom.train.refusal import read_intervals
from maskloom.train.run_dir import PACKAGES, RunDir, newest_named, recorded_threads
from tests.conftest import files_of_at_most

ALONE = World()


class TestRunDir:
    def test_the_configuration_is_written_whole(self, started: RunConfig) -> None:
        assert load_config(Path(started.run_dir) / "config.yaml") == started

    def test_a_second_writer_is_refused(self, config: RunConfig) -> None:
        held = RunDir(config, ALONE)
        second = RunDir(config, ALONE)
        with pytest.raises(UserError, match=r"is in use by process \d+ on "):
            second.meet()
        second.fail("in use", "", can_retry=False)
        second.close()
        assert Path(config.run_dir).exists(), "the folder is the first one's"
        held.close()
        third = RunDir(config, ALONE)
        third.meet()
        third.close()

    def test_the_lock_goes_with_its_process(self, config: RunConfig, write_config: Callable[[dict], Path]) -> None:
        path = write_config(config.model_dump(mode="json", by_alias=True))
        code = (
            "import os, sys; from maskloom.config_file import load_config; from maskloom.distributed import World; "
            "from maskloom.train.run_dir import RunDir; run = RunDir(load_config(sys.argv[1]), World()); os._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
        RunDir(config, ALONE).meet()

    def test_other_ranks_write_nothing(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        run = begin(config, World(1, 2))
        run.record("running", 3)
        run.refresh(4)
        run.stop("SIGTERM", 4)
        run.fail("never mind", "", can_retry=True)
        assert not Path(config.run_dir).exists()

    def test_the_environment_is_that_of_the_beginning(
        self, config: RunConfig, begin: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.get_num_threads", lambda: 3)
        run = begin(config, World(size=2))
        first = json.loads((run.folder / "environment.json").read_text())
        assert (first["threads"], first["world_size"]) == (3, 2)
        assert first["packages"].keys() == set(PACKAGES)
        monkeypatch.setattr("torch.get_num_threads", lambda: 7)
        run.close()
        run = begin(config)
        assert json.loads((run.folder / "environment.json").read_text()) == first
        assert run.threads(World(), 16) == 3

    def test_a_run_that_fails_before_it_begins_leaves_nothing(self, config: RunConfig) -> None:
        run = RunDir(config, ALONE)
        run.meet()
        assert run.fail("no such thing", "", can_retry=False) is None
        assert not Path(config.run_dir).exists()

    def test_a_run_that_fails_later_says_so(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        run = begin(config, step=4)
        assert run.fail("the loss is nan", "Lower it.", can_retry=False)
        status = read_status(run.folder)
        assert status is not None
        assert (status.state, status.step, status.total_steps) == ("failed", 4, 12)
        assert (status.reason, status.advice, status.can_retry) == ("the loss is nan", "Lower it.", False)
        assert (status.attempt, status.world_size, status.hosts) == (1, 1, (socket.gethostname(),))

    def test_a_start_that_is_refused_leaves_the_status_as_it_was(
        self, config: RunConfig, begin: Callable[..., RunDir]
    ) -> None:
        run = begin(config, step=4)
        run.stop("SIGTERM", 4)
        run.close()
        before = read_status(run.folder)
        again = RunDir(config, ALONE)
        again.meet()
        assert again.fail("fewer steps than before", "", can_retry=False)
        assert read_status(run.folder) == before
        again.close()
        taken = RunDir(config, ALONE)
        taken.meet()
        assert taken.fail("the port is taken", "", can_retry=True)
        status = read_status(run.folder)
        assert status is not None
        assert (status.state, status.attempt) == ("failed", 2)

    def test_a_start_that_fails_without_its_checkpoints_in_sight_does_not_forget_them(
        self, config: RunConfig, begin: Callable[..., RunDir]
    ) -> None:
        run = begin(config, step=4)
        latest = run.folder / "checkpoints" / "latest.json"
        latest.parent.mkdir()
        latest.write_text('{"name": "step-00000004", "step": 4}')
        run.stop("SIGTERM", 4)
        run.close()
        latest.unlink()  # what holds it is not mounted
        again = RunDir(config, ALONE)
        again.meet()
        assert again.fail("the port is taken", "", can_retry=True)
        again.close()
        status = read_status(run.folder)
        assert status is not None
        assert (status.state, status.last_good_checkpoint) == ("failed", "step-00000004")

    @pytest.mark.parametrize("text", ['{"name": "../../x"}', '{"name": null}', "[]", "{", ""])
    def test_a_pointer_that_names_no_checkpoint_is_none(
        self, text: str, config: RunConfig, begin: Callable[..., RunDir]
    ) -> None:
        run = begin(config)
        (run.folder / "checkpoints").mkdir()
        (run.folder / "checkpoints" / "latest.json").write_text(text)
        assert run.last_good_checkpoint() is None

    @pytest.mark.parametrize("threads", ["0", "-3", "1e12", "Infinity", "null"])
    def test_a_number_of_threads_that_cannot_be_had_is_refused(
        self, threads: str, config: RunConfig, begin: Callable[..., RunDir]
    ) -> None:
        run = begin(config)
        (run.folder / "environment.json").write_text(f'{{"threads": {threads}}}')
        with pytest.raises(UserError, match=r"environment\.json is damaged"):
            run.threads(World(), 4)

    def test_a_link_that_leads_nowhere_and_a_name_that_cannot_be_are_refused(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "not mounted")
        for name, said in (
            ("link", "is a link to .*not mounted, which is not there"),
            ("x" * 300, "File name too long"),
        ):
            run = RunDir(config.model_copy(update={"run_dir": str(tmp_path / name)}), ALONE)
            with pytest.raises(UserError, match=said):
                run.meet()
            run.close()

    def test_a_folder_named_stop_ends_no_run(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        run = begin(config)
        (run.folder / "stop").mkdir()
        run.record("done", 12)
        assert (run.folder / "stop").is_dir()

    def test_a_rank_that_comes_late_does_not_speak_for_a_newer_attempt(
        self, config: RunConfig, begin: Callable[..., RunDir]
    ) -> None:
        lost = begin(config, step=4)
        lost.close()
        newer = begin(config, step=4)
        before = read_status(newer.folder)
        lost.fail("nobody answers", "", can_retry=True)
        assert read_status(newer.folder) == before
        newer.close()

    def test_the_first_failure_is_the_status(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        first = begin(config, step=4)
        other = RunDir(config, World(1, 2))
        other.attempt = first.attempt
        assert other.fail("rank 1: no memory", "", can_retry=True)
        assert first.fail("connection closed", "", can_retry=True) is False
        first.refresh(5)
        status = read_status(first.folder)
        assert status is not None
        assert (failure := first.failure()) is not None
        assert failure.reason == status.reason
        assert (status.state, status.reason) == ("failed", "rank 1: no memory")
        first.close()
        again = begin(config, step=4)
        status = read_status(again.folder)
        assert status is not None
        assert (status.state, status.attempt, status.reason) == ("running", 2, "")

    def test_each_start_is_counted_and_listed(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        for step in (0, 4, 4):
            begin(config, step=step).close()
        lines = [json.loads(line) for line in (Path(config.run_dir) / "attempts.jsonl").read_text().splitlines()]
        assert [(line["attempt"], line["step"]) for line in lines] == [(1, 0), (2, 4), (3, 4)]
        assert lines[0].items() >= {"world_size": 1, "hosts": [socket.gethostname()]}.items()

    def test_a_refresh_shows_that_the_run_is_at_work(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        run = begin(config)
        before = read_status(run.folder)
        run.refresh(3)
        after = read_status(run.folder)
        assert before is not None
        assert after is not None
        assert (after.state, after.step) == ("running", 3)
        assert after.updated_unix_s >= before.updated_unix_s
        run.record("done", 12)
        run.refresh(3)
        status = read_status(run.folder)
        assert status is not None
        assert (status.state, status.step) == ("done", 12)

    def test_a_full_disk_ends_no_run_that_is_at_work(
        self,
        config: RunConfig,
        begin: Callable[..., RunDir],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        run = begin(config)
        with files_of_at_most(1):
            for step in (3, 4):
                run.record("running", step)
            with pytest.raises(OSError, match=r"status\.json"):
                run.record("done", 12)
        assert capsys.readouterr().err.count("cannot write the run's status") == 1
        run.record("done", 12)
        status = read_status(run.folder)
        assert status is not None
        assert (status.state, status.step) == ("done", 12)

    def test_a_stop_is_carried_out_once(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        run = begin(config)
        (run.folder / "stop").write_text("maintenance")
        run.stop("the file stop (maintenance)", 3)
        status = read_status(run.folder)
        assert status is not None
        assert (status.state, status.step, status.can_retry) == ("stopped", 3, True)
        assert "maintenance" in status.reason
        assert not (run.folder / "stop").exists()

    def test_a_stop_file_from_after_the_end_asks_nobody(self, config: RunConfig, begin: Callable[..., RunDir]) -> None:
        run = begin(config)
        run.record("stopped", 3)
        run.close()
        (run.folder / "stop").touch()  # somebody does not want it to resume yet
        RunDir(config, ALONE).close()
        assert (run.folder / "stop").exists()
        (again := begin(config)).record("done", 12)
        again.close()
        (run.folder / "stop").touch()
        RunDir(config, ALONE).close()
        assert not (run.folder / "stop").exists()

    def test_a_damaged_status_is_refused(self, started: RunConfig) -> None:
        file = Path(started.run_dir) / "status.json"
        values = json.loads(file.read_text())
        wrong = [
            ("attempt", "x"),
            ("step", None),
            ("state", "fine"),
            ("can_retry", "no"),
            ("reason", 3),
            ("world_size", 1.5),
        ]
        wrong += [
            ("last_good_checkpoint", "../../x"),
            ("last_good_checkpoint", 4),
            ("updated_unix_s", "now"),
            ("more", 1),
        ]
        for text in ("{", "[]", *(json.dumps({**values, name: value}) for name, value in wrong)):
            file.write_text(text)
            run = RunDir(started, ALONE)
            with pytest.raises(UserError, match=r"status\.json is damaged"):
                run.meet()
            run.close()

    @pytest.mark.parametrize(("given", "expected"), [("5", 5), ("", 4), ("0", 4), ("many", 4)])
    def test_threads_are_the_share_of_the_cores_or_what_is_asked_for(
        self, given: str, expected: int, config: RunConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert RunDir(config, World(size=2, local_size=2)).threads(World(size=2, local_size=2), 8) == expected

    def test_more_ranks_than_cores_have_a_thread_each(self, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert RunDir(config, World()).threads(World(size=8, local_size=8), 2) == 1


def test_an_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("old", "new ü"):
        write_atomically(tmp_path / "file", text)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new ü"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("environment.json", recorded_threads),
        ("metrics.jsonl", read_metrics),
        ("passed_over.json", read_intervals),
        ("data.json", read_state),
        ("attempts.jsonl", attempt_steps),
        ("attempts.jsonl", lambda run: note_attempt(run, {})),
        ("config.yaml", lambda run: load_config(run / "config.yaml")),
        ("tokenizer.json", lambda run: read_definition(run / "tokenizer.json")),
    ],
)
def test_a_pipe_in_the_place_of_a_runs_file_is_not_waited_for(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not a file: it is a named pipe"):
        read(tmp_path)


def test_a_pipe_in_the_place_of_the_newest_checkpoints_name_names_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    os.mkfifo(tmp_path / "checkpoints" / "latest.json")
    assert newest_named(tmp_path) is None
