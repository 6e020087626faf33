"""What a rank on this host would meet before its first step: configuration, tokenizer, corpora, model, operators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maskloom.launch.doctor.facts import Corpus, Request
from maskloom.launch.doctor.look.software import file_digest

if TYPE_CHECKING:
    from maskloom.config import RunConfig
    from maskloom.data.index.corpus import Index


def as_a_rank(request: Request) -> dict[str, Any]:
    """What the first rank of this host would meet before its first step, and what of it is wrong."""
    from maskloom import extensions
    from maskloom.config_file import load_config
    from maskloom.distributed import World
    from maskloom.errors import UserError
    from maskloom.optim import OPTIMIZERS
    from maskloom.tokenizers.loading import find_tokenizer
    from maskloom.train.engine.fused_adam import why_no_fused_adam
    from maskloom.train.engine.ops import stale_locks
    from maskloom.train.setup import prepare

    found: dict[str, Any] = {"stale_locks": tuple(str(lock) for lock in stale_locks())}
    try:
        extensions.load()
        config = load_config(request.config, request.overrides)
        found["corpora"] = tuple(look_at_corpora(config, request))
        with contextlib.suppress(UserError):  # `prepare` says it
            found["tokenizer_digest"] = file_digest(find_tokenizer(config.tokenizer))
        with contextlib.suppress(UserError):  # `prepare` says it
            found["parameters"] = parameters_of(config)
        prepare(config, World(request.first_rank, request.world_size))  # GPUs and slots are compared on their own
    except (UserError, OSError) as error:
        found["refusal"] = str(error)
        return found
    if OPTIMIZERS[config.optimizer.name].takes_fused_adam and look_for_cuda():
        why = why_no_fused_adam()
        found["fused_adam"] = f"torch's instead: {why}" if why else "installed, or compiled at the first start"
    return found


def look_for_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def look_at_corpora(config: RunConfig, request: Request) -> Iterator[Corpus]:
    """Open each corpus, and verify some blocks: the first, the last, and between them others on every host."""
    from maskloom.data.index.loading import load_index
    from maskloom.errors import DataFault, UserError
    from maskloom.redaction import shown

    skips = config.data.on_bad_data == "skip"
    for corpus in config.data.corpora:
        path, read, index = shown(corpus.path), 0, None
        try:
            index = load_index(corpus.path, config.data.storage, finds_shards=not skips)
            for block in chosen_blocks(index, request):
                index.read(block)
                read += 1
        except (UserError, OSError) as error:
            digest, blocks = (index.digest[:16], count_blocks(index)) if index else (None, 0)
            yield Corpus(path, digest, read, blocks, str(error), skips and isinstance(error, DataFault))
        else:
            yield Corpus(path, index.digest[:16], read, count_blocks(index))


def count_blocks(index: Index) -> int:
    return len(index.columns["offset"])


def chosen_blocks(index: Index, request: Request) -> list[int]:
    """Blocks to verify: the first, the last, and others that differ from host to host."""
    blocks = count_blocks(index)
    if blocks <= request.blocks:
        return list(range(blocks))
    between = random.Random(request.number).sample(range(1, blocks - 1), request.blocks - 2)
    return sorted({0, blocks - 1, *between})


def parameters_of(config: RunConfig) -> int:
    """Parameters of the run's model, without memory for them."""
    from maskloom.models import outline
    from maskloom.models.warm_start import tokenizer_of
    from maskloom.train.resume import check_model

    tokenizer = tokenizer_of(config.tokenizer, config.model.init)
    return outline.parameters_of(check_model(config, tokenizer))
