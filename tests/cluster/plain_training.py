"""Training as DeepSpeed's tutorials have it: its launcher, its save_checkpoint and load_checkpoint, and nothing else.

deepspeed --hostfile H plain_training.py FOLDER
"""

import argparse
import json
import os
import time
from pathlib import Path

STEPS, EVERY_STEPS, WIDTH = 30, 5, 160
SPOILT = range(11, 14)
"""Steps whose rows are NaN on rank 1 with --spoil."""


def main() -> None:
    import deepspeed
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--spoil", action="store_true")
    parser.add_argument("--operators", action="store_true", help="build what DeepSpeed builds, in FOLDER/extensions")
    options = parser.parse_args()
    folder = options.folder
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder / "extensions")
    if not options.operators:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # two minutes of g++
    deepspeed.init_distributed()
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            "train_micro_batch_size_per_gpu": 4,
            "zero_optimization": {"stage": 1},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        },
    )
    path, state = engine.load_checkpoint(str(folder / "checkpoints"))
    first = state["step"] if path else 0
    rank = torch.distributed.get_rank()
    for step in range(first, STEPS):
        torch.manual_seed(1000 * step + rank)
        rows = torch.randn(4, WIDTH)
        if options.spoil and rank == 1 and step + 1 in SPOILT:
            rows *= torch.nan
        loss = ((engine(rows) - rows) ** 2).mean()
        engine.backward(loss)
        engine.step()
        if rank == 0:
            with (folder / "steps.jsonl").open("a") as log:
                line = {"step": step + 1, "loss": float(loss), "first": first, "unix_s": time.time()}
                log.write(json.dumps(line) + "\n")
        if (step + 1) % EVERY_STEPS == 0:
            engine.save_checkpoint(str(folder / "checkpoints"), client_state={"step": step + 1})


if __name__ == "__main__":
    main()
