"""What is asked of a host, and what it tells: JSON on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What is asked of a host.

    Attributes:
        number: of the host, in the hostfile's order.
        slots: ranks it is to run.
        world_size, first_rank: ranks in all, and the number of this host's first.
        config, overrides: of the run, as given.
        run_dir: of the run; empty where the configuration could not be read.
        token_file, token: a file that the asking machine wrote into the run's folder, and its text.
        blocks: of each corpus, to be read and verified.
        port: that the first rank would like to listen on; 0 on other hosts.
        environment: variables that a rank on this host will have.
    """

    number: int = 0
    slots: int = 1
    world_size: int = 1
    first_rank: int = 0
    config: str = ""
    overrides: tuple[str, ...] = ()
    run_dir: str = ""
    token_file: str = ""
    token: str = ""
    blocks: int = 16
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """One GPU, as torch and nvidia-smi see it. What nvidia-smi does not tell is None."""

    name: str
    memory_free_bytes: int | None = None
    memory_total_bytes: int | None = None
    uncorrected_errors: int | None = None
    slowed_by: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    fault: str | None = None
    """Why a product of matrices on it failed or was wrong."""


@dataclass(frozen=True)
class Corpus:
    """A corpus, as this host reads it.

    Attributes:
        path: as the configuration names it, without secrets.
        digest: of its index; None if that does not open.
        read, blocks: verified blocks, and all.
        fault: what is wrong with it; `is_skipped` where a run would pass over that.
    """

    path: str
    digest: str | None = None
    read: int = 0
    blocks: int = 0
    fault: str | None = None
    is_skipped: bool = False


@dataclass(frozen=True)
class RunFolder:
    """The run's folder, or where that would be made.

    Attributes:
        path: the nearest folder that exists.
        sees_token: whether the file is there that the asking machine wrote; None if it wrote none.
        fault: why nothing can be written.
        free_bytes, free_inodes: for this user; None if the file system does not say.
    """

    path: str
    sees_token: bool | None = None
    fault: str | None = None
    free_bytes: int | None = None
    free_inodes: int | None = None


@dataclass(frozen=True)
class Facts:
    """What a host tells.

    Attributes:
        source: digest of maskloom's Python files.
        memory_free_bytes: of the machine, or of this control group where it has less.
        device: `cuda` or `cpu`: what a rank would compute on.
        unusable_gpus: that nvidia-smi shows GPUs which torch cannot use and why, and what to do; None if there are none such.
        config_digest, tokenizer_digest: of the files; None if they cannot be read.
        refusal: what ends a run's own checks here, in its words.
        parameters: of the model; None if it cannot be built.
        fused_adam: how DeepSpeed's FusedAdam is to be had; None if it is not asked for.
        stale_locks: of builds of operators that were killed.
        is_port_free: whether nobody listens on the port that was asked about.
        port: that one, or else the next that is free; 0 where none is.
        spare_port: another free one.
    """

    hostname: str
    python: str
    packages: dict[str, str]
    source: str
    device: str
    cores: int
    memory_free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    unusable_gpus: tuple[str, str] | None = None
    config_digest: str | None = None
    tokenizer_digest: str | None = None
    refusal: str | None = None
    parameters: int | None = None
    corpora: tuple[Corpus, ...] = ()
    run: RunFolder | None = None
    fused_adam: str | None = None
    stale_locks: tuple[str, ...] = ()
    is_port_free: bool = True
    port: int = 0
    spare_port: int = 0

    @staticmethod
    def of(values: dict[str, Any]) -> Facts:
        """From JSON. Raises TypeError or KeyError where another maskloom wrote it."""
        nested = {
            "gpus": tuple(
                Gpu(**{**gpu, "slowed_by": tuple(gpu["slowed_by"]), "processes": tuple(gpu["processes"])})
                for gpu in values["gpus"]
            ),
            "corpora": tuple(Corpus(**corpus) for corpus in values["corpora"]),
            "unusable_gpus": tuple(values["unusable_gpus"]) if values["unusable_gpus"] else None,
            "run": RunFolder(**values["run"]) if values["run"] else None,
            "stale_locks": tuple(values["stale_locks"]),
        }
        return Facts(**{**values, **nested})
