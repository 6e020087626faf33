"""`maskloom COMMAND ...`: each command is a module of `maskloom.commands` with `configure` and `run`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from maskloom import __version__
from maskloom.early import begin

# Modules are imported when they are asked for: reader processes import this one again, and `--help` should be quick.
COMMANDS = {
    "shards": "write text as webdataset shards with an index",
    "index": "index webdataset tars that exist",
    "tokenizer": "train a WordPiece tokenizer on shards",
    "doctor": "check whether a run would start, on this machine or on the hosts of a hostfile",
    "train": "train, on this machine or on the hosts of a hostfile",
    "status": "how a run stands, and what to do next",
    "peek": "print the batches of some steps as text, or their digest",
    "monitor": "TensorBoard over a run, for this machine alone",
    "eval": "held-out loss of a run",
    "export": "write a run's model for Hugging Face",
    "fill": "fill the masks of a sentence",
    "bench": "measure training steps beside plain Hugging Face",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 bad input or failure, 2 wrong usage."""
    listing = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="maskloom",
        description="Pretrain BERT-type encoders on your own text.",
        epilog=f"commands:\n{listing}\n\n`maskloom COMMAND --help` shows a command's options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"maskloom {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    if options.command == "train" and arguments is None:  # what is called with arguments is part of another program
        begin()
    module = importlib.import_module(f"maskloom.commands.{options.command}")
    own = argparse.ArgumentParser(
        prog=f"maskloom {options.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(own)
    from maskloom.errors import UserError
    from maskloom.progress import flush
    from maskloom.redaction import redacted

    try:
        code = int(module.run(own.parse_intermixed_args(options.arguments)))  # key=value also after --options
        if options.command == "train":  # its exit code is the run's, whoever reads what it says
            flush()
        sys.stdout.flush()  # here, where a closed pipe is expected
        return code
    except UserError as error:
        print(f"maskloom {options.command}: {redacted(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `maskloom peek ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that may not be written, a full disk
        print(f"maskloom {options.command}: {redacted(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"maskloom {options.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
