"""`maskloom COMMAND ...`: each command is a module of `maskloom.commands` with `configure` and `run`."""

from __future__ import annotations

import argparse
import importlib
import sys

from maskloom import __version__
from maskloom.early import begin
from maskloom.program import EXIT_INTERRUPTED, Parser, run_program

# Modules are imported when they are asked for: reader processes import this one again, and `--help` should be quick.
COMMANDS = {
    "shards": "write text as webdataset shards with an index",
    "index": "index webdataset tars that exist",
    "tokenizer": "train a tokenizer on shards, or extend one",
    "doctor": "check whether a run would start, on this machine or on the hosts of a hostfile",
    "train": "train, on this machine or on the hosts of a hostfile",
    "status": "how a run stands, and what to do next",
    "compare": "runs side by side: settings, figures, curves",
    "peek": "print the batches of some steps as text, or their digest",
    "monitor": "TensorBoard over a run, for this machine alone",
    "eval": "how well models predict masked tokens, on a run's held-out text or any other",
    "probe": "what frozen encoders know of labels",
    "finetune": "fine-tune an encoder for a task, GLUE's among them",
    "export": "write a run's model for Hugging Face",
    "fill": "fill the masks of a sentence",
}


ACTIONS = {("tokenizer", "extend")}
"""A command, and a first argument that makes another command of it. A folder of that name is named as `./extend`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 bad input or failure, 2 wrong usage.

    Without `arguments` it is the program: it takes the command line, and leaves with the exit code.
    """
    if arguments is None:
        run_program("maskloom", lambda: _main(sys.argv[1:], is_program=True))
    return _main(arguments)


def _main(arguments: list[str], is_program: bool = False) -> int:
    listing = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="maskloom",
        description="Pretrain encoders (BERT, RoBERTa and its kin, ModernBERT) on your own text.",
        epilog=f"commands:\n{listing}\n\n`maskloom COMMAND --help` shows a command's options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"maskloom {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    if options.command == "train" and is_program:  # what is called with arguments is part of another program
        begin()
    from maskloom import extensions
    from maskloom.errors import UserError
    from maskloom.progress import complain

    words = [options.command]
    if (options.command, *options.arguments[:1]) in ACTIONS:
        words.append(options.arguments.pop(0))
    module = importlib.import_module(f"maskloom.commands.{'_'.join(words)}")
    own = Parser(
        prog=f"maskloom {' '.join(words)}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(own)
    extensions.add_import(own)
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


if __name__ == "__main__":
    sys.exit(main())
