"""Files as GLUE's archive holds them: the columns, the names and the quirks of each task, with sentences that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

HEADERS = {
    "cola": "",
    "sst2": "sentence\tlabel",
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
ROWS: dict[str, Callable[[int, str, str, str], str]] = {
    "cola": lambda number, one, two, label: f"gj04\t{label}\t{'' if label == '1' else '*'}\t{one}",
    "sst2": lambda number, one, two, label: f"{one} \t{label}",
    "mrpc": lambda number, one, two, label: f"{label}\t{number}\t{number + 1}\t{one}\t{two}",
    "stsb": lambda number, one, two, label: (
        f"{number}\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\t{one}\t{two}\t{label}"
    ),
    "qqp": lambda number, one, two, label: f"{number}\t{number}\t{number + 1}\t{one}\t{two}\t{label}",
    "mnli": lambda number, one, two, label: (
        f"{number}\t31193n\t31193n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{one}\t{two}\t{label}\t{label}"
    ),
    "qnli": lambda number, one, two, label: f"{number}\t{one}\t{two}\t{label}",
    "rte": lambda number, one, two, label: f"{number}\t{one}\t{two}\t{label}",
    "wnli": lambda number, one, two, label: f"{number}\t{one}\t{two}\t{label}",
}
SPELLED = {
    "mnli": ["neutral", "entailment", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["not_entailment", "entailment"],
    "stsb": ["5.000", "2.4", "0.0"],
}
"""Labels in the files; 0 and 1 in those of other tasks."""
DEV = {"mnli": ["dev_matched.tsv", "dev_mismatched.tsv"]}

QUOTED = 'the "river has one quote'
"""A reader that knew quotes would read on to the next quote, lines later."""


def spelled(task: str) -> list[str]:
    return SPELLED.get(task, ["0", "1"])


def write(task: str, folder: Path, count: int = 6) -> Path:
    """A task's folder with `count` training examples and as many of each dev set. Labels take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ["train.tsv", *DEV.get(task, ["dev.tsv"])]:
        lines = [HEADERS[task]] if HEADERS[task] else []
        for number in range(count):
            label = spelled(task)[number % len(spelled(task))]
            lines.append(ROWS[task](number, f"{QUOTED} {number}", f"stone of {file} {number}", label))
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
