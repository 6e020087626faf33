"""Measure the records of `benchmarks/speedrun/records.yaml`, and write the table of docs/speedrun.md.

A record trains with `maskloom train` for at most 240 CPU-seconds, over all ranks and their readers, and is evaluated by `maskloom
eval`. What is measured already is kept: an interrupted command resumes, and a record that was changed is measured anew.

example:
  python benchmarks/speedrun.py                       all records, three seeds each
  python benchmarks/speedrun.py bert-muon --seeds 0   one training
  python benchmarks/speedrun.py --report              the table, from the results
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskloom.errors import UserError
from maskloom.progress import show
from speedrun.records import ROOT, SEEDS, keep_result, key_of, read_records, read_results
from speedrun.report import write_report
from speedrun.running import measure

RESULTS = ROOT / "benchmarks" / "results" / "speedrun.json"
PAGE = ROOT / "docs" / "speedrun.md"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    records = read_records()
    names = [record.name for record in records]
    for name in options.names:
        if name not in names:
            raise UserError(f"there is no record {name!r}: there are {', '.join(names)}")
    if options.report:
        write_report(PAGE, records, read_results(options.results))
        show(f"written: {PAGE}")
        return 0
    data = options.data.resolve()
    for part in ("shards/index.json", "tokenizer/tokenizer.json"):
        if not (data / part).exists():
            raise UserError(f"{data / part} is missing: run `make pretrain` first, or name its folder with --data")
    failed = []
    for seed in options.seeds:  # a table is whole, with fewer seeds, as early as can be
        for record in records:
            if options.names and record.name not in options.names:
                continue
            key = key_of(record, data, seed, options.processes)
            result = read_results(options.results).get(key)
            if result is None or options.again:
                try:
                    result = measure(record, data, seed, options.processes, options.quiet)
                except UserError as error:
                    show(f"{error}")
                    failed.append(record.name)
                    continue
                keep_result(options.results, key, result)
            show(
                f"{record.name}, seed {seed}: held-out loss {result['loss']:.3f} after {result['cpu_s']:.1f} CPU-seconds"
            )
    if failed:
        raise UserError(f"not measured: {', '.join(dict.fromkeys(failed))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speedrun", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="RECORD", help="records to measure (default: all)")
    add("--seeds", type=_seeds, default=SEEDS, help="such as 0,1,2 (default)")
    add("--processes", type=int, default=2, help="ranks of a training (default: 2)")
    add("--data", type=Path, default=ROOT / "data" / "quickstart", help="folder with shards and tokenizer")
    add("--results", type=Path, default=RESULTS, help="file of the results")
    add("--again", action="store_true", help="measure what has a result too")
    add("--quiet", action="store_true", help="do not show what the trainings print")
    add("--report", action="store_true", help="write the table of docs/speedrun.md, and measure nothing")
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
