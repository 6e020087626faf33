"""Measure training steps beside plain Hugging Face on this machine, and the time to a loss.

step  steps of BERT, the optimizer included: text tokens/s, TFLOP/s, MFU and peak memory of every system, in turns, and where
      the time goes, by part. On a GPU base and large at 128 and 512 slots a row in bf16; on a CPU mini and base in fp32
loss  seconds, steps and tokens until a small model reaches a held-out loss, from the same first weights on the same text
curves  the held-out losses of ModernBERT and RoBERTa, 2 layers of 128, beside Hugging Face's modules on the same batches from
      the same first weights: do they learn the same? On a CPU, and only where it is asked for

The text is the documentation of the installed packages, unless --corpus names another; it is prepared once. Measure on an
idle machine. Results are added to a file: a case or the training that is measured again replaces what stood there.

examples:
  python benchmarks/step.py                                  everything for this machine's GPU, or its CPU: on two cores
                                                             about 25 minutes, once the text is prepared
  python benchmarks/step.py --only step --cases base-128 --systems maskloom-compile,hf-sdpa-compile --rounds 3
  python benchmarks/step.py --only loss --seeds 3
  python benchmarks/step.py --only curves                    about 10 minutes on two cores
  python benchmarks/step.py --report                         docs/benchmarks-step.md and its plots, from all results
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import name_of, stamp

from maskloom.commands.arguments import positive
from maskloom.errors import UserError
from maskloom.files import write_atomically
from maskloom.hardware import cores
from maskloom.program import Parser
from maskloom.progress import say

if TYPE_CHECKING:
    from step.cases import Device
    from step.text import Text

ONLY = {"step": ("cases", "rounds", "micro_batch_rows", "no_profile"), "loss": ("seeds",), "curves": ("seeds",)}
USUAL = ("step", "loss")
UNLIKE = ("systems", "steps")  # mean something else in each of the two
LEARNERS = {"cpu": ("maskloom-eager", "hf-sdpa"), "cuda": ("maskloom-compile", "hf-sdpa", "hf-sdpa-compile")}
HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "results"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--only", choices=tuple(ONLY), help="one of the measurements (default: step and loss)")
    add("--report", action="store_true", help="measure nothing: write docs/benchmarks-step.md from the results")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    add("--cases", type=_names, metavar="A,B", help="step: of these model shapes (default: all but tiny)")
    add("--systems", type=_names, metavar="A,B", help="these systems (default: all for steps, few for a loss)")
    add("--steps", type=positive, metavar="N", help="measured steps a turn, or the length of the training")
    add("--rounds", type=positive, metavar="N", help="step: turns of every system")
    add("--micro-batch-rows", type=positive, metavar="N", help="step: rows at once, if memory is short")
    add("--no-profile", action="store_true", help="step: do not measure where the time goes")
    add("--seeds", type=positive, metavar="N", help="trainings of each system (default: loss 1, curves 3)")
    add("--corpus", metavar="CORPUS", help="folder of an index, instead of the documentation; needs --tokenizer")
    add("--tokenizer", metavar="TOK", help="tokenizer for --corpus")
    add("--cache", type=Path, default=HERE / ".cache/step", help="prepared text (default: benchmarks/.cache/step)")
    add("--threads", type=positive, default=cores(), help="of torch on a CPU (default: all cores)")
    add("--out", type=Path, metavar="FILE.json", help="results (default: benchmarks/results/step-DEVICE.json)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or write the report. Returns the exit code; raises UserError for what cannot be measured."""
    parser = Parser(
        prog="step.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    configure(parser)
    options = parser.parse_args(arguments)
    if options.report:
        from step.report import write

        write([json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("step-*.json"))])
        return 0
    measure(options)
    return 0


def measure(options: argparse.Namespace) -> None:
    """One of the measurements, or the usual ones. Raises UserError for what cannot be measured."""
    _refuse(options)
    device = _device(options.device)
    out = options.out = options.out or RESULTS / f"step-{name_of(device)}.json"
    _results(out, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    works = {"step": _measure_steps, "loss": _measure_learning, "curves": _measure_curves}
    for what, work in works.items():
        if what in ((options.only,) if options.only else USUAL):
            began_s = time.perf_counter()
            work(options, device)
            say(f"{what}: {time.perf_counter() - began_s:.0f} s -> {out}")


def _refuse(options: argparse.Namespace) -> None:
    for name in dict.fromkeys(name for names in ONLY.values() for name in names):
        users = [what for what, names in ONLY.items() if name in names]
        if getattr(options, name) and options.only not in (None, *users):
            raise UserError(f"{_option(name)} is for --only {' or '.join(users)}")
    if options.only == "curves" and options.systems:
        raise UserError(
            "--systems is not for --only curves: maskloom and Hugging Face learn there from the same batches"
        )
    for name in UNLIKE:
        if getattr(options, name) and options.only is None:
            raise UserError(f"{_option(name)} is not the same for steps and for a loss: say --only step or --only loss")
    if bool(options.corpus) != bool(options.tokenizer):
        raise UserError("--corpus and --tokenizer go together: name both, or neither")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _measure_steps(options: argparse.Namespace, device: Device) -> None:
    from maskloom.data.index.indexing import BLOCK_BYTES
    from step.cases import BERT_VOCABULARY, PRECISION, choose_cases, choose_systems
    from step.clock import measure_limits
    from step.summary import case_table, parts_table
    from step.turns import measure_case

    cases = choose_cases(options.cases, device)
    cases = [case.changed(options.steps, options.rounds, options.micro_batch_rows) for case in cases]
    systems = {case.name: choose_systems(options.systems, device, case.leaves_out, case.architecture) for case in cases}
    text = _text(options, BERT_VOCABULARY, BLOCK_BYTES)
    limits = measure_limits(device, options.threads)
    say(
        f"this device: {limits['flops'] / 1e12:.3g} TFLOP/s {PRECISION[device]}, {limits['bytes_per_s'] / 1e9:.3g} GB/s"
    )
    failed = []
    for case in cases:
        measured = measure_case(case, systems[case.name], text, device, options.threads, not options.no_profile, say)
        failed += [f"{case.name} of {name}: {reason}" for name, reason in measured["failures"].items()]
        measured |= {
            "stamp": stamp(_command(options, "step"), device),
            "case": asdict(case),
            "precision": PRECISION[device],
            "limits": limits,
            "text": _described(text),
        }
        _add(options.out, device, "cases", {case.name: measured})
        if measured["systems"]:
            say(f"\n{case.title}\n{case_table(measured)}\n")
            if parts := parts_table(measured):
                say(f"{parts}\n")
    _report(failed)


def _measure_learning(options: argparse.Namespace, device: Device) -> None:
    from step.cases import choose_systems
    from step.learning import RECIPES
    from step.summary import learning_table
    from step.text import QUICKSTART_BLOCK_BYTES
    from step.turns import measure_learning

    recipe = RECIPES[device]
    seeds = range(1, (options.seeds or 1) + 1)
    systems = choose_systems(options.systems or LEARNERS[device], device)
    recipe.training(seeds[0], options.steps)  # refuses what cannot be trained before text is prepared
    text = _text(options, recipe.vocab_size, QUICKSTART_BLOCK_BYTES)
    measured = measure_learning(recipe, systems, seeds, options.steps, text, device, options.threads, say)
    measured |= {
        "stamp": stamp(_command(options, "loss"), device),
        "recipe": {**asdict(recipe), "steps": options.steps or recipe.steps},
        "text": _described(text),
    }
    _add(options.out, device, "learning", measured)
    if measured["runs"]:
        say(f"\n{learning_table(measured)}\n")
    _report([f"{name}: {reason}" for name, reason in measured["failures"].items()])


def _measure_curves(options: argparse.Namespace, device: Device) -> None:
    from step.learning import CURVES, apart
    from step.summary import apart_table
    from step.text import QUICKSTART_BLOCK_BYTES
    from step.turns import measure_curves

    if device != "cpu":
        raise UserError("--only curves is for a CPU: say --device cpu")
    vocab_size = max(recipe.vocab_size for recipe in CURVES.values())
    for recipe in CURVES.values():
        recipe.training(1, options.steps)  # refuses what cannot be trained before text is prepared
    text = _text(options, vocab_size, QUICKSTART_BLOCK_BYTES)
    seeds = range(1, (options.seeds or 3) + 1)
    measured = measure_curves(CURVES, seeds, options.steps, text, options.threads, say)
    for name, recipe in CURVES.items():
        measured[name] |= {
            "stamp": stamp(_command(options, "curves"), device),
            "recipe": {**asdict(recipe), "steps": options.steps or recipe.steps},
            "text": _described(text),
        }
        if found := apart(measured[name]["runs"]):
            say(f"\n{name}\n{apart_table(found)}\n")
    _add(options.out, device, "curves", measured)
    _report([f"{name}, {what}: {why}" for name in measured for what, why in measured[name]["failures"].items()])


def _text(options: argparse.Namespace, vocab_size: int, block_bytes: int) -> Text:
    from step.text import Text, check_vocabulary, prepare

    given = Text(options.corpus, options.tokenizer) if options.corpus else None
    text = given or prepare(options.cache, vocab_size, block_bytes, cores())
    _, tokenizer = text.open()
    check_vocabulary(tokenizer, vocab_size)
    return text


def _described(text: Text) -> dict[str, Any]:
    index, tokenizer = text.open()
    kept = ("documents", "held_out_documents", "text_bytes", "digest")
    return {**{name: index.header[name] for name in kept}, "vocab_size": tokenizer.vocab_size}


def _results(out: Path, device: Device) -> dict[str, Any]:
    """What other measurements put into a file. Raises UserError where it holds anything else, or another device's."""
    if not out.exists():
        return {"device": name_of(device)}
    try:
        results = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out} cannot be read as results ({error}): name another file") from None
    if not isinstance(results, dict) or "device" not in results or not isinstance(results.get("cases", {}), dict):
        raise UserError(f"--out {out} holds something else than a benchmark's results: name another file")
    if results["device"] != name_of(device):
        raise UserError(f"--out {out} holds results of another device, {results['device']}: name another file")
    return results


def _add(out: Path, device: Device, what: str, result: dict[str, Any]) -> None:
    """Put a result into the file, beside what other measurements put there."""
    results = _results(out, device)
    results[what] = {**results.get(what, {}), **result} if what == "cases" else result
    write_atomically(out, json.dumps(results, indent=1) + "\n")


def _report(failed: Sequence[str]) -> None:
    if failed:
        raise UserError("did not run: " + "; ".join(failed))


def _device(wanted: Device | None) -> Device:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def _command(options: argparse.Namespace, what: str) -> str:
    """What gives these measurements, without what differs between machines."""
    kept = ("device", *UNLIKE, *ONLY[what])
    given = [
        _option(name) + ("" if value is True else f" {_said(value)}")
        for name, value in vars(options).items()
        if name in kept and value
    ]
    return " ".join(["python benchmarks/step.py --only", what, *given])


def _said(value: Any) -> str:
    return shlex.quote(",".join(value) if isinstance(value, list) else str(value))


def _names(text: str) -> list[str]:
    """`a,b` -> a and b."""
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("names nothing")
    return names
