"""What hosts get of this machine's variables: DeepSpeed shows all of it in command lines and logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.launch.environment import for_hosts


@pytest.fixture(autouse=True)
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home and this folder are empty: no DeepSpeed environment file of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_secrets_stay_here_by_name_and_by_what_is_in_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "NCCL_DEBUG": "INFO",
        "HF_TOKEN": "S3CRET-S3CRET",
        "https_proxy": "http://ada:S3CRET@proxy:3128",
        "http_proxy": "http://proxy:3128",
        "AWS_SECRET_ACCESS_KEY": "S3CRET-S3CRET",
        "HF_$(touch ran)": "1",
        "EDITOR": "vi",
    }
    assert for_hosts(given) == {"NCCL_DEBUG": "INFO", "http_proxy": "http://proxy:3128"}
    said = capsys.readouterr().err
    assert "S3CRET" not in said
    assert "HF_TOKEN is not passed to the hosts" in said
    assert "https_proxy is not passed to the hosts" in said


@pytest.mark.parametrize("line", ["WANDB_API_KEY=S3CRET", "https_proxy=http://ada:S3CRET@proxy:3128"])
def test_a_file_with_a_secret_is_refused(line: str) -> None:
    Path(".deepspeed_env").write_text(f"NCCL_DEBUG=INFO\n{line}\n")
    with pytest.raises(UserError, match=f"line 2: {line.partition('=')[0]} would stand in the command lines") as error:
        for_hosts({})
    assert "S3CRET" not in str(error.value)
