"""`maskloom COMMAND ...`: each command is a module of `maskloom.commands` with `configure` and `run`."""

from __future__ import annotations

import argparse
import sys

from maskloom import __version__
from maskloom.commands import ACTIONS, COMMANDS, load
from maskloom.early import begin
from maskloom.program import EXIT_INTERRUPTED, Parser, nearest, run_program


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 bad input or failure, 2 wrong usage.

    Without `arguments` it is the program: it takes the command line, and leaves with the exit code.
    """
    if arguments is None:
        run_program("maskloom", lambda: _main(sys.argv[1:], is_program=True))
    return _main(arguments)


def _main(arguments: list[str], is_program: bool = False) -> int:
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    while arguments[0] == "help":  # `maskloom help train` is `maskloom train --help`
        arguments = [*arguments[1:], "--help"]
    options = parser.parse_args(arguments)
    if options.command not in COMMANDS:
        hint = nearest(options.command, COMMANDS) or "; `maskloom help` lists them"
        parser.error(f"{options.command!r} is not a command{hint}")
    if options.command == "train" and is_program:  # what is called with arguments is part of another program
        begin()
    from maskloom import extensions
    from maskloom.errors import UserError
    from maskloom.progress import complain

    words = [options.command]
    if (options.command, *options.arguments[:1]) in ACTIONS:
        words.append(options.arguments.pop(0))
    module, own = load(words)
    try:
        chosen = own.parse_intermixed_args(options.arguments)  # key=value also after --options
        extensions.load(chosen.imports)
        return int(module.run(chosen))
    except BrokenPipeError:  # `maskloom peek ... | head`
        return 1
    except (UserError, OSError) as error:  # OSError: a folder that may not be written, a full disk
        complain(f"maskloom {options.command}: {error}")
        return 1
    except KeyboardInterrupt:
        complain(f"maskloom {options.command}: interrupted")
        return EXIT_INTERRUPTED


def _parser() -> Parser:
    """The parser of what stands before a command's own arguments."""
    listing = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="maskloom",
        description="Pretrain encoders (BERT, RoBERTa and its kin, ModernBERT) on your own text.",
        epilog=f"commands:\n{listing}\n\n`maskloom help COMMAND` shows a command's options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"maskloom {__version__}")
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
