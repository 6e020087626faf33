"""The variables that ranks on other machines get, through DeepSpeed's environment file.

DeepSpeed writes them into the command line of every host, where its log and everybody's `ps` show them. So only names that steer
training are passed on, and none that looks like a secret: credentials belong into files on the hosts, or their names
(`HF_TOKEN_PATH`, `AWS_PROFILE`) here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.progress import warn
from maskloom.redaction import is_secret_name, secret_urls

PASSED_ON = re.compile(
    r"(NCCL|GLOO|OMP|KMP|MKL|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|CUDA|HF|TRANSFORMERS|UCX|FI|RDMAV|DEEPSPEED|DS|MASKLOOM|PYTHON)_?[A-Z0-9_]*"
    r"|AWS_(PROFILE|REGION|DEFAULT_REGION|ENDPOINT_URL[A-Z0-9_]*|CONFIG_FILE|SHARED_CREDENTIALS_FILE|CA_BUNDLE)"
    r"|TOKENIZERS_PARALLELISM|LD_LIBRARY_PATH|TMPDIR|https?_proxy|no_proxy|SSL_CERT_FILE"
)
OWN = re.compile(r"CUDA_VISIBLE_DEVICES|DS_ENV_FILE|PYTHONPATH|(OMP|KMP)_(PROC_BIND|PLACES|AFFINITY)")
"""Of one machine or process only, or set by DeepSpeed's launcher itself."""
DEEPSPEED_FILE = ".deepspeed_env"


def for_hosts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What ranks on other machines get: what steers training in this environment, and what the user's DeepSpeed environment
    files say (`DS_ENV_FILE`, else `.deepspeed_env`, in the home folder and then here), which goes first.

    Raises:
        UserError: such a file names a secret, or has a line that is not NAME=VALUE.
    """
    variables = {}
    for name, value in environment.items():
        if not PASSED_ON.fullmatch(name) or OWN.fullmatch(name):
            continue
        if _is_secret(name, value):
            warn(f"{name} is not passed to the hosts: command lines would show it. Put it into a file on each of them")
        else:
            variables[name] = value
    file = environment.get("DS_ENV_FILE", DEEPSPEED_FILE)
    for folder in dict.fromkeys((Path.home(), Path.cwd())):
        if (folder / file).is_file():
            variables |= _read(folder / file)
    return variables


def environment_file(variables: Mapping[str, str]) -> str:
    """The text that DeepSpeed reads: NAME=VALUE, without an empty line, each value such that it comes out of pdsh and of the
    shell of a host as it went in.

    Raises:
        UserError: a value has more than one line.
    """
    lines = []
    for name, value in variables.items():
        if "\n" in value or "\r" in value:
            raise UserError(f"{name} has a value of several lines, which pdsh cannot pass to the hosts: unset it")
        lines.append(f"{name}={in_double_quotes(value)}\n")
    return "".join(lines)


def in_double_quotes(text: str) -> str:
    """A text for between double quotes of a shell, where DeepSpeed puts what has other characters than those of paths;
    pdsh replaces %h and the like in it."""
    return re.sub(r'([\\"$`])', r"\\\1", text).replace("%", "%%")


def without_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the launcher itself, which passes on variables by the beginnings of their names: `MLFLOW...`."""
    return {name: value for name, value in environment.items() if not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    """By its name, or for the password in its URL, as proxies have it."""
    return is_secret_name(name) or any(secret_urls({name: value}))


def _read(file: Path) -> dict[str, str]:
    variables, faults = {}, []
    for number, line in enumerate(read_plain(file).decode(errors="replace").splitlines(), start=1):
        name, mark, value = line.strip().partition("=")
        if not name or name.startswith("#"):
            continue
        if not mark or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            faults.append(f"  line {number}: not NAME=VALUE")
        elif _is_secret(name, value):
            faults.append(
                f"  line {number}: {name} would stand in the command lines and logs of all hosts: take it out"
            )
        variables[name] = value
    if faults:
        raise UserError(f"{file}:\n" + "\n".join(faults))
    return variables
