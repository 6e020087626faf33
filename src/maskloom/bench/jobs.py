"""What a process is started for, as JSON on its command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from maskloom.bench.cases import Case, Device, System
from maskloom.bench.systems import Training
from maskloom.bench.text import Text


@dataclass(frozen=True)
class Job:
    """One system that trains, on this machine.

    Attributes:
        threads: of torch, on a CPU.
        profiles: a profile will be asked for.
    """

    system: System
    training: Training
    text: Text
    device: Device
    threads: int
    profiles: bool = False

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Job:
        tree: dict[str, Any] = json.loads(text)
        training = tree["training"]
        case = training["case"]
        return Job(
            System(**{**tree["system"], "devices": tuple(tree["system"]["devices"])}),
            Training(**{**training, "case": Case(**{**case, "leaves_out": tuple(case["leaves_out"])})}),
            Text(**tree["text"]),
            tree["device"],
            tree["threads"],
            tree["profiles"],
        )
