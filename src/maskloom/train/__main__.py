"""What `deepspeed --module maskloom.train CONFIG key=value ...`, `srun` and `torchrun` start, once a rank."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Train as one rank. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="maskloom.train",
        description="One rank of a training run; start it with deepspeed, torchrun, srun or `maskloom train`.",
    )
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help="given by the deepspeed launcher; read from the environment"
    )
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    options = parser.parse_args(arguments)
    # Reader processes import this module again: what is heavy comes after that point.
    from maskloom.config import load_config
    from maskloom.distributed import World
    from maskloom.errors import UserError
    from maskloom.redaction import redacted
    from maskloom.train.loop import train

    world = None
    try:
        world = World.discover()
        train(load_config(options.config, options.overrides), world)
    except (UserError, OSError) as error:  # bad input; a folder that may not be written, a full disk
        print(f"maskloom: rank {world.rank if world else '?'}: {redacted(str(error))}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
