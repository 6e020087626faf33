"""Which wheels an offline machine lacks, and whether maskloom can be imported with what it has and those.

  python benchmarks/gpu/wheels.py missing --has FILE          NAME==VERSION a line, versions from constraints.txt
  python benchmarks/gpu/wheels.py check FOLDER --has FILE     imports every module with nothing else; looks into DeepSpeed's wheel

FILE is what `python3 -m pip list --format=freeze` prints on that machine; names without versions will do. What stands in it is
taken to have its own dependencies. Dependencies are those of the packages that are installed here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FUSED_ADAM = "deepspeed/ops/adam/fused_adam_op"
DEVICE_CODE = b".nv_fatbin"  # section of a library that holds code for GPUs
Machine = Mapping[str, str | None]
"""What is installed, by canonical name: the version, where it is known."""


def read_machine(file: Path) -> dict[str, str | None]:
    """The packages of a list as pip writes it; comments, and what is no package, are left out."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:==\s*([^\s;]+)|@.*)?\s*$", line.partition("#")[0]):
            found[canonicalize_name(match[1])] = match[2]
    return found


def direct_requirements() -> list[Requirement]:
    """Those of maskloom itself."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return [Requirement(line) for line in tomllib.loads(text)["project"]["dependencies"]]


def requirements_of(name: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """Those of a package that is installed here, and of some of its extras; none where it is not."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted = [{"extra": extra} for extra in ("", *extras)]
    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or any(each.marker.evaluate(extra) for extra in wanted)]


def closure(requirements: Iterable[Requirement], there: Machine) -> dict[str, Requirement]:
    """What is required, directly or not, and is not there, by name; what is too old there counts as missing."""
    found: dict[str, Requirement] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (name in there and fits(requirement, there[name])):
            continue
        found[name] = requirement
        waiting += requirements_of(requirement.name, requirement.extras)
    return found


def fits(requirement: Requirement, version: str | None) -> bool:
    """Whether a version is one that is asked for; one that is not known is."""
    return version is None or requirement.specifier.contains(version, prereleases=True)


def missing(there: Machine) -> list[str]:
    """`NAME==VERSION` of each wheel. Raises SystemExit where torch is missing or too old: its wheels are not to be carried."""
    pins = read_machine(ROOT / "constraints.txt")
    names = sorted(closure(direct_requirements(), there))
    if "torch" in names and "torch" not in there:
        raise SystemExit(
            "HAS lists no torch: a few wheels are carried to a machine that has PyTorch, not PyTorch itself"
        )
    if "torch" in names:
        raise SystemExit(f"that machine has torch {there.get('torch')}: {ROOT / 'pyproject.toml'} says what is needed")
    if unknown := [name for name in names if not pins.get(name)]:
        raise SystemExit(f"constraints.txt has no version of {', '.join(unknown)}")
    return [f"{name}=={pins[name]}" for name in names]


def wheels_in(folder: Path) -> dict[str, Path]:
    """By canonical name. Raises SystemExit where a package is there twice: pip would install neither."""
    found: dict[str, Path] = {}
    for wheel in sorted(folder.glob("*.whl")):
        name = canonicalize_name(wheel.name.split("-")[0])
        if name in found:
            raise SystemExit(f"{folder} has {found[name].name} and {wheel.name}: remove one")
        found[name] = wheel
    return found


def absent_modules(available: Iterable[str]) -> set[str]:
    """Names of top-level modules that only packages have which are installed here and not available there."""
    known = {*available, "maskloom"}
    return {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not any(canonicalize_name(package) in known for package in packages)
    }


class Without:
    """A finder that does not see some modules: neither to import them nor to find out whether they are there."""

    def __init__(self, finder: Any, modules: set[str]) -> None:
        self.finder, self.modules = finder, modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in self.modules else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def without_device_code(wheel: Path) -> bool:
    """Whether DeepSpeed's wheel has a FusedAdam that was compiled for CPUs: setup.py does so, without a word, where there is
    no GPU and DS_ACCELERATOR does not say cuda."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.startswith(FUSED_ADAM) and name.endswith(".so")]
        return any(DEVICE_CODE not in archive.read(name) for name in libraries)


def has_fused_adam(wheel: Path) -> bool:
    """Whether DeepSpeed's wheel holds FusedAdam at all."""
    with zipfile.ZipFile(wheel) as archive:
        return any(name.startswith(FUSED_ADAM) for name in archive.namelist())


def check(folder: Path, there: Machine) -> list[str]:
    """What is wrong with the wheels of a folder, for a machine."""
    wheels = wheels_in(folder)
    wanted = [line.partition("==")[0] for line in missing(there)]
    wrong = [f"no wheel of {name}" for name in wanted if name not in wheels]
    if "deepspeed" in wheels and without_device_code(wheels["deepspeed"]):
        wrong.append(f"{wheels['deepspeed'].name} has a FusedAdam for CPUs: build it with DS_ACCELERATOR=cuda")
    carried = [requirement for name in there for requirement in requirements_of(name)]
    absent = absent_modules({*there, *wheels, *closure(carried, {})})
    sys.meta_path[:] = [Without(finder, absent) for finder in sys.meta_path]
    from facts import import_everything

    faults = import_everything()
    return wrong + [f"{len(modules)} module(s), such as {modules[0]}: {fault}" for fault, modules in faults.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    asked, checked = commands.add_parser("missing"), commands.add_parser("check")
    checked.add_argument("folder", type=Path)
    for command in (asked, checked):
        command.add_argument("--has", type=Path, default=Path(__file__).with_name("machine.txt"))
    options = parser.parse_args()
    there = read_machine(options.has)
    if options.command == "missing":
        print("\n".join(missing(there)))
        return 0
    wrong = check(options.folder, there)
    wheels = wheels_in(options.folder)
    fused = "deepspeed" in wheels and has_fused_adam(wheels["deepspeed"])
    size_mib = sum(wheel.stat().st_size for wheel in wheels.values()) / 2**20
    print(f"{len(wheels)} wheels, {size_mib:.1f} MiB, {'with' if fused else 'without'} FusedAdam")
    print("\n".join(wrong) or "every module of maskloom can be imported")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
