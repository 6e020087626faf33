"""The variables that ranks on other machines get, through DeepSpeed's environment file.

DeepSpeed writes them into the command line of every host. Its log shows them, and so does `ps` to everybody. So only names that
steer training are passed on, and none that looks like a secret. Credentials belong in files on the hosts; pass on where they are
(`HF_TOKEN_PATH`, `AWS_PROFILE`).
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
"""Never passed on: they are about one machine or process, or DeepSpeed's launcher sets them itself."""
DEEPSPEED_FILE = ".deepspeed_env"


def for_hosts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for ranks on other machines: those of this environment that steer training, and those of the user's DeepSpeed
    environment files (`DS_ENV_FILE`, else `.deepspeed_env`, in the home folder and then here). The files win.

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
    """The text that DeepSpeed reads: lines NAME=VALUE, no empty one. Values are quoted: pdsh and the shell of a host undo it.

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
    """Quote a text that DeepSpeed will put between double quotes of a shell, as it does unless the text looks like a path. pdsh
    would replace %h and the like in it."""
    return re.sub(r'([\\"$`])', r"\\\1", text).replace("%", "%%")


def without_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for DeepSpeed's launcher, which passes on variables by how their names begin: `MLFLOW...`."""
    return {name: value for name, value in environment.items() if not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    """By its name, or by a password in its URL, as proxies have them."""
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
