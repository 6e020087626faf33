"""maskloom: pretrain encoders (BERT, RoBERTa and its kin, ModernBERT) on your own text.

The names below are the Python interface; `docs/python.md` shows how to use them. Each is imported when it is first used, so that
`import maskloom` costs nothing and imports no torch.

The file list is the data flow: `data` turns text into masked batches, `models` turns a batch into a loss, `train` runs
DeepSpeed over it, `commands` is what people type.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskloom.api import Run, evaluate, export, load_config, load_model, load_tokenizer, pretrain
    from maskloom.errors import UserError
    from maskloom.masked_stream import MaskedStream

__version__ = "0.1.0"

__all__ = [
    "MaskedStream",
    "Run",
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "load_config",
    "load_model",
    "load_tokenizer",
    "pretrain",
]

_HOMES = {"MaskedStream": "maskloom.masked_stream", "UserError": "maskloom.errors"}
"""Name -> module that has it; all others are in `maskloom.api`."""


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'maskloom' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES.get(name, "maskloom.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
