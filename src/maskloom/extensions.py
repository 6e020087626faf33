"""Code of your own: modules that are imported before a configuration is read.

    maskloom train lion.yaml --import my_optimizers

Such a module adds rows to the tables of maskloom (`maskloom.optim.add`, `maskloom.models.architecture.add`,
`maskloom.tokenizers.add`); the configuration can then name them. The names of the modules are kept in the variable
`MASKLOOM_IMPORT`. Every process of a run has it: ranks, reader processes, restarts, the hosts of a hostfile, and what
`maskloom doctor` starts there.

Only the command line and the environment name modules. A configuration and a checkpoint come from elsewhere, and cannot.

This module imports next to nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from maskloom.errors import UserError

VARIABLE = "MASKLOOM_IMPORT"


def add_import(parser: argparse.ArgumentParser) -> None:
    """Have the parser take `--import MODULE`, any number of times, as `options.imports`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help=f"import code of your own first, found as by `python -m MODULE`; again for another (also: {VARIABLE}=A,B)",
    )


def named() -> list[str]:
    """The modules that `MASKLOOM_IMPORT` names, in that order, each once.

    Raises:
        UserError: one of them is not the name of a module.
    """
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    found = list(dict.fromkeys(filter(None, names)))
    for name in found:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"--import {name!r} is not the name of a module: write it as in `import`, for example my_optimizers for "
                "the file my_optimizers.py"
            )
    return found


def load(names: Sequence[str] = ()) -> None:
    """Import the modules that `MASKLOOM_IMPORT` names, then these; from now on the variable names all of them.

    A module is found in the current folder, in the folders of PYTHONPATH and among installed packages. One that is
    there already is not imported again.

    Raises:
        UserError: a module cannot be imported.
    """
    known = os.environ.get(VARIABLE, "")
    if not (known or names):
        return
    os.environ[VARIABLE] = ",".join(filter(None, [known, *names]))
    wanted = named()
    os.environ[VARIABLE] = ",".join(wanted)
    folder = str(Path.cwd())
    # `python -m` searches the current folder first, unless Python was told not to; the program `maskloom` does not by itself.
    if not sys.flags.safe_path and folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    for name in wanted:
        _import(name)


def where_names_come_from() -> str:
    """For messages about a name in a configuration that no table has: what to do."""
    modules = named()
    if modules:
        return f"none of {', '.join(modules)} (--import) adds it"
    return f"one of your own needs --import MODULE or {VARIABLE}, with the module that adds it"


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # it is there, and imports what is not
            raise UserError(_fault(name, error)) from error
        raise UserError(
            f"--import {name}: there is no module {error.name}. It is looked for in {Path.cwd()}, in the folders of PYTHONPATH "
            "and among installed packages: correct the name, start in its folder, or set PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:  # an exit would end the program as if its work was done
        raise UserError(_fault(name, error)) from error


def _fault(name: str, error: Exception | SystemExit) -> str:
    """One line: what the module raised, and the last line of code outside of Python's own that it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen ")]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
        said = error.msg
    else:
        said = " ".join(str(error).split())
    return f"--import {name} cannot be imported: {type(error).__name__}: {said}{place}"
