"""`python -m maskloom.launch.doctor.look`: a request as JSON on stdin, answers as JSON lines.

The first line is the host's clock, sent at once so that little time lies between; the second are its `Facts`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path

import maskloom
from maskloom.launch.doctor.facts import Facts, Request
from maskloom.launch.doctor.look.folder import look_at_folder
from maskloom.launch.doctor.look.gpus import look_at_gpus
from maskloom.launch.doctor.look.rank import as_a_rank
from maskloom.launch.doctor.look.software import file_digest, packages, source_digest
from maskloom.launch.ports import is_free, next_free_port, spare_port
from maskloom.program import run_program


def main() -> int:
    """Answer one request. Returns the exit code: 0 whatever was found."""
    request = Request(**json.loads(sys.stdin.readline()))
    print(json.dumps({"unix_s": time.time()}), flush=True)
    os.environ |= request.environment
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        answer = json.dumps(asdict(look(request)))
    print(answer, flush=True)
    return 0


def look(request: Request) -> Facts:
    """Find out everything about this machine that `Facts` has room for."""
    import torch

    from maskloom.train.checkpoint.room import free_memory_bytes
    from maskloom.train.engine.device import unusable_gpus

    gpus = look_at_gpus(torch.cuda.device_count())
    return Facts(
        hostname=socket.gethostname(),
        python=platform.python_version(),
        packages=packages(),
        source=source_digest(Path(maskloom.__file__).parent),
        device="cuda" if gpus else "cpu",
        cores=len(os.sched_getaffinity(0)),
        memory_free_bytes=free_memory_bytes(),
        gpus=gpus,
        unusable_gpus=unusable_gpus(),
        config_digest=file_digest(Path(request.config)) if request.config else None,
        run=look_at_folder(request) if request.run_dir else None,
        is_port_free=is_free(request.port),
        port=next_free_port(request.port) if request.port else 0,
        spare_port=spare_port(),
        **(as_a_rank(request) if request.config else {}),
    )


if __name__ == "__main__":
    run_program("maskloom.launch.doctor.look", main)
