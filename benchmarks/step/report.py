"""`results/step-*.json` to `docs/benchmarks-step.md` and its plots: every figure there is written by this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from page import draw_bars, draw_lines, draw_stacks, wrapped

from maskloom.train.kinds import TITLES
from step.cases import Case
from step.learning import apart, reached
from step.summary import (
    MIB,
    Limits,
    Spread,
    apart_table,
    best,
    case_table,
    digits,
    figures,
    learning_table,
    limits,
    parts_table,
    ratio,
    shown,
    table,
)

PLAIN = ("hf-eager", "hf-sdpa")


ROOT = Path(__file__).resolve().parents[2]
COMMAND = "`benchmarks/step.py`"
"""Last cell of the rows of README.md's table of figures that are written here."""


def write(results: Sequence[dict[str, Any]], docs: Path = ROOT / "docs", readme: Path = ROOT / "README.md") -> None:
    """Write `benchmarks-step.md` with its plots, a section a device, and the rows of a CPU in README.md's table."""
    for result in results:
        if result["device"] == "cpu":
            readme.write_text(with_rows(readme.read_text(encoding="utf-8"), rows(result)), encoding="utf-8")
    parts = [INTRODUCTION]
    for result in results:
        parts += _device(result, docs)
    parts.append(LEFT_OUT)
    lines = "\n\n".join(part.strip() for part in parts).split("\n")
    (docs / "benchmarks-step.md").write_text("\n".join(map(wrapped, lines)) + "\n", encoding="utf-8")


INTRODUCTION = """
# Benchmarks of a training step

maskloom beside plain Hugging Face on the same text, one machine, one run. `python benchmarks/step.py --report` writes
this file. [benchmarks/README.md](../benchmarks/README.md) says how to run it.

- **The step** is what the clock sees. Batches lie in memory: up to 16 different ones take turns. On a GPU the time is
  that of events on its stream. Compiling and warming up come before. If a graph is compiled while the clock runs, it
  is said below. A turn of a system begins with a step or two that are not measured. The first ones after another
  process' turn are slower, those of Hugging Face more so.
- **maskloom** runs the trainer's own step, `maskloom.train.step.train_step`. That is the sums over the ranks, forward
  and backward, the loss that is read, the guard, clipping to a norm of 1, AdamW and the tally. On a CPU it also cuts
  its rows into flat micro-batches, as in training. The engine is that of `maskloom train`: DeepSpeed with ZeRO 0 in
  fp32, or ZeRO 1 with fp32 master weights in bf16. Its rows are packed: pieces of documents, each with its `[CLS]` and
  `[SEP]`. Attention stays within a piece.
- **A step of Hugging Face** moves the batch to the device, runs forward and backward, clips to a norm of 1, takes
  torch's fused AdamW with two parameter groups, and clears the gradients. Masking and collating are not in it.
- **Hugging Face** is its own class of the architecture (`BertForMaskedLM` and the like) with
  `DataCollatorForLanguageModeling`. In bf16 it has `torch.autocast` over fp32 weights, as its Trainer does. Its rows
  are one stream of tokens cut every S slots (run_mlm's `group_texts`). So none is padded, and attention goes across
  documents. No mask is given, for a mask costs the fastest kernels. `hf-lines` has a document a row, cut and padded to
  S (`--line_by_line`), with its mask.
- **`hf-sparse`** has `sparse_prediction: true`, which only ModernBERT has: its head runs on the predicted tokens alone,
  as maskloom's does for every architecture. `hf-sparse-lines` has it on a document a row.
- **Both** predict 15 % of the tokens of a BERT or a RoBERTa, with dropout 0.1 on hidden states and 0 on attention
  weights (the fast attention has none). A ModernBERT has no dropout, and 30 % are predicted, as in its paper. On a CPU
  the vocabulary is 30,522 for all.
- **Text tokens** carry text: `[CLS]`, `[SEP]` and padding do not count, for anybody.
- **FLOPs** are the model's. A BERT has `72 L h^2 s + 12 L h sum(s_i^2) + 6 p (h^2 + h V)`. Here s are the real tokens
  (`[CLS]` and `[SEP]` are computed, and count), s_i the pieces and p the predicted tokens.
  [flops.py](../src/maskloom/models/flops.py) has the others, whose windows count. What a system computes beyond them
  (padding, the head on tokens that nobody predicts) counts for nothing.
- **MFU** is their share of the GPU's best matrix product, measured in the same run. A CPU, which other processes use
  at the same time, has none.
- **Memory** on a GPU is the most that torch's allocator handed out. On a CPU it is the most resident memory beyond
  what the process had before there was a model.
- Figures are medians of the rounds (least to most). Systems take turns, a process each.
"""

LEFT_OUT = """
## Looked at and left out

What else trains a BERT with masked tokens, and was looked for with pip for this Python and this torch:

- **keras-hub** installs, with TensorFlow. Its `BertMaskedLM` runs on torch and has a head on the masked positions.
  It is another framework around other weights, and was not measured.
- **mosaicml** (MosaicBERT) does not build; **fairseq2** pins another torch; **intel-extension-for-pytorch** is made
  for torch 2.8.
- **megatron-core** installs; its BERT needs a GPU and its own launcher. **liger-kernel** has no BERT.
- **lightning** and **accelerate** train the module that is measured here. **x-transformers** has an encoder of its
  own, not BERT's.
"""


PEERS = {"hf-sdpa": "Hugging Face, SDPA", "hf-sdpa-compile": "the same, compiled"}
MARKED = {"hf-sparse": " (sparse head)", "hf-sdpa-compile": " (compiled)"}
"""System -> what its rate is followed by in README.md."""


def with_rows(text: str, rows: Sequence[str]) -> str:
    """The page with these rows instead of those that have `COMMAND`.

    Raises:
        ValueError: there are none.
    """
    lines = text.split("\n")
    old = [number for number, line in enumerate(lines) if line.endswith(f"| {COMMAND} |")]
    if not old:
        raise ValueError(f"README.md has no row of a table that ends with {COMMAND}: where should the new ones be?")
    kept = [line for number, line in enumerate(lines) if number not in old]
    return "\n".join([*kept[: old[0]], *rows, *kept[old[0] :]])


def rows(result: dict[str, Any]) -> list[str]:
    """The most important figures of a device, for README.md: the largest model of each architecture, and the time to a loss."""
    largest: dict[str, dict[str, Any]] = {}
    for case in sorted(
        result["cases"].values(), key=lambda case: limits(case["case"], "fp32", case["limits"]).row_flops
    ):
        largest[Case.loads(case["case"]).architecture] = case
    found = []
    for case in result["cases"].values():
        if case in largest.values():
            ours = best(case, "maskloom-")
            assert ours is not None
            row = [f"a training step of {case['case']['title']}", _rate_and_memory(case, ours)]
            found.append([*row, _best_beside(case, ours)])
    if "learning" in result:
        what, ours, beside, *_ = _short_learning(result["learning"], list(PEERS))
        found.append([f"training {what}", ours, f"Hugging Face: {beside}" if beside else ""])
    return [f"| {' | '.join([*row, COMMAND])} |" for row in found]


def short(result: dict[str, Any]) -> str:
    """Rates and memory of a device beside the two fastest ways to run Hugging Face's classes."""
    found, dates = [], []
    for case in result["cases"].values():
        dates.append(case["stamp"]["date"][:10])
        ours = best(case, "maskloom-")
        assert ours is not None
        cells = [_beside(case, ours, peer) for peer in PEERS]
        found.append([case["case"]["title"], f"{_rate_and_memory(case, ours)} (`{ours.split('-')[1]}`)", *cells])
    if "learning" in result:
        found.append(_short_learning(result["learning"], list(PEERS)))
        dates.append(result["learning"]["stamp"]["date"][:10])
    days = " to ".join(dict.fromkeys((min(dates), max(dates))))
    said = f"Text tokens a second and peak memory, medians of rounds in turns ({days}):"
    return f"{wrapped(said)}\n\n{table(['slots a row', 'maskloom', *PEERS.values()], found)}"


def _beside(case: dict[str, Any], ours: str, peer: str) -> str:
    """Rate and memory of a peer, and how much slower it is. If its head can be sparse, that is the peer."""
    name, said = ("hf-sparse", " (sparse head)") if peer == "hf-sdpa" else (peer, "")
    if name not in case["systems"]:
        name, said = peer, ""
    over = ratio(case, ours, name)
    return f"{_rate_and_memory(case, name)}{said}: {digits(over.median)} times slower" if over else ""


def _best_beside(case: dict[str, Any], ours: str) -> str:
    """Rate and memory of the fastest peer, and how much slower it is."""
    peers = [name for name in case["systems"] if not name.startswith("maskloom-")]
    slower = {name: over.median for name in peers if (over := ratio(case, ours, name))}
    if not slower:
        return ""
    name = min(slower, key=lambda name: slower[name])
    said = f"{_rate_and_memory(case, name)}{MARKED.get(name, '')}"
    return f"Hugging Face: {said}: {digits(slower[name])} times slower"


def _rate_and_memory(case: dict[str, Any], name: str) -> str:
    figure = figures(case, name)
    return f"{figure.tokens_per_s.median:,.0f} tokens/s, {figure.peak_bytes / MIB:,.0f} MiB"


def _short_learning(learning: dict[str, Any], peers: Sequence[str]) -> list[str]:
    """Seconds to the target, of each system the median over its seeds."""
    cells = []
    for name in ("maskloom-eager", *peers):
        curves = [[tuple(point) for point in run["curve"]] for run in learning["runs"] if run["system"] == name]
        ends = [end["seconds"] for curve in curves if (end := reached(curve, learning["target"]))]
        cells.append(f"{Spread.of(ends).median:.1f} s" if ends else "")
    case = learning["recipe"]["case"]
    return [f"to a held-out loss of {learning['target']:.2f} ({case['layers']} x {case['hidden_size']})", *cells]


def _machine(result: dict[str, Any]) -> str:
    parts = [*result.get("cases", {}).values(), *([result["learning"]] if "learning" in result else [])]
    newest = max((part["stamp"] for part in parts), key=lambda stamp: stamp["date"])
    return newest["gpu"] or f"{newest['cpu']}, {newest['cores']} cores"


def _device(result: dict[str, Any], docs: Path) -> list[str]:
    """The sections of one machine."""
    name, cases = result["device"], result.get("cases", {})
    parts = [f"## {_machine(result)}"]
    if cases:
        parts += [_ratios(list(cases.values())), short(result), _rate_plot(cases, name, docs)]
    for case in cases.values():
        parts += _case(case)
    if any("profile" in system for case in cases.values() for system in case["systems"].values()):
        parts.append(_parts_plot(cases, name, docs))
    if result.get("learning", {}).get("runs"):
        parts += _learning(result["learning"], name, docs)
    if curves := {name: one for name, one in result.get("curves", {}).items() if apart(one["runs"])}:
        parts += _curves(curves)
    return [*parts, _stamps(result)]


def _ratios(cases: Sequence[dict[str, Any]]) -> str:
    """maskloom's fastest system over each peer, in text tokens/s."""
    peers = list(dict.fromkeys(name for case in cases for name in case["systems"] if not name.startswith("maskloom-")))
    rows = []
    for case in cases:
        ours = best(case, "maskloom-")
        if ours is None:
            continue
        over = [ratio(case, ours, peer) for peer in peers]
        cells = [f"**{shown(spread)}x**" if spread else "-" for spread in over]
        rows.append([case["case"]["title"], f"`{ours}`", shown(figures(case, ours).tokens_per_s), *cells])
    return table(["", "maskloom's best", "text tokens/s", *(f"over `{peer}`" for peer in peers)], rows)


def _case(case: dict[str, Any]) -> list[str]:
    shape, bound = case["case"], limits(case["case"], case["precision"], case["limits"])
    text = [
        f"### {shape['title']}",
        f"{shape['layers']} layers of {shape['hidden_size']}, {shape['heads']} heads; a step of {shape['step_rows']:,} rows of "
        f"{shape['seq_len']} in {shape['step_rows'] // shape['micro_batch_rows']} micro-batch(es), {case['precision']}; "
        f"{Case.loads(shape).mask_rate:.0%} of the tokens are predicted; "
        f"{shape['rounds']} rounds of {shape['steps']} step(s).",
        case_table(case),
        f"The roofline, for full rows: {bound.row_flops / 1e9:.4g} GFLOP a row, so that "
        f"**{digits(bound.rows_per_s)} rows/s are 100 %** of the best of torch's own matrix products "
        f"({case['limits']['flops'] / 1e12:.4g} TFLOP/s; oneDNN's on a CPU can be faster)."
        + (f" {_ceilings(case, bound)}" if bound.ceilings else ""),
        *_packing(case),
    ]
    compiled = [name for name, system in case["systems"].items() if any(t["graphs_compiled"] for t in system["turns"])]
    if compiled:
        text.append(f"Graphs were compiled while the clock ran, of {', '.join(compiled)}: their figures are too low.")
    if parts := parts_table(case):
        text += [PARTS_ARE, parts]
    text += [f"Did not run: `{name}`: {reason}" for name, reason in case["failures"].items()]
    return text


def _ceilings(case: dict[str, Any], bound: Limits) -> str:
    return (
        f"What a layer moves beside its products, at the speed of a copy "
        f"({case['limits']['bytes_per_s'] / 1e9:,.4g} GB/s), leaves "
        + ", ".join(f"{share:.0%} {SAID[kind]}" for kind, share in bound.ceilings.items())
        + "."
    )


def _packing(case: dict[str, Any]) -> list[str]:
    """What packing brings over each peer that pads, and what is left beside it."""
    ours, said = best(case, "maskloom-"), []
    for name in case["systems"]:
        over = ratio(case, ours, name) if ours and name.endswith("lines") else None
        if over:
            filled = figures(case, name).filled
            said.append(
                f"`{name}` fills {filled:.1%} of its slots, so that packing alone would be worth {digits(1 / filled)}x. "
                f"maskloom's best is {digits(over.median)}x, which is {digits(over.median * filled)} times that."
                + (
                    " A sparse head skips padding, so that padding costs less than its share."
                    if "sparse" in name
                    else ""
                )
            )
    return said


SAID = {"eager": "in eager mode", "fused": "with all chains fused", "epilogues": "with GELU and bias in epilogues too"}
PARTS_ARE = (
    "Where the time goes, from torch.profiler (kernels on a GPU, operators on a CPU, by their names: "
    "`src/maskloom/train/kinds.py` has the rules), while one process reads the batches:"
)


def _rate_plot(cases: dict[str, Any], device: str, docs: Path) -> str:
    groups = [
        (case["case"]["title"], [(name, figures(case, name).tokens_per_s.median) for name in case["systems"]])
        for case in cases.values()
    ]
    file = f"benchmarks-step-rates-{device}.svg"
    draw_bars(docs / file, "text tokens/s", groups, left=150, digits=0)
    return f"![rates]({file})"


def _parts_plot(cases: dict[str, Any], device: str, docs: Path) -> str:
    profiled = {
        case["case"]["title"]: {name: s["profile"]["parts"] for name, s in case["systems"].items() if "profile" in s}
        for case in cases.values()
    }
    shown_parts = [
        part for part in TITLES if any(parts.get(part) for systems in profiled.values() for parts in systems.values())
    ]
    groups = [
        (title, [(name, [1000 * parts[part] for part in shown_parts]) for name, parts in systems.items()])
        for title, systems in profiled.items()
    ]
    file = f"benchmarks-step-parts-{device}.svg"
    draw_stacks(docs / file, "ms a step, by part", [TITLES[part] for part in shown_parts], groups)
    return f"![parts]({file})"


def _learning(learning: dict[str, Any], device: str, docs: Path) -> list[str]:
    recipe, case, runs = learning["recipe"], learning["recipe"]["case"], learning["runs"]
    first = [run for run in runs if run["seed"] == runs[0]["seed"]]
    curves = [(run["system"], [(point[2], point[3]) for point in run["curve"]]) for run in first]
    bottom = min(loss for _, points in curves for _, loss in points) - 0.2
    file = f"benchmarks-step-loss-{device}.svg"
    draw_lines(docs / file, f"held-out loss over seconds, seed {runs[0]['seed']}", curves, bottom, digits=1)
    return [
        "### Time to a loss",
        f"{case['layers']} layers of {case['hidden_size']}, {recipe['steps']:,} steps of {case['step_rows']} rows of "
        f"{case['seq_len']}, {recipe['vocab_size']:,} ids; learning rate to {recipe['lr']:g} in {recipe['warmup_steps']} steps, "
        "then linearly to 0. Same first weights, text, tokenizer, optimizer and schedule. Both are judged by maskloom's "
        "evaluation of the held-out documents, into whose model the weights are loaded. The clock counts steps and the "
        "wait for data (one reader process each), not evaluation, nor the first step. The target is a loss that every "
        "run reaches.",
        learning_table(learning),
        f"![loss]({file})",
        *(f"Did not run: `{name}`: {reason}" for name, reason in learning["failures"].items()),
    ]


CURVES_SHOWN = 4


def _curves(curves: dict[str, Any]) -> list[str]:
    recipe = next(iter(curves.values()))["recipe"]
    case = recipe["case"]
    parts = [
        "### The same curves",
        f"Do both learn the same? {case['layers']} layers of {case['hidden_size']}, {recipe['steps']:,} steps of "
        f"{case['step_rows']} rows of {case['seq_len']} of the quickstart's text, {recipe['vocab_size']:,} ids; learning rate to "
        f"{recipe['lr']:g} in {recipe['warmup_steps']} steps, then linearly to 0. Hugging Face's own module with torch's AdamW "
        "(`hf-fed`) gets maskloom's first weights, batches and masks. Each piece of a packed row is a padded row of its own "
        "there, with an attention mask. ModernBERT has its sparse head there, and RoBERTa the dense one. "
        "RoBERTa has dropout, which both draw for themselves. Shown is the held-out loss in nats, means over the seeds (least "
        "to most), and maskloom's minus Hugging Face's. The noise is what such a mean difference would spread by if the seeds "
        "had nothing in common.",
    ]
    for name, one in curves.items():
        found = apart(one["runs"])
        parts += [
            f"**{name}**, {Case.loads(one['recipe']['case']).mask_rate:.0%} of the tokens predicted:",
            apart_table(found, max(1, len(found) // CURVES_SHOWN)),
            *(f"Did not run: `{what}`: {reason}" for what, reason in one["failures"].items()),
        ]
    return parts


def _stamps(result: dict[str, Any]) -> str:
    """Where, when and with what each part was measured."""
    lines = ["### The runs", ""]
    measured = {**result.get("cases", {}), **({"loss": result["learning"]} if "learning" in result else {})}
    measured |= {f"curves of {name}": one for name, one in result.get("curves", {}).items()}
    for name, part in measured.items():
        stamp, text = part["stamp"], part["text"]
        gpu = f"{stamp['gpu']}, CUDA {stamp['cuda']}, " if stamp["gpu"] else ""
        lines.append(
            f"- **{name}**: {stamp['date'][:16]} UTC, commit {stamp['commit']}, `{stamp['command']}`, load "
            f"{stamp['load_average']:.1f} at the end; {gpu}{stamp['cpu']}, {stamp['cores']} cores, "
            f"{stamp['memory_bytes'] / 2**30:.0f} GiB, {stamp['system']}; {text['documents']:,} documents, "
            f"{text['text_bytes'] / 2**20:.1f} MiB"
        )
    versions = max((part["stamp"] for part in measured.values()), key=lambda stamp: stamp["date"])["versions"]
    lines.append("- **versions**: " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    return "\n".join(lines)
