"""docs/rehearsal.md from the results: what was compiled, and what would follow on a GPU."""

from __future__ import annotations

from typing import Any

from page import wrapped

from rehearse import checks, prediction
from rehearse.prediction import CAUTIOUS, HOPEFUL, Speeds

WHOLE = ("base-128", "base-512", "large-128", "large-512")


def page(results: dict[str, Any]) -> str:
    """The page, of results in which all cases stand."""
    parts = [_head(), _checks(results), _layer(results), _prediction(results), _method(), _rest(results)]
    return "\n".join(wrapped(line) for line in "\n\n".join(parts).splitlines()) + "\n"


def _head() -> str:
    return """# The GPU path, rehearsed without a GPU

**Compiled, not measured: no figure on this page is from a GPU.** The graphs, the kernels, their machine code and the operators are those that a Hopper (H100, H200) would run; the rows a second are a prediction from them. This file is written by the tool (`make rehearse`); the code is [benchmarks/rehearse](../benchmarks/rehearse/__init__.py).

```
make rehearse                                            all: about 15 minutes on two idle cores, and 9 GB for its environment
make rehearse REHEARSE="--only compile --cases base-128" a part
make rehearse REHEARSE_VENV=FOLDER                       in an environment that is there
```

It needs Python 3.12 or 3.11 (`REHEARSE_PYTHON=python3.12`), gcc, and for FusedAdam nvcc of CUDA 13.0 on the PATH. Its environment, `benchmarks/.cache/rehearse/.venv`, holds the CUDA build of the lowest torch that pyproject.toml admits, from the package index; no driver and no GPU is needed. What is out of its limits is named at the end, and the command fails."""


def _checks(results: dict[str, Any]) -> str:
    found = {name: checks.figures(_ours(results, name)) for name in (*WHOLE, "zero3")}
    rows = []
    for figure, limit in checks.WHOLE.items():
        cells = [_value(found[name][figure]) if figure in found[name] else "" for name in found]
        rows.append([figure, _limit(limit), *cells])
    kernels = ", ".join(f"{_ours(results, name)['kernels']} for {name}" for name in found)
    return f"""## What was compiled

Two layers with embeddings, head and loss in bf16, in the micro-batches of `maskloom bench step`, forward and backward, over three numbers of pieces; `zero3` is what ZeRO-3 compiles, the function of a layer and that of the loss. {_origin(_ours(results, WHOLE[0]))}

{_table(["", "limit", *found], rows)}

All by the compiled path (`engine.kernels: compile`). `zero3` has two graphs each way, of the layer and of the loss, and its own limits. Different Triton kernels: {kernels}. [K, V] are the logits; the largest fp32 buffer is of another kind, and stands as a share of their elements. Instructions are those that a warp issues, read from the machine code (`cuobjdump`, of the triton package): for a row of the hidden states (768 or 1,024 elements), and for an element of the feed-forward layer."""


def _layer(results: dict[str, Any]) -> str:
    facts = _ours(results, WHOLE[0])
    unit = _unit(facts)
    rows = []
    for direction, works in facts["layer"].items():
        for stem, work in works.items():
            if work["launches"] and (work["bytes"] >= 0.05 * unit or work["kind"] in ("product", "attention")):
                moved = f"{work['bytes'] / unit:.1f} h" if work["bytes"] else ""
                rows.append([direction, f"`{stem}`", str(work["launches"]), moved])
    plain, ours = (checks.figures(results["compile"][WHOLE[0]][variant]) for variant in ("plain", "ours"))
    forward, backward = "h bytes a token, layer forward", "h bytes a token, layer backward"
    return f"""## What a layer moves

Of {WHOLE[0]}, beside products and attention, whose kernels are not Inductor's. Bytes a token are those of the kernels' arguments, each buffer read or written once; h is the width. What moves less than 0.05 h is left out.

{_table(["", "kernel", "launches", "bytes a token"], rows)}

With torch's own operators a layer moves {plain[forward]:.1f} h + {plain[backward]:.1f} h = {plain[forward] + plain[backward]:.1f} h bytes a token, with ours {ours[forward]:.1f} h + {ours[backward]:.1f} h = {ours[forward] + ours[backward]:.1f} h: the random bits of dropout are written and read. On a CPU Inductor fuses less (`benchmarks/elementwise.py`): there the residual's sum is written before LayerNorm reads it, and the gradients of LayerNorm's weights are a pass of their own."""


def _prediction(results: dict[str, Any]) -> str:
    rates, times = [], []
    for name in WHOLE:
        plain, ours = (results["compile"][name][variant] for variant in ("plain", "ours"))
        rates.append([name, *_rates(plain), *_rates(ours)])
        for title, facts in (("torch's", plain), ("ours", ours)):
            parts = [prediction.step_parts(facts, speeds) for speeds in (CAUTIOUS, HOPEFUL)]
            kinds = ("products", "attention", "elementwise", "launches", "optimizer", "total")
            cells = [_ms(*(getattr(part, kind) for part in parts)) for kind in kinds]
            times.append([f"{name}, {title}", *cells])
    kernels = [
        [
            figure,
            *(
                _value(checks.figures(results["compile"][name][variant])[figure])
                for name in (WHOLE[0], WHOLE[2])
                for variant in ("plain", "ours")
            ),
        ]
        for figure in checks.WHOLE
        if figure.startswith("instructions")
    ]
    return f"""## Predicted rows a second of one H200

Predicted, not measured; a range from cautious to hopeful assumptions. "Torch's" is the compiled path with torch's own dropout and GELU (the `reference()` of each of our kernels), "ours" with [those of maskloom](../src/maskloom/model/kernels/__init__.py): bits for eight elements from one draw, and a shorter GELU in bf16. MFU is the share of the best product, {prediction.BEST_PRODUCT_FLOPS / 1e12:.0f} TFLOP/s.

{_table(["case", "torch's: rows/s", "MFU", "ours: rows/s", "MFU"], rates)}

Milliseconds of an optimizer step, by kind of work:

{_table(["", "products", "attention", "elementwise", "between kernels", "optimizer", "step"], times)}

What our kernels change, in instructions issued:

{_table(["", "base-128, torch's", "ours", "large-128, torch's", "ours"], kernels)}"""


def _method() -> str:
    rows = [
        [
            "products: share of the best",
            *_both("product_share", 1, 2),
            "shapes of [36864 to 73728, 768 to 4096], with biases",
        ],
        ["Inductor's kernels: share of a copy", *_both("copy_share", 1, 2), "of a copy's 4.3 TB/s"],
        ["attention: TFLOP/s", *_both("attention_flops", 1e12, 0), "FlashAttention 2, heads of 64, rows of 512"],
        [
            "attention: share of a copy",
            *_both("attention_copy_share", 1, 2),
            f"where its {prediction.ATTENTION_BYTES} h bytes a token take longer: rows of 128",
        ],
        ["between two kernels, microseconds", *_both("gap_s", 1e-6, 0), "the host is ahead"],
        [
            "optimizer: bytes a parameter",
            *_both("optimizer_bytes", 1, 0),
            "gradients added up, their norm, AdamW in fp32",
        ],
    ]
    return f"""## Method

A step is the sum of what cannot overlap on one stream: micro-batches times (layers times a layer, and once embeddings, head and loss), and the optimizer. A layer's launches are the difference between models of three layers and of two.

- Matrix products: the FLOPs of [flops.py](../src/maskloom/model/flops.py), with the vocabulary padded, at a share of the best product.
- Attention: the longer of its FLOPs and its bytes.
- Each of Inductor's kernels: the longer of its bytes at a share of a copy's speed, and of its instructions at {prediction.ISSUE_PER_S / 1e9:.0f} G/s (132 multiprocessors of 4 schedulers, one instruction a cycle at 1.755 GHz). Loops whose turns do not follow from the sizes (sums over all tokens) count by their bytes alone.
- Rows are full and one piece; text that is packed has shorter pieces, for which attention does less and is less efficient.

What is assumed of the GPU stands in one place, [prediction.py](../benchmarks/rehearse/prediction.py):

{_table(["", "cautious", "hopeful", "of"], rows)}

What this cannot tell: whether a kernel is right (nothing runs), how fast products and attention are at these shapes, which of several configurations Inductor would find fastest (the one with the fewest instructions is taken), clocks under load, memory, and anything of several GPUs. `maskloom bench step` on a GPU answers that."""


def _rest(results: dict[str, Any]) -> str:
    adam, unit = results["fused_adam"], results["unit"]
    versions = ", ".join(f"{name} {version}" for name, version in unit["versions"].items())
    failed = "".join(f"\n- `{line}`" for line in unit["failed"])
    return f"""## FusedAdam and the unit suite

DeepSpeed's FusedAdam builds for a Hopper without one: {adam["mib"]} MiB in {adam["seconds"]} s, with `{", ".join(adam["cubins"]) or "no machine code for it"}`. A build that is not told so (`DS_ACCELERATOR=cuda`) takes the operator for CPUs, under the same name. {_origin(adam)}

The unit suite at the lowest versions that pyproject.toml admits, {versions}: {unit["summary"].strip("= ")}. {_origin(unit)}{failed}"""


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
    cautious, hopeful = prediction.rows_per_s(facts)
    used = [f"{prediction.utilisation(facts, rate):.0%}" for rate in (cautious, hopeful)]
    return [f"**{cautious:,.0f}-{hopeful:,.0f}**", "-".join(used)]


def _ms(cautious: float, hopeful: float) -> str:
    return f"{hopeful * 1e3:.1f}-{cautious * 1e3:.1f}"


def _both(name: str, unit: float, digits: int) -> list[str]:
    def shown(speeds: Speeds) -> str:
        return f"{getattr(speeds, name) / unit:.{digits}f}"

    return [shown(CAUTIOUS), shown(HOPEFUL)]


def _value(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _limit(limit: checks.Limit) -> str:
    return f"{limit.most:g}" if limit.least == limit.most else f"at most {limit.most:g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
