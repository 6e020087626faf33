"""A result file with figures that can be checked by hand."""

from __future__ import annotations

from typing import Any

FACTS = {"rows": 8, "text_tokens": 960, "slots": 1000, "pairs": [128_000], "predicted": 150, "all_slots": 1024}
STAMP = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789ab",
    "command": "python benchmarks/step.py --only step",
    "cpu": "A CPU",
    "cores": 2,
    "memory_bytes": 8 << 30,
    "gpu": None,
    "gpu_memory_bytes": None,
    "cuda": None,
    "system": "Linux 6, Python 3.12.1",
    "versions": {"torch": "2.11.0"},
    "load_average": 0.5,
}
TEXT = {"documents": 1000, "held_out_documents": 10, "text_bytes": 3 << 20, "digest": "d", "vocab_size": 30522}


def system(step_s: list[float], peak_bytes: int, graphs: int = 0) -> dict[str, Any]:
    """One step a round, of so many seconds."""
    parts = ["gemm", "attention", "elementwise", "head", "optimizer", "data", "other", "gaps"]
    turns = [
        {
            "round": number,
            "step_s": [seconds],
            "facts": FACTS,
            "peak_bytes": peak_bytes,
            "loss": 10.0,
            "graphs_compiled": graphs,
        }
        for number, seconds in enumerate(step_s)
    ]
    return {
        "about": "a system",
        "ready": {"build_s": 1.0, "warm_s": 2.0, "baseline_bytes": 0},
        "turns": turns,
        "profile": {"step_s": 0.8, "wait_s": 0.01, "parts": dict.fromkeys(parts, 0.1), "names": []},
    }


def case() -> dict[str, Any]:
    """maskloom twice as fast as the peer in one round, four times in the next, and three times in the last."""
    return {
        "stamp": STAMP,
        "case": {
            "name": "base-128",
            "title": "BERT-base, 128",
            "hidden_size": 768,
            "layers": 12,
            "heads": 12,
            "seq_len": 128,
            "step_rows": 8,
            "micro_batch_rows": 4,
            "warm_steps": 1,
            "steps": 1,
            "rounds": 3,
            "leaves_out": [],
            "vocab_size": 30522,
        },
        "precision": "bf16",
        "limits": {"flops": 790e12, "bytes_per_s": 4.3e12},
        "text": TEXT,
        "systems": {
            "maskloom-eager": system([0.5, 0.25, 0.5], 100 << 20),
            "maskloom-compile": system([0.4, 0.2, 0.4], 50 << 20),
            "hf-sdpa": system([0.8, 0.8, 1.2], 200 << 20, graphs=1),
        },
        "failures": {"hf-eager": "turn: out of memory"},
    }


def learning() -> dict[str, Any]:
    recipe = {
        "case": {**case()["case"], "name": "mini"},
        "vocab_size": 8192,
        "lr": 1e-3,
        "warmup_steps": 10,
        "steps": 20,
    }
    runs = [
        {
            "system": name,
            "about": name,
            "seed": seed,
            "start_s": 1.0,
            "curve": [[0, 0, 0.0, 9.0], [20, 2000, seconds, 6.0]],
        }
        for seed, factor in ((1, 1), (2, 2))
        for name, seconds in (("maskloom-eager", 3.0 * factor), ("hf-sdpa", 6.0 * factor))
    ]
    return {"stamp": STAMP, "recipe": recipe, "text": TEXT, "runs": runs, "target": 7.5, "failures": {}}
