"""Train on this machine: one process a GPU, or --processes on the CPU.

A run that exists in run_dir is resumed. On several machines, start `maskloom.train` with deepspeed or srun:
  deepspeed --hostfile hosts --module maskloom.train CONFIG key=value ...

example:
  maskloom train configs/quickstart.yaml run_dir=runs/first phases.0.steps=200
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import NoReturn

from maskloom.commands.arguments import cores, positive
from maskloom.config import load_config
from maskloom.distributed import World


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file of the run")
    add("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    add("--processes", type=positive, help="default: one a GPU; 1 where there is none")
    add("--show-deepspeed", action="store_true", help="print the DeepSpeed configuration that is derived, and stop")


def run(options: argparse.Namespace) -> int:
    import torch

    from maskloom.train.loop import prepare, train
    from maskloom.train.trainer import deepspeed_settings

    config = load_config(options.config, options.overrides)
    started = World.discover()
    if started.size > 1:  # by somebody's launcher: this is one rank of it
        return train(config, started)
    processes = options.processes or max(torch.cuda.device_count(), 1)
    world = World(size=processes, local_size=processes)
    prepared, plan = prepare(config, world)
    if options.show_deepspeed:
        print(json.dumps(deepspeed_settings(prepared, plan, world), indent=2))
        return 0
    if processes == 1:
        return train(config, started)
    return _become_torchrun(processes, [options.config, *options.overrides])


def _become_torchrun(processes: int, arguments: list[str]) -> NoReturn:
    """torchrun stops its ranks when it is stopped, and reports the first that failed. In place of this process, so that
    signals reach it."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    sys.stdout.flush()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    os.execv(sys.executable, [*launcher, "--module", "maskloom.train", *arguments])
