"""Facts of a case, as `rehearse.compiling` gives them, small enough to compute with by hand."""

from __future__ import annotations

from typing import Any

ROWS, SEQ_LEN, HIDDEN = 4, 128, 64
SLOTS = ROWS * SEQ_LEN
UNIT = SLOTS * HIDDEN
"""Elements of a hidden state."""


def work(kind: str, launches: int, moved: float, issued: int | None = 0) -> dict[str, Any]:
    return {"kind": kind, "launches": launches, "bytes": int(moved), "issued": issued}


def modern() -> dict[str, Any]:
    """Of a ModernBERT of that size: the first of its three layers sees rows of 128, the others 64 slots to either side."""
    more = {"architecture": "modernbert", "inner_size": 96, "mask_rate": 0.3, "vocab_size": 30528}
    given = facts()
    elements = SLOTS * 96  # of the inner layer
    given["layer"] = {
        "forward": {
            "mm": work("product", 4, 0),
            "triton_per_norm": work("triton", 2, 8 * UNIT, 100),
            "triton_poi_cat_mul": work("triton", 1, 10 * UNIT, 2 * UNIT * 20 // 32),
            "triton_poi_mul_sigmoid": work("triton", 1, 9 * UNIT, elements * 24 // 32),
        },
        "backward": {
            "mm": work("product", 8, 0),
            "triton_per_norm_backward": work("triton", 2, 16 * UNIT, 100),
            "triton_poi_cat_sigmoid": work("triton", 1, 15 * UNIT, elements * 130 // 32),
            "triton_poi_cat_mul": work("triton", 1, 8 * UNIT, 100),
            "triton_poi_stack": work("triton", 1, 4 * UNIT, 100),
        },
    }
    given["saved_bytes_a_layer"] = 25 * UNIT
    return {**given, "case": {**given["case"], **more}, "predicted": 38 * ROWS}


def facts() -> dict[str, Any]:
    """Within all limits: the layer's forward moves 34 h bytes, its backward 64 h."""
    return {
        "case": {
            "name": "small",
            "title": "three layers of 64",
            "hidden_size": HIDDEN,
            "layers": 3,
            "heads": 1,
            "seq_len": SEQ_LEN,
            "step_rows": 2 * ROWS,
            "micro_batch_rows": ROWS,
            "warm_steps": 1,
            "steps": 1,
            "rounds": 1,
            "leaves_out": [],
        },
        "predicted": 19 * ROWS,
        "graphs": {"forward": 1, "backward": 1},
        "captured": 1,
        "breaks": {},
        "largest_fp32": 0,
        "spilled_bytes": {},
        "saved_bytes_a_layer": 34 * UNIT,
        "layer": {
            "forward": {
                "addmm": work("product", 4, 0),
                "triton_per_norm": work("triton", 2, 18 * UNIT, 2 * 800 * SLOTS),
                "triton_poi_gelu": work("triton", 1, 16 * UNIT, 4 * UNIT * 20 // 32),
            },
            "backward": {
                "mm": work("product", 8, 0),
                "triton_per_norm_backward": work("triton", 2, 22 * UNIT, 100),
                "triton_poi_gelu_backward": work("triton", 1, 24 * UNIT, 4 * UNIT * 40 // 32),
                "triton_red_sum": work("triton", 4, 18 * UNIT, None),
            },
        },
        "rest": {
            "forward": {
                "triton_poi_embed": work("triton", 1, 8 * UNIT),
                "triton_per_norm": work("triton", 0, -2 * UNIT),
            },
            "backward": {"mm": work("product", 4, 0)},
        },
    }
