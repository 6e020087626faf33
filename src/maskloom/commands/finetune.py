"""Fine-tune an encoder for a task: text or pair classification, regression (a text or a pair), tags of words.

MODEL is a run, RUN@STEP or RUN@best, a folder with a Hugging Face encoder and its tokenizer, or a name on the Hub. If it was
fine-tuned before, its head is dropped. DATA is a .csv, .tsv, .jsonl (also .gz, .zst) or .parquet file, or a folder that
`datasets` saved. The values of the labels say what they are: lists are tags, numbers with a fraction are numbers, all else is
a class. Without --test, a fifth of DATA is held out, and figures are of it. With --task, DATA is the folder of one of GLUE's
tasks, and figures are those of its dev set.

examples:
  maskloom finetune runs/quickstart reviews.csv --text review --label stars --seeds 3 --out my_classifier
  maskloom finetune my_model glue_data/MNLI --task mnli --out my_mnli
  maskloom finetune my_mnli glue_data/RTE --task rte --seeds 5
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from maskloom.commands.arguments import add_step, fraction, positive
from maskloom.data.packing import ADDED
from maskloom.errors import UserError
from maskloom.files import whole_folder, write_atomically
from maskloom.progress import say, show_json
from maskloom.scalars import NUMBER
from maskloom.tasks.glue import BERT, RECIPES, TASKS, recipe_of

if TYPE_CHECKING:
    from maskloom.tasks.finetune import Data, Outcome
    from maskloom.tasks.heads import Encoder
    from maskloom.tasks.training import Settings

RESULTS = "finetune.json"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("data", type=Path, metavar="DATA", help="training examples")
    add("--task", choices=TASKS, help="one of GLUE's tasks: columns, files, figures and settings are known")
    add("--recipe", choices=RECIPES, help=f"with --task: the paper whose settings are taken (default: {RECIPES[0]})")
    add("--test", type=Path, metavar="FILE", help="examples that figures are of (default: a fifth of DATA)")
    add("--dev", type=Path, metavar="FILE", help="keep the epoch that is best on these (default: keep the last)")
    add("--text", metavar="COLUMN", help="column of the texts, or of lists of words (default: guessed)")
    add("--pair", metavar="COLUMN", help="column of the second text of each pair")
    add("--label", metavar="COLUMN", help="column of the labels (default: guessed)")
    add("--kind", choices=("classes", "numbers", "tags"), help="what labels are (default: as their values tell)")
    add_step(parser)
    add("--from-scratch", action="store_true", help="draw all weights anew: what MODEL is without pretraining")
    add(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="fine-tune N times, with the seeds 0 to N - 1 (default: 1)",
    )
    add("--epochs", type=positive, help=f"default: {BERT.epochs}, or the recipe's")
    add("--lr", type=_rate, help=f"peak learning rate (default: {BERT.lr:g}, or the recipe's); small models need more")
    add("--batch-rows", type=positive, help=f"examples of a step (default: {BERT.batch_rows})")
    add(
        "--warmup-share",
        type=fraction,
        help=f"share of the steps in which the rate rises (default: {BERT.warmup_share})",
    )
    add("--weight-decay", type=_not_negative, help=f"AdamW's (default: {BERT.weight_decay}, or the recipe's)")
    add(
        "--max-tokens",
        type=positive,
        help="cut off longer texts (default: what the model reads, at most 512; 128 with --task)",
    )
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of forward and backward (default: fp32)")
    add("--out", type=Path, metavar="FOLDER", help="write the model of seed 0; it must not exist")
    add("--json", action="store_true", help="print one JSON object, and no lines on the way")


def run(options: argparse.Namespace) -> int:
    _need_packages()
    _check(options)
    tell: Callable[[str], None] = _silent if options.json else say
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stopped_like_ctrl_c())
        stack.enter_context(_environment_kept())
        partial = stack.enter_context(whole_folder(options.out)) if options.out else None
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maskloom-finetune-", dir=partial)))
        results = _finetune(options, work, tell, partial)
    if options.json:
        show_json(results)
    elif options.out:
        say(f"{options.out}: the model of seed {results['kept_seed']}; transformers' pipelines load it")
    return 0


def _finetune(
    options: argparse.Namespace, work: Path, tell: Callable[[str], None], partial: Path | None
) -> dict[str, Any]:
    """Read, fine-tune, tell, and keep one model in `partial`. Returns what --json prints."""
    from maskloom.tasks.finetune import finetune

    data = _read(options)
    encoder = _open(options, work)
    settings = _settings(options, encoder)
    _introduce(options, data, encoder, settings, tell)
    seeds = range(options.seeds)
    outcome = finetune(encoder, data, settings, seeds, work, tell, partial, options.from_scratch)
    results = _results(options, data, settings, outcome)
    _tell_results(data, outcome, results, tell)
    if partial is not None:
        write_atomically(partial / RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def _open(options: argparse.Namespace, work: Path) -> Encoder:
    """MODEL as a folder of Hugging Face's, which a run is written to."""
    from transformers.utils import logging

    from maskloom.commands.exporting import write_model
    from maskloom.commands.loading import checkpoint_folder, is_run, load_run, run_and_step
    from maskloom.tasks.heads import open_encoder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not is_run(options.model):
        if options.step is not None:
            raise UserError(f"--step is for a run, and {options.model} is not a run: it has no config.yaml")
        return open_encoder(checkpoint_folder(options.model), options.model)
    folder = work / "encoder"
    folder.mkdir()
    run, step = run_and_step(options.model, options.step)
    loaded = load_run(run, step)
    write_model(loaded, folder, work)
    return open_encoder(folder, f"{run} at step {loaded.step:,}")


def _read(options: argparse.Namespace) -> Data:
    from maskloom.tasks.finetune import Data
    from maskloom.tasks.glue import read_task
    from maskloom.tasks.labelled import Examples, read_examples, splits_of
    from maskloom.tasks.splits import TEST_SHARE, split_by_hash, split_to_test
    from maskloom.tasks.target import Target, target_of

    if options.task:
        task = TASKS[options.task]
        train, tests = read_task(options.task, options.data)
        names = tuple(name for name, _ in task.labels)
        return Data(Target(task.kind, names, task.metrics, positive=names[-1] if names else ""), train, tests)

    def read(path: Path, split: str | None = None) -> Examples:
        return read_examples(path, options.text, options.pair, options.label, split, kind=options.kind)

    dev = read(options.dev) if options.dev else None
    examples = read(options.data, "train" if "train" in splits_of(options.data) else None)
    target = target_of(examples)
    if options.test:
        return Data(target, examples, {"test": read(options.test)}, dev)
    if tested := split_to_test(options.data):
        return Data(target, examples, {"test": read(options.data, tested)}, dev)
    train, test = split_by_hash(examples, TEST_SHARE, 0)
    return Data(target, train, {"test": test}, dev)


def _settings(options: argparse.Namespace, encoder: Encoder) -> Settings:
    from maskloom.tasks.heads import MOST_TOKENS
    from maskloom.tasks.training import Settings

    recipe = recipe_of(options.task, options.recipe or RECIPES[0]) if options.task else BERT
    default = min(encoder.longest, recipe.max_tokens if options.task else MOST_TOKENS)
    if (options.max_tokens or 0) > encoder.longest:
        raise UserError(f"--max-tokens {options.max_tokens}: {encoder.name} reads at most {encoder.longest} tokens")
    if options.max_tokens is not None and options.max_tokens <= ADDED:
        raise UserError(
            f"--max-tokens {options.max_tokens}: a text has no room beside the first and the last token: raise it"
        )

    def of(name: str) -> Any:
        given = getattr(options, name)
        return getattr(recipe, name) if given is None else given

    return Settings(
        of("epochs"),
        of("lr"),
        of("batch_rows"),
        of("warmup_share"),
        of("weight_decay"),
        options.max_tokens or default,
        options.precision,
    )


def _introduce(
    options: argparse.Namespace, data: Data, encoder: Encoder, settings: Settings, tell: Callable[[str], None]
) -> None:
    """Say what is about to be done, and what a user may not expect."""
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in data.parts().items())
    tell(f"{data.target.title}; examples: {sizes}")
    tell(", ".join(f"{name} {value}" for name, value in dataclasses.asdict(settings).items()))
    known = {*zip(data.train.texts, data.train.pairs or data.train.texts, strict=True)}
    for name, part in data.tests.items():
        if seen := sum(each in known for each in zip(part.texts, part.pairs or part.texts, strict=True)):
            tell(f"{seen:,} of the {len(part):,} texts of {name} are among the training texts, too")
    if options.from_scratch:
        tell(f"{encoder.name}: all weights are drawn anew")
    elif encoder.head:
        tell(f"{encoder.name} is a {encoder.head}: its head is dropped, its encoder is kept")
    elif options.task and TASKS[options.task].from_mnli:
        tell(f"papers start {options.task} from a model that was fine-tuned on MNLI: MODEL may be the --out of such")


def _results(options: argparse.Namespace, data: Data, settings: Settings, outcome: Outcome) -> dict[str, Any]:
    baselines = {name: data.target.baseline(part) for name, part in data.tests.items()}
    return {
        "model": options.model,
        "data": str(options.data),
        "task": options.task,
        "from_scratch": options.from_scratch,
        "labels": list(data.target.names),
        "examples": {name: len(part) for name, part in data.parts().items()},
        "settings": dataclasses.asdict(settings),
        "cut": dict(outcome.cut),
        "drawn": [] if options.from_scratch else list(outcome.drawn),
        "seeds": [{"seed": seed, **figures} for seed, figures in outcome.seeds.items()],
        "mean": outcome.means,
        "standard_deviation": outcome.deviations,
        "most_frequent": {name: found[1] for name, found in baselines.items() if found},
        "kept_seed": next(iter(outcome.seeds)),
    }


def _tell_results(data: Data, outcome: Outcome, results: dict[str, Any], tell: Callable[[str], None]) -> None:
    titles = _titles(data)
    width = max(map(len, titles.values()))
    if len(outcome.seeds) > 1:
        for seed, figures in outcome.seeds.items():
            tell(f"seed {seed}: " + ", ".join(f"{titles[name]} {value:.4f}" for name, value in figures.items()))
        tell(f"mean of {len(outcome.seeds)} seeds ± standard deviation")
    for name, mean in outcome.means.items():
        deviation = f" ± {outcome.deviations[name]:.4f}" if outcome.deviations else ""
        tell(f"  {titles[name]:<{width}}  {mean:.4f}{deviation}")
    for name, share in results["most_frequent"].items():
        tell(f"  the most frequent {'tag' if data.target.kind == 'tags' else 'class'} is {share:.1%} of {name}")


def _titles(data: Data) -> dict[str, str]:
    """The name of a figure -> what people read."""
    from maskloom.tasks.metrics import TITLES

    if len(data.tests) == 1:
        return {metric: TITLES[metric] for metric in data.target.metrics}
    return {f"{name}_{metric}": f"{name} {TITLES[metric]}" for name in data.tests for metric in data.target.metrics}


def _check(options: argparse.Namespace) -> None:
    """Raises UserError if options do not go together."""
    fixed = [name for name in ("test", "dev", "text", "pair", "label", "kind") if getattr(options, name) is not None]
    if options.task and fixed:
        raise UserError(f"--task {options.task} knows its files and columns: leave out --{fixed[0]}")
    if options.recipe and not options.task:
        raise UserError(f"--recipe {options.recipe} is of GLUE's tasks: name one with --task")


def _need_packages() -> None:
    for module, package in (("accelerate", "accelerate"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"fine-tuning needs {package}: pip install 'maskloom[tasks]'")


def _silent(line: str) -> None:
    """Say nothing."""


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Take out what libraries put into the environment as they are imported or used: other programs would get it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: schedulers send it, and temporary files should not stay."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rate(text: str) -> float:
    value = _not_negative(text)
    if not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not a rate above 0, such as 3e-5")
    return value


def _not_negative(text: str) -> float:
    value = float(text) if NUMBER.fullmatch(text) else -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0, such as 0.01 or 3e-5")
    return value
