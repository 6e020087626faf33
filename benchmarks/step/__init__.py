"""Training steps of maskloom measured beside plain Hugging Face, and the time to a loss.

    cases -> text, once -> a process a system -> turns, round after round -> medians, ratios, parts -> JSON -> tables, plots
    cases.py  text.py      worker.py             turns.py                    summary.py                         report.py
                           ours.py, theirs.py

`python benchmarks/step.py` is the command (`command.py`).
"""
