"""What a checkpoint of an engine consists of, without writing it.

DeepSpeed writes its files while all ranks wait for each other: one that cannot write leaves the others waiting. Here its own
`save_checkpoint` runs with a checkpoint engine that only takes the contents, so that nothing in it can fail on one rank alone.
A content that is written while training continues is copied at once, storage by storage. Tensors that share memory share it in
the copy too: so a file is the one that DeepSpeed would have written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from maskloom.train.engine.patches import DeepSpeedEngine, save_with


class EngineFile(NamedTuple):
    """A file of a checkpoint that this rank is to write.

    Attributes:
        name: of the file.
        content: for `torch.save`.
        size_bytes: of its tensors; a file is larger by some KiB.
        is_copy: whether it shares nothing with the engine.
    """

    name: str
    content: Any
    size_bytes: int
    is_copy: bool


class Collector(CheckpointEngine):  # type: ignore[misc]
    """A checkpoint engine of DeepSpeed that keeps what it is told to save; it reads as DeepSpeed's own does."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[EngineFile] = []
        self.may_copy: Callable[[int], bool] = lambda _: False

    def create(self, info: object) -> None:
        self.files = []

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: whoever writes the files makes their folder."""

    def save(self, state_dict: object, path: str) -> None:
        size_bytes = tensor_bytes(state_dict)
        is_copy = self.may_copy(size_bytes)
        self.files.append(
            EngineFile(Path(path).name, copied(state_dict) if is_copy else state_dict, size_bytes, is_copy)
        )

    def load(self, path: str, map_location: Any = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: object) -> bool:
        return True


def collect_files(engine: DeepSpeedEngine, folder: Path, may_copy: Callable[[int], bool]) -> list[EngineFile]:
    """The files that this rank would write for a checkpoint in `folder`; all ranks call it.

    Args:
        may_copy: whether there is room in memory for a copy of so many bytes.
    """
    collector = engine.checkpoint_engine
    if not isinstance(collector, Collector):
        collector = Collector()
        save_with(engine, collector)
    collector.may_copy = may_copy
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    files, collector.files = collector.files, []
    return files


def tensor_bytes(content: object) -> int:
    """The memory behind the tensors of nested dictionaries, lists and tuples; what they share counts once."""
    sizes: dict[int, int] = {}
    _walk(content, lambda storage: sizes.setdefault(storage._cdata, storage.nbytes()))
    return sum(sizes.values())


def copied(content: Any) -> Any:
    """Nested dictionaries, lists and tuples with their tensors in memory of their own on the CPU."""
    copies: dict[int, torch.UntypedStorage] = {}

    def tensor_copy(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in copies:
            copies[storage._cdata] = _storage_copy(storage)
        new = torch.empty(0, dtype=tensor.dtype)
        new.set_(copies[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
        return new.requires_grad_(tensor.requires_grad)

    def value_copy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tensor_copy(value)
        if isinstance(value, dict):
            same = copy.copy(value)  # an OrderedDict stays one
            same.update((key, value_copy(item)) for key, item in value.items())
            return same
        if isinstance(value, list) or type(value) is tuple:
            return type(value)(value_copy(item) for item in value)
        return copy.deepcopy(value)

    return value_copy(content)


def _storage_copy(storage: Any) -> torch.UntypedStorage:
    same: torch.UntypedStorage = storage.clone() if storage.device.type == "cpu" else storage.cpu()
    return same


def _walk(value: object, visit: Callable[[torch.UntypedStorage], object]) -> None:
    if isinstance(value, torch.Tensor):
        visit(value.untyped_storage())
    elif isinstance(value, dict):
        for item in value.values():
            _walk(item, visit)
    elif isinstance(value, list | tuple):
        for item in value:
            _walk(item, visit)
