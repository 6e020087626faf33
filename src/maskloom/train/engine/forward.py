"""How a model's forward runs: kernels, compilation, and what DeepSpeed has to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import set_z3_leaf_modules
from torch._inductor.runtime.cache_dir_utils import cache_dir

from maskloom.config import Engine
from maskloom.files import private_folder
from maskloom.models.kernels import KERNELS
from maskloom.models.masked_lm import MaskedLM, decoder_of, embedding_of, layers_of
from maskloom.train.engine.device import resolve_kernels


def prepare_forward(model: MaskedLM, settings: Engine) -> None:
    """Choose the kernels, and compile if that is asked for: before DeepSpeed puts its hooks around the modules.

    Under ZeRO-3 a layer's parameters are there only within its `__call__`, and compiled code cannot gather them. So DeepSpeed
    gathers a layer at once (a leaf), and what is compiled is the pure function within. Embeddings and head cannot be leaves:
    they share a weight.
    """
    kernels = resolve_kernels(settings.kernels, model.config.hidden_size)
    compiles = kernels == "compile"
    if compiles:
        # What lies there is loaded as code, and without the variable it is a name in /tmp that anybody can take first.
        private_folder(Path(cache_dir()), "set TORCHINDUCTOR_CACHE_DIR to a folder of your own")
        # One compilation for each shape of micro-batch, with and without gradients. Beyond torch's limit of 8 the rest
        # would run uncompiled without a word.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    model.kernels = KERNELS[kernels]
    decoder: Any = decoder_of(model)
    decoder.linear = model.kernels.linear
    model.checkpoints_activations = settings.activation_checkpointing
    # The embedding's gradient as its few rows, which are added to the decoder's of the same weight. Dense, it is a matrix of
    # zeros to be filled and added: a twentieth of a BERT-base's step on a CPU. Inductor has no sparse tensors.
    on_cpu = get_accelerator().device_name() == "cpu"
    embedding = embedding_of(model)
    is_tied = decoder_of(model).weight is embedding.weight
    embedding.sparse = on_cpu and is_tied and not compiles and settings.zero_stage < 3
    if settings.zero_stage < 3:
        if compiles:
            model.compile(dynamic=False)
        return
    layers = layers_of(model)
    set_z3_leaf_modules(model, [type(layers[0])])
    if compiles:
        loss = torch.compile(model.kernels.cross_entropy, fullgraph=True, dynamic=False)
        model.kernels = model.kernels._replace(cross_entropy=loss)
        run = torch.compile(model.architecture.run, fullgraph=True, dynamic=False)
        for layer in layers:
            layer.run = run
