"""Measure training beside plain Hugging Face, on this machine.

step  steps of BERT (on a GPU base and large at 128 and 512 slots a row in bf16; on a CPU mini and base at 128 in fp32), the
      optimizer included: text tokens/s, TFLOP/s, MFU and peak memory of every system, in turns; --profile shows the parts
loss  seconds, steps and tokens until a small model reaches a held-out loss, from the same first weights on the same text

The text is the documentation of the installed packages, unless --corpus names another; it is prepared once. Measure on an
idle machine. --out adds to a file: a case or the training that is measured again replaces what stood there.

examples:
  maskloom bench step --cases base-128 --systems maskloom-compile,hf-sdpa-compile --rounds 3
  maskloom bench step --profile --out bench.json
  maskloom bench loss --seeds 2
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.commands.arguments import cores, positive
from maskloom.errors import UserError
from maskloom.files import write_atomically
from maskloom.progress import say

if TYPE_CHECKING:
    from maskloom.bench.cases import Device
    from maskloom.bench.text import Text

STEP_ONLY = ("cases", "rounds", "micro_batch_rows", "profile")
LOSS_ONLY = ("seeds",)
LEARNERS = {"cpu": ("maskloom-eager", "hf-sdpa"), "cuda": ("maskloom-compile", "hf-sdpa", "hf-sdpa-compile")}


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", choices=("step", "loss"), metavar="step|loss")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    add("--cases", type=_names, metavar="A,B", help="step: of these model shapes (default: all but tiny)")
    add("--systems", type=_names, metavar="A,B", help="these systems (default: all for steps, few for a loss)")
    add("--steps", type=positive, metavar="N", help="measured steps a turn, or the length of the training")
    add("--rounds", type=positive, metavar="N", help="step: turns of every system")
    add("--micro-batch-rows", type=positive, metavar="N", help="step: rows at once, where memory is short")
    add("--profile", action="store_true", help="step: where the time goes, by part")
    add("--seeds", type=positive, metavar="N", help="loss: trainings of each system (default: 1)")
    add("--corpus", metavar="CORPUS", help="folder of an index, in place of the documentation; needs --tokenizer")
    add("--tokenizer", metavar="TOK", help="tokenizer for --corpus")
    add("--cache", type=Path, default=Path("data/bench"), help="where the text is prepared (default: data/bench)")
    add("--threads", type=positive, default=cores(), help="of torch on a CPU (default: all cores)")
    add("--out", type=Path, metavar="FILE.json", help="add the results to this file")


def run(options: argparse.Namespace) -> int:
    for name in LOSS_ONLY if options.what == "step" else STEP_ONLY:
        if getattr(options, name):
            other = "loss" if options.what == "step" else "step"
            raise UserError(f"--{name.replace('_', '-')} is for `maskloom bench {other}`")
    if bool(options.corpus) != bool(options.tokenizer):
        raise UserError("--corpus and --tokenizer go together: name both, or neither")
    device = _device(options.device)
    if options.out:
        _results(options.out, device)
        options.out.parent.mkdir(parents=True, exist_ok=True)
    (_measure_steps if options.what == "step" else _measure_learning)(options, device)
    return 0


def _measure_steps(options: argparse.Namespace, device: Device) -> None:
    from maskloom.bench.cases import BERT_VOCABULARY, PRECISION, choose_cases, choose_systems
    from maskloom.bench.clock import measure_limits
    from maskloom.bench.machine import stamp
    from maskloom.bench.summary import case_table, parts_table
    from maskloom.bench.turns import measure_case
    from maskloom.data.index.indexing import BLOCK_BYTES

    cases = choose_cases(options.cases, device)
    cases = [case.changed(options.steps, options.rounds, options.micro_batch_rows) for case in cases]
    systems = {case.name: choose_systems(options.systems, device, case.leaves_out) for case in cases}
    text = _text(options, BERT_VOCABULARY, BLOCK_BYTES)
    limits = measure_limits(device, options.threads)
    say(
        f"this device: {limits['flops'] / 1e12:.3g} TFLOP/s {PRECISION[device]}, {limits['bytes_per_s'] / 1e9:.3g} GB/s"
    )
    failed = []
    for case in cases:
        measured = measure_case(case, systems[case.name], text, device, options.threads, options.profile, say)
        failed += [f"{case.name} of {name}: {reason}" for name, reason in measured["failures"].items()]
        measured |= {
            "stamp": stamp(_command(options), device),
            "case": {**asdict(case), "vocab_size": BERT_VOCABULARY},
            "precision": PRECISION[device],
            "limits": limits,
            "text": _described(text),
        }
        if options.out:
            _add(options.out, device, "cases", {case.name: measured})
        if measured["systems"]:
            say(f"\n{case.title}\n{case_table(measured)}\n")
            if parts := parts_table(measured):
                say(f"{parts}\n")
    _report(failed)


def _measure_learning(options: argparse.Namespace, device: Device) -> None:
    from maskloom.bench.cases import choose_systems
    from maskloom.bench.learning import RECIPES
    from maskloom.bench.machine import stamp
    from maskloom.bench.summary import learning_table
    from maskloom.bench.text import QUICKSTART_BLOCK_BYTES
    from maskloom.bench.turns import measure_learning

    recipe = RECIPES[device]
    seeds = range(1, (options.seeds or 1) + 1)
    systems = choose_systems(options.systems or LEARNERS[device], device)
    recipe.training(seeds[0], options.steps)  # refuses what cannot be trained before text is prepared
    text = _text(options, recipe.vocab_size, QUICKSTART_BLOCK_BYTES)
    measured = measure_learning(recipe, systems, seeds, options.steps, text, device, options.threads, say)
    measured |= {
        "stamp": stamp(_command(options), device),
        "recipe": {**asdict(recipe), "steps": options.steps or recipe.steps},
        "text": _described(text),
    }
    if options.out:
        _add(options.out, device, "learning", measured)
    if measured["runs"]:
        say(f"\n{learning_table(measured)}\n")
    _report([f"{name}: {reason}" for name, reason in measured["failures"].items()])


def _text(options: argparse.Namespace, vocab_size: int, block_bytes: int) -> Text:
    from maskloom.bench.text import Text, check_vocabulary, prepare

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
    from maskloom.bench.machine import name_of

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


def _command(options: argparse.Namespace) -> str:
    """What gives these measurements, without what differs between machines."""
    given = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {_said(value)}")
        for name, value in vars(options).items()
        if name in ("device", "cases", "systems", "steps", "rounds", "micro_batch_rows", "profile", "seeds") and value
    ]
    return " ".join(["maskloom bench", options.what, *given])


def _said(value: Any) -> str:
    return shlex.quote(",".join(value) if isinstance(value, list) else str(value))


def _names(text: str) -> list[str]:
    """`a,b` -> a and b."""
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("names nothing")
    return names
