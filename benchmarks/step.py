"""Training steps and the time to a loss beside plain Hugging Face: runs `maskloom bench`, keeps the results, writes the report.

  python benchmarks/step.py                      everything for this machine's GPU, or its CPU: about 15 minutes on 2 cores
  python benchmarks/step.py --only step --cases large-128 --systems maskloom-compile,hf-sdpa-compile
  python benchmarks/step.py --only loss --seeds 3
  python benchmarks/step.py --report             docs/benchmarks-step.md and its plots, from all results

Whatever else is given goes to `maskloom bench step` or `loss` (`--help` of those lists it). Results stand in
`results/step-<device>.json`; a case that is measured again replaces what stood there, and the others stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import step_report

from maskloom import cli

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def device_name(wanted: str | None) -> str:
    """`cpu`, `nvidia-h200`: of the device that `maskloom bench` takes."""
    import torch

    from maskloom.bench.machine import name_of

    return name_of("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--only", choices=("step", "loss"), help="one of the two measurements")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    add("--no-profile", action="store_true", help="no breakdown by part")
    add("--cache", default=str(HERE / ".cache" / "step"), help="prepared text (default: benchmarks/.cache/step)")
    add("--out", type=Path, help="results (default: benchmarks/results/step-<device>.json)")
    add("--report", action="store_true", help="write docs/benchmarks-step.md from the results")
    options, others = parser.parse_known_args()
    if options.report:
        files = sorted(RESULTS.glob("step-*.json"))
        step_report.write([json.loads(file.read_text(encoding="utf-8")) for file in files], HERE.parent / "docs")
        return 0
    if others and not options.only:
        parser.error(f"{' '.join(others)}: say --only step or --only loss, which take different options")
    out = options.out or RESULTS / f"step-{device_name(options.device)}.json"
    shared = ["--cache", options.cache, "--out", str(out), *(["--device", options.device] if options.device else [])]
    for what in (options.only,) if options.only else ("step", "loss"):
        began_s = time.perf_counter()
        own = ["--profile"] if what == "step" and not options.no_profile else []
        code = cli.main(["bench", what, *shared, *own, *others])
        print(f"{what}: {time.perf_counter() - began_s:.0f} s -> {out}", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
