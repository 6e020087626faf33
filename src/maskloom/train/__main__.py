"""What `deepspeed --module maskloom.train CONFIG key=value ...`, `srun` and `torchrun` start, once a rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskloom.early import begin

if TYPE_CHECKING:  # whatever takes time to import comes after `begin`
    from argparse import Namespace


def main(arguments: list[str] | None = None) -> int:
    """Train as one rank. Returns the exit code."""
    from maskloom import extensions
    from maskloom.program import Parser, add_overrides

    parser = Parser(
        prog="maskloom.train",
        description="One rank of a training run; start it with deepspeed, torchrun, srun or `maskloom train`.",
    )
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help="given by the deepspeed launcher; read from the environment"
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument("--profile", type=int, metavar="N", help="`maskloom train` says what it does")
    parser.add_argument("--out", type=Path, default=Path("profile"), help="for the traces of --profile")
    add_overrides(parser)
    extensions.add_import(parser)
    options = parser.parse_args(arguments)
    # Reader processes import this module again: what is heavy comes after that point.
    if options.profile is not None:
        if options.profile < 1:
            parser.error(f"--profile {options.profile}: at least one step")
        return _profile(options)
    from maskloom.train.rank.watch import Watch

    with Watch() as watch:  # before what takes seconds to import: a request to stop may come at any time
        from maskloom.config_file import load_config
        from maskloom.errors import UserError
        from maskloom.live import live_line
        from maskloom.progress import complain
        from maskloom.status import EXIT_FAILED
        from maskloom.world import World

        try:
            world = World.discover()
            extensions.load(options.imports)
            config = load_config(options.config, options.overrides)
        except (UserError, OSError) as error:
            complain(f"maskloom: {watch.me()}: {error}")
            return EXIT_FAILED
        with live_line(watch.doing, world.is_first):
            from maskloom.train.loop import train  # heavy: a wrong configuration is refused before

            return train(config, world, watch)


def _profile(options: Namespace) -> int:
    from maskloom import extensions
    from maskloom.config_file import load_config
    from maskloom.errors import UserError
    from maskloom.progress import complain
    from maskloom.status import EXIT_DONE, EXIT_FAILED
    from maskloom.train.profiling import profile
    from maskloom.world import World

    world = None
    try:
        world = World.discover()
        extensions.load(options.imports)
        profile(load_config(options.config, options.overrides), world, options.profile, options.out)
    except (UserError, OSError) as error:
        complain(f"maskloom: rank {world.rank if world else '?'}: {error}")
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    begin()  # before the first import that takes time
    from maskloom.program import run_program

    run_program("maskloom.train", main)
