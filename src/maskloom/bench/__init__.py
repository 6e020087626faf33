"""Training steps measured beside plain Hugging Face, and the time to a loss.

    cases -> text, once -> a process a system -> turns, round after round -> medians, ratios, parts -> JSON, tables
    cases.py  text.py      worker.py, systems.py  turns.py                    summary.py, parts.py

`maskloom bench` and `benchmarks/step.py` are its commands.
"""
