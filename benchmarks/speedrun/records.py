"""The rows of the table (`records.yaml`), and the results that were measured for them.

A result belongs to all that decides its loss: the run's whole configuration, the corpus, the tokenizer, the seed and the number
of processes. Their digest is its key. So a changed recipe or corpus is measured anew, and an interrupted measurement resumes.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Path(__file__).with_name("records.yaml")
SEEDS = (0, 1, 2)
LIMIT_CPU_S = 240.0
"""CPU-seconds that a record may take, over all ranks and their readers."""
FIXED = ("evaluation.seq_len=64", "evaluation.mask_rate=0.15")
"""Settings that are the same for all records: what the loss is measured with."""


@dataclass(frozen=True)
class Record:
    """A row of the table.

    Attributes:
        change: what it changes, in words.
        config: file of the configuration, from the root of the repository.
        overrides: settings that replace the file's, as on the command line.
    """

    name: str
    change: str
    config: str
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What trains it, with seed 0."""
        return shlex.join(["maskloom", "train", self.config, "--processes", "2", *self.overrides])

    def loaded(self, *more: str) -> RunConfig:
        """Its configuration."""
        return load_config(ROOT / self.config, [*self.overrides, *FIXED, *more])


def read_records(path: Path = RECORDS) -> list[Record]:
    """All rows, in the order of the table."""
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    records = [Record(**{**row, "overrides": tuple(row.get("overrides", ()))}) for row in rows]
    names = [record.name for record in records]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two records are named {twice}: rename one")
    return records


def recipe_of(record: Record) -> str:
    """Digest of a record's settings, without those that say where its files are, and without the seed."""
    elsewhere = {"run_dir": True, "tokenizer": True, "seed": True, "data": {"train"}}
    settings = record.loaded().model_dump(mode="json", exclude=elsewhere)
    return _digest(json.dumps(settings, sort_keys=True).encode())[:16]


def key_of(record: Record, data: Path, seed: int, processes: int) -> str:
    """Digest of all that decides a result.

    Args:
        data: folder with `shards` and `tokenizer`.
    """
    files = [data / "shards" / "index.json", data / "tokenizer" / "tokenizer.json"]
    said = [recipe_of(record), *(_digest(file.read_bytes()) for file in files), str(seed), str(processes)]
    return _digest("\n".join(said).encode())[:16]


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> what was measured."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep_result(path: Path, key: str, result: dict[str, Any]) -> None:
    """Add a result to the file, at once: whatever is interrupted later has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(read_results(path) | {key: result}, indent=1) + "\n")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
