"""docs/rehearsal.md from the results: what was compiled, and what would follow on a GPU."""

from __future__ import annotations

import re
from math import inf
from typing import Any

from page import wrapped

from rehearse import checks, prediction
from rehearse.prediction import CAUTIOUS, HOPEFUL, Speeds

WHOLE = ("base-128", "base-512", "large-128", "large-512")
MODERN = "modernbert-base-1024"


def missing(results: dict[str, Any]) -> list[str]:
    """Parts and cases that the page shows and that are not in the results."""
    compiled = results.get("compile", {})
    wanted = [(name, variant) for name in (*WHOLE, MODERN) for variant in ("plain", "ours")]
    wanted.append(("zero3", "ours"))
    lacking = [f"{name} ({variant})" for name, variant in wanted if variant not in compiled.get(name, {})]
    return lacking + [part for part in ("fused_adam", "unit") if part not in results]


def page(results: dict[str, Any]) -> str:
    """The page, of results in which all cases stand."""
    parts = [
        *(_head(), _checks(results), _layer(results), _modern(results)),
        *(_prediction(results), _method(), _rest(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _head() -> str:
    title = flowing("""
# The GPU path, rehearsed without a GPU

**Compiled, not measured: no figure of maskloom on this page is from a GPU.** The graphs, the kernels, their machine code and
the operators are those that a Hopper (H100, H200) would run. The rows a second are predicted from them, and from what is
[assumed](#method) of the GPU. `make rehearse` writes this file. The code is in
[benchmarks/rehearse](../benchmarks/rehearse/__init__.py).
""")
    commands = """```
make rehearse                                              everything
make rehearse REHEARSE="--only compile --cases base-128"   a part
make rehearse REHEARSE_VENV=FOLDER                         in an environment that is there
```"""
    needs = flowing("""
It needs Python 3.12 or 3.11 (`REHEARSE_PYTHON=python3.12`), gcc, and for FusedAdam nvcc of CUDA 13.0 on the PATH. It needs
no driver and no GPU. It makes its own environment in `benchmarks/.cache/rehearse/.venv`, about 6 GB. That has the CUDA build
of the lowest torch that pyproject.toml admits, from the package index. On two cores this takes about 7 minutes once, and the
rest about a quarter of an hour. If a figure is out of its limits, the command names it at the end, and fails. The figures
are in `benchmarks/results/rehearsal.json`. A part that is run alone replaces its own there, each with its commit.
""")
    return f"{title}\n\n{commands}\n\n{needs}"


def _checks(results: dict[str, Any]) -> str:
    found = {name: checks.figures(_ours(results, name)) for name in (*WHOLE, "zero3")}
    rows = []
    for figure, limit in checks.WHOLE.items():
        cells = [_value(found[name][figure]) if figure in found[name] else "" for name in found]
        rows.append([figure, _limit(limit), *cells])
    kernels = ", ".join(f"{_ours(results, name)['kernels']} for {name}" for name in found)
    before = flowing(f"""
## What was compiled

Compiled were forward and backward of two layers with embeddings, head and loss, in bf16. They had the micro-batches of
`benchmarks/step.py`, over three numbers of pieces. `zero3` is what ZeRO-3 compiles: the function of a layer and that of the
loss. All is as `engine.kernels: compile` has it. {_origin(_ours(results, WHOLE[0]))}
""")
    after = flowing(f"""
`zero3` has two graphs each way, of the layer and of the loss: its limits are 2. Different Triton kernels: {kernels}. [K, V]
are the logits. The largest fp32 buffer is another one, and stands as a share of their elements. Instructions are those that
a warp issues. They are read from the machine code, by `cuobjdump` of the triton package. They are counted for a row of the
hidden states, 768 or 1,024 elements, and for an element of the feed-forward layer.
""")
    return f"{before}\n\n{_table(['', 'limit', *found], rows)}\n\n{after}"


def _modern(results: dict[str, Any]) -> str:
    facts, bert = _ours(results, MODERN), checks.figures(_ours(results, WHOLE[0]))
    found = checks.figures(facts)
    rows = [
        [figure, _limit(limit), _value(found[figure]), _value(bert[figure]) if figure in bert else ""]
        for figure, limit in checks.MODERN.items()
    ]
    rates = prediction.rows_per_s(facts)
    slow, fast = (f"{rate * facts['case']['seq_len']:,.0f}" for rate in rates)
    moved = [found[f"h bytes a token, layer {way}"] for way in ("forward", "backward")]
    before = flowing(f"""
## ModernBERT

The case is {MODERN}: rows of 1,024 slots, 30 % of the tokens predicted, no dropout. Two layers in three look 64 slots to either
side, which torch's variable-length attention does by itself. The layer whose kernels are counted is the third, which has such a
window; a layer that sees its whole piece differs in the angles alone. {_origin(facts)}
""")
    between = flowing(f"""
A layer's work, as above. It moves {moved[0]:.1f} h + {moved[1]:.1f} h = {sum(moved):.1f} h bytes a token.
""")
    after = flowing(f"""
Predicted are **{slow} to {fast} tokens a second** of one H200, with the assumptions of the next section. FlashAttention takes
{prediction.QUERIES_A_TILE} queries at once: in a layer with a window they see as many keys more.
""")
    head = ["", "limit", MODERN, WHOLE[0]]
    return "\n\n".join([before, _table(head, rows), between, _layer_table(facts), after])


def _layer_table(facts: dict[str, Any]) -> str:
    unit, rows = _unit(facts), []
    for direction, works in facts["layer"].items():
        for stem, work in works.items():
            if work["launches"] and (work["bytes"] >= 0.05 * unit or work["kind"] in ("product", "attention")):
                moved = f"{work['bytes'] / unit:.1f} h" if work["bytes"] else ""
                rows.append([direction, f"`{stem}`", str(work["launches"]), moved])
    return _table(["", "kernel", "launches", "bytes a token"], rows)


def _layer(results: dict[str, Any]) -> str:
    facts = _ours(results, WHOLE[0])
    found = [checks.figures(results["compile"][WHOLE[0]][variant]) for variant in ("plain", "ours")]
    pairs = [[round(each[f"h bytes a token, layer {way}"], 1) for way in ("forward", "backward")] for each in found]
    sums = [f"{forward:.1f} h + {backward:.1f} h = {forward + backward:.1f} h" for forward, backward in pairs]
    before = flowing(f"""
## What a layer moves

The case is {WHOLE[0]}. Products and attention have no bytes here, since their kernels are not Inductor's. Bytes a token are
those of the kernels' arguments, each buffer read or written once. h is the width. What moves less than 0.05 h is left out.
""")
    after = flowing(f"""
With torch's dropout and GELU a layer moves {sums[0]} bytes a token, with ours {sums[1]}. On a CPU Inductor fuses less
(`benchmarks/elementwise.py`). There a residual's sum is written before LayerNorm reads it, and the gradients of LayerNorm's
weights are a pass of their own.
""")
    return f"{before}\n\n{_layer_table(facts)}\n\n{after}"


def _prediction(results: dict[str, Any]) -> str:
    rates, times = [], []
    for name in (*WHOLE, MODERN):
        pair = [results["compile"][name][variant] for variant in ("plain", "ours")]
        rates.append([name, *(cell for facts in pair for cell in _rates(facts))])
        for title, facts in zip(("torch's", "ours"), pair, strict=True):
            parts = [prediction.step_parts(facts, speeds) for speeds in (CAUTIOUS, HOPEFUL)]
            kinds = ("products", "attention", "elementwise", "launches", "optimizer", "total")
            cells = [_ms(*(getattr(part, kind) for part in parts)) for kind in kinds]
            times.append([f"{name}, {title}", *cells])
    pairs = [
        checks.figures(results["compile"][name][variant])
        for name in (WHOLE[0], WHOLE[2])
        for variant in ("plain", "ours")
    ]
    names = [figure for figure in checks.WHOLE if figure.startswith("instructions")]
    counts = [[figure, *(_value(found[figure]) for found in pairs)] for figure in names]
    before = flowing(f"""
## Predicted rows a second of one H200

Predicted, not measured, from cautious to hopeful assumptions. "Torch's" is the compiled path with torch's own dropout and
GELU. "Ours" has our forms of both ([kernels/](../src/maskloom/models/kernels/__init__.py)), which are plain torch that
Inductor compiles. The share is that of the best product, {prediction.BEST_PRODUCT_FLOPS / 1e12:.0f} TFLOP/s. The MFU of a
run's log is a share of the data sheet's {prediction.SHEET_FLOPS / 1e12:.0f}, and smaller by a fifth.
""")
    between = "Milliseconds of an optimizer step, by kind of work:"
    after = "What our forms change, in instructions that are issued:"
    return "\n\n".join(
        [
            before,
            _table(["case", "torch's: rows/s", "share", "ours: rows/s", "share"], rates),
            between,
            _table(["", "products", "attention", "elementwise", "between kernels", "optimizer", "step"], times),
            after,
            _table(["", "base-128, torch's", "ours", "large-128, torch's", "ours"], counts),
        ]
    )


def _method() -> str:
    bytes_a_token = prediction.ATTENTION_BYTES
    best, copy = prediction.BEST_PRODUCT_FLOPS / 1e12, prediction.COPY_BYTES_PER_S / 1e12
    sheet = prediction.SHEET_FLOPS / 1e12, prediction.SHEET_BYTES_PER_S / 1e12
    rows = [
        ["best product in bf16, TFLOP/s", *[f"{best:.0f}"] * 2, f"the data sheet has {sheet[0]:.0f}"],
        ["copy of 1 GiB in its memory, TB/s", *[f"{copy:.1f}"] * 2, f"the data sheet has {sheet[1]:.1f}"],
        ["products, share of the best", *_both("product_share", 1, 2), "biases added in them"],
        [
            "Inductor's kernels, share of a copy",
            *_both("copy_share", 1, 2),
            "each as long as its bytes, or its instructions",
        ],
        ["attention, TFLOP/s", *_both("attention_flops", 1e12, 0), "FlashAttention 2, heads of 64, rows of 512"],
        [
            "attention, share of a copy",
            *_both("attention_copy_share", 1, 2),
            f"if its {bytes_a_token} h bytes a token take longer: rows of 128",
        ],
        ["between two kernels, microseconds", *_both("gap_s", 1e-6, 0), "the host is ahead of the GPU"],
        [
            "optimizer, bytes a parameter",
            *_both("optimizer_bytes", 1, 0),
            "gradients added up, their norm, AdamW in fp32",
        ],
    ]
    before = flowing(f"""
## Method

A step is a sum, since work on one stream does not overlap. It has micro-batches times (layers times a layer, and once
embeddings, head and loss), and the optimizer. A layer's launches are the difference between models of three layers and of two.

- Matrix products: the FLOPs of [flops.py](../src/maskloom/models/flops.py), with the vocabulary padded, at a share of the
  best product.
- Attention: the longer of its FLOPs and its bytes.
- Each of Inductor's kernels: the longer of its bytes, at a share of a copy's speed, and of its instructions. The GPU issues
  {prediction.ISSUE_PER_S / 1e9:.0f} billion a second: 132 multiprocessors of 4 schedulers, one instruction a cycle at
  1.755 GHz. If a loop's turns do not follow from the sizes (sums over all tokens), it counts by its bytes alone.
- Rows are full and one piece. Packed text has shorter pieces. For these attention does less, and is less efficient.

What is assumed of the GPU stands in one place, [prediction.py](../benchmarks/rehearse/prediction.py). The first two lines
were measured on an H200 with torch alone. No record of that is kept here. `benchmarks/gpu_check.sh first` measures both
again, with products and attention at our shapes.
""")
    after = flowing("""
`benchmarks/step.py` on a GPU answers what this cannot tell:

- whether a kernel is right, since nothing runs;
- how fast products and attention are at these shapes;
- which of several configurations of a kernel is fastest; here the one with the fewest instructions is taken;
- clocks under load, and anything of several GPUs.
""")
    return f"{before}\n\n{_table(['', 'cautious', 'hopeful', 'of'], rows)}\n\n{after}"


def _rest(results: dict[str, Any]) -> str:
    adam, unit = results["fused_adam"], results["unit"]
    versions = ", ".join(f"{name} {version}" for name, version in unit["versions"].items())
    holds = ", ".join(adam["cubins"]) or "no machine code for it"
    text = flowing(f"""
## FusedAdam and the unit suite

DeepSpeed's FusedAdam builds for a Hopper without one: {adam["mib"]} MiB in {adam["seconds"]} s, with `{holds}`. A build that
is not told so (`DS_ACCELERATOR=cuda`) takes the operator for CPUs, under the same name. {_origin(adam)}

The unit suite at the lowest versions that pyproject.toml admits, {versions}: {unit["summary"].strip("= ")}. {_origin(unit)}
""")
    return "\n".join([text, *([""] if unit["failed"] else []), *(f"- `{line}`" for line in unit["failed"])])


def flowing(text: str) -> str:
    """Paragraphs and points of a list, however their lines are broken, at the page's width."""
    paragraphs = re.split(r"\n\s*\n|\n(?=- )", text.strip())
    lines = [wrapped(" ".join(part.split())) for part in paragraphs]
    return "".join(
        line + ("" if line is lines[-1] else "\n" if following.startswith("- ") and line.startswith("- ") else "\n\n")
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
    )


def _ours(results: dict[str, Any], name: str) -> dict[str, Any]:
    facts: dict[str, Any] = results["compile"][name]["ours"]
    return facts


def _unit(facts: dict[str, Any]) -> int:
    case = facts["case"]
    return int(case["micro_batch_rows"] * case["seq_len"] * case["hidden_size"])


def _origin(facts: dict[str, Any]) -> str:
    made = facts["from"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("torch", "triton", "transformers", "deepspeed"))
    return f"(Python {made['python']}, {versions}; commit {made['commit']}, {made['date']})"


def _rates(facts: dict[str, Any]) -> list[str]:
    rates = prediction.rows_per_s(facts)
    used = [f"{prediction.utilisation(facts, rate):.0%}" for rate in rates]
    return [f"**{rates[0]:,.0f}-{rates[1]:,.0f}**", "-".join(used)]


def _ms(cautious: float, hopeful: float) -> str:
    return f"{hopeful * 1e3:.1f}-{cautious * 1e3:.1f}"


def _both(name: str, unit: float, digits: int) -> list[str]:
    def shown(speeds: Speeds) -> str:
        return f"{getattr(speeds, name) / unit:.{digits}f}"

    return [shown(CAUTIOUS), shown(HOPEFUL)]


def _value(value: float) -> str:
    if value == inf:
        return "not known"
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _limit(limit: checks.Limit) -> str:
    return f"{limit.most:g}" if limit.least == limit.most else f"at most {limit.most:g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
