"""The GPU path rehearsed without a GPU; `make rehearse` makes the environment that it needs and runs this.

    python -m rehearse                          all parts: about 15 minutes on two idle cores
    python -m rehearse --only compile           a part: compile, fused-adam or unit
    python -m rehearse --cases base-128,zero3   some cases of `compile`; what was found of the others stays
    python -m rehearse --report                 no part: docs/rehearsal.md anew, from the results

Figures stand in benchmarks/results/rehearsal.json, and on the standard output with --json; docs/rehearsal.md is written from
them. What is out of the limits of `checks.py`, or fails, is said at the end, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rehearse import checks, fake_gpu, fused_adam, report

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks/results/rehearsal.json"
PARTS = ("compile", "fused-adam", "unit")
CASES = ("base-128", "base-512", "large-128", "large-512", "modernbert-base-1024", "zero3")
VARIANTS = ("plain", "ours")  # zero3 is compiled as it is run alone
LOWEST = ("torch", "transformers")  # of what pyproject.toml admits, those whose lowest versions are run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rehearse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names(PARTS), default=PARTS, metavar=",".join(PARTS))
    parser.add_argument("--cases", type=_names(CASES), default=CASES, metavar=",".join(CASES))
    parser.add_argument("--json", action="store_true", help="print the results as JSON at the end")
    parser.add_argument("--report", action="store_true", help="only write docs/rehearsal.md")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wrong = [] if options.report else rehearse(results, options.only, options.cases)
    if missing := report.missing(results):
        print(f"docs/rehearsal.md is not written: there are no results of {', '.join(missing)} yet")
    else:
        (REPOSITORY / "docs/rehearsal.md").write_text(report.page(results))
    if options.json:
        print(json.dumps(results, indent=1))
    for line in wrong:
        print(f"wrong: {line}")
    return 1 if wrong else 0


def rehearse(results: dict[str, Any], parts: tuple[str, ...], cases: tuple[str, ...]) -> list[str]:
    """Run parts, and put what they find into `results`; returns a line for each thing that is not as it has to be.

    A part that fails is such a line, and what was found of it before stays.
    """
    wrong = []
    if "compile" in parts:
        for name in cases:
            for variant in VARIANTS[1:] if name == "zero3" else VARIANTS:
                try:
                    facts = compiled(name, variant)
                except RuntimeError as error:
                    wrong.append(f"{name}, {variant}: {error}")
                    continue
                results.setdefault("compile", {}).setdefault(name, {})[variant] = facts
                keep(results)
                show(f"{name}, {variant}", facts)
                wrong += [f"{name}: {line}" for line in checks.failures(facts)] if variant == "ours" else []
    if "fused-adam" in parts:
        try:
            results["fused_adam"] = built = built_adam()
        except RuntimeError as error:
            wrong.append(f"FusedAdam: {error}")
        else:
            keep(results)
            wrong += [] if built["cubins"] else [f"{built['wheel']} has no machine code for a Hopper"]
            print(f"FusedAdam: {built['mib']} MiB in {built['seconds']} s, {', '.join(built['cubins'])}", flush=True)
    if "unit" in parts:
        results["unit"] = tested = unit_suite()
        keep(results)
        wrong += tested["failed"]
        print(f"unit suite: {tested['summary']}", flush=True)
    return wrong


def show(title: str, facts: dict[str, Any]) -> None:
    print(f"compiled {title}, in {facts['seconds']} s", flush=True)
    for figure, value in checks.figures(facts).items():
        print(f"    {figure}: {value:.4g}", flush=True)


def keep(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def compiled(name: str, variant: str) -> dict[str, Any]:
    """Facts of a case, from a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rehearse-") as temporary:
        folder = Path(temporary)
        file = folder / "facts.json"
        command = [sys.executable, "-m", "rehearse.compiling", name, variant, str(file)]
        done = subprocess.run(command, env=fake_gpu.environment(folder), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        facts: dict[str, Any] = json.loads(file.read_text())
    return {**facts, "seconds": round(time.monotonic() - began), "from": origin()}


def built_adam() -> dict[str, Any]:
    from triton import knobs

    with tempfile.TemporaryDirectory(prefix="rehearse-") as temporary:
        began = time.monotonic()
        wheel = fused_adam.build(Path(temporary))
        found = fused_adam.cubins(wheel, Path(temporary), str(knobs.nvidia.cuobjdump.path))
        size_mib = wheel.stat().st_size / (1 << 20)
        return {
            "wheel": wheel.name,
            "mib": round(size_mib, 1),
            "cubins": found,
            "seconds": round(time.monotonic() - began),
            "from": origin(),
        }


def unit_suite() -> dict[str, Any]:
    """`make unit` in this environment, whose torch and transformers have to be the lowest that pyproject.toml admits."""
    wanted = lowest_versions((REPOSITORY / "pyproject.toml").read_text())
    failed = [
        f"{name} {metadata.version(name)} is installed, and {lowest} is the lowest that pyproject.toml admits"
        for name, lowest in wanted.items()
        if not is_release_of(metadata.version(name), lowest)
    ]
    command = [sys.executable, "-m", "pytest", "--numprocesses", "2", "--dist", "loadfile", "--durations", "0", "-rfE"]
    command += [option for folder in ("cluster", "integration", "fuzz") for option in ("--ignore", f"tests/{folder}")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    failed += [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode and not failed:
        failed.append(f"pytest ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return {
        "versions": {name: metadata.version(name) for name in wanted},
        "summary": lines[-1],
        "failed": failed,
        "from": origin(),
    }


def lowest_versions(pyproject: str) -> dict[str, str]:
    """`torch>=2.11` and the like, of the packages in `LOWEST`: name -> 2.11."""
    return dict(re.findall(rf'"({"|".join(LOWEST)})>=([\d.]+)"', pyproject))


def is_release_of(version: str, lowest: str) -> bool:
    """Whether 2.11.0+cu130 is a 2.11."""
    return f"{version.partition('+')[0]}.".startswith(f"{lowest}.")


def origin() -> dict[str, str]:
    """When, where and from what a figure is."""
    import maskloom

    source = Path(maskloom.__file__).parent
    git = ["git", "-C", str(source)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit + (", changed" if changed else ""),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "triton", "transformers", "deepspeed")},
    }


def _names(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{','.join(unknown)}: there are {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
