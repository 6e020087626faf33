"""What `import maskloom` offers beside `MaskedStream`: train, load, evaluate and export from Python.

Each function does what the command of its name does, with the same files, figures and errors: a mistake is a `UserError`. What is
heavy is imported when a function is called.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maskloom.errors import UserError
from maskloom.redaction import brief

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from maskloom.config import RunConfig
    from maskloom.tokenizers.base import Tokenizer

Source = str | os.PathLike[str]
Which = int | Literal["best"] | None
"""A checkpoint of a run: that of a step, the one with the lowest held-out loss, or the newest."""


@dataclass(frozen=True)
class Run:
    """A run that ended.

    Attributes:
        folder: its directory.
        state: `done`, or `stopped` after somebody asked it to stop: then `pretrain` resumes it.
        step: optimizer steps done.
        figures: the newest value of each number in its metrics.jsonl, such as `loss` and `evaluation_loss`.
    """

    folder: Path
    state: Literal["done", "stopped"]
    step: int
    figures: Mapping[str, float] = field(default_factory=dict)


def load_config(path: Source, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration and check all of it.

    Args:
        path: a YAML file.
        overrides: settings that replace the file's, as on the command line.

    Raises:
        UserError: it lists all faults, each with its key, the value and what to do.

    >>> config = load_config("run.yaml", ["phases.0.steps=4", "seed=1"])
    >>> config.total_steps, config.seed
    (4, 1)
    """
    from maskloom import config_file

    path = _path(path, "path")
    if not isinstance(overrides, list | tuple) or not all(isinstance(given, str) for given in overrides):
        raise UserError(f"overrides={overrides!r} is not a list of texts: write ['phases.0.steps=200', 'seed=1']")
    return config_file.load_config(path, overrides)


def pretrain(config: RunConfig | Source, *, processes: int | None = None, max_restarts: int = 0) -> Run:
    """Train as `maskloom train` does, on this machine, and wait for the end. A run that exists in `run_dir` resumes.

    Each rank is a process of its own, so this works in scripts, notebooks and at a prompt alike, and leaves nothing behind in
    this process. Ranks print what they print in a terminal. Ctrl-C stops the run after a step, with a checkpoint.

    Args:
        config: from `load_config`, or a YAML file.
        processes: ranks. Left out: one a GPU, or one if there is none.
        max_restarts: how often to start again after a fault.

    Raises:
        UserError: the configuration or the data is wrong, or another process trains in `run_dir`.
        RuntimeError: the run failed; the message says why, and what to do.
    """
    import threading

    from maskloom.config import RunConfig
    from maskloom.distributed import World
    from maskloom.runs import is_number, read_metrics

    if not isinstance(config, RunConfig):
        config = load_config(_path(config, "config"))
    if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
        raise UserError(
            f"processes={processes!r} is not a number of ranks: give a whole number from 1, or leave it out"
        )
    if isinstance(max_restarts, bool) or not isinstance(max_restarts, int) or max_restarts < 0:
        raise UserError(f"max_restarts={max_restarts!r} is not a number of new starts: give a whole number from 0")
    if World.discover().size > 1:
        raise UserError(
            "pretrain starts the ranks itself, and a launcher started this process as one of several: call it once, or start "
            "`python -m maskloom.train CONFIG` with the launcher"
        )
    if threading.current_thread() is not threading.main_thread():
        raise UserError("pretrain takes care of signals, so it has to be called in the main thread: call it there")
    code = _train(config, processes, max_restarts)
    folder = Path(config.run_dir)
    state, step = _outcome(folder, code)
    lines = read_metrics(folder)
    figures = {name: value for line in lines for name, value in line.items() if name != "step" and is_number(value)}
    return Run(folder, state, step, figures)


def _train(config: RunConfig, processes: int | None, max_restarts: int) -> int:
    """Start the ranks and wait for them; the exit code."""
    import torch

    from maskloom.config_file import dump_config
    from maskloom.distributed import World
    from maskloom.hardware import cores
    from maskloom.launch.ending import Stop
    from maskloom.launch.supervisor import OnThisMachine, supervise
    from maskloom.train.run_lock import refuse_in_use
    from maskloom.train.setup import prepare

    refuse_in_use(Path(config.run_dir))
    processes = processes or max(torch.cuda.device_count(), 1)
    prepare(config, World(size=processes, local_size=processes))  # bad input is said once, and not by every rank
    with (
        tempfile.TemporaryDirectory(prefix="maskloom-") as folder,
        _threads(max(1, cores() // processes)),
        Stop() as stop,
    ):
        file = Path(folder) / "config.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-u", "-m", "maskloom.train", str(file)]
        run = Path(config.run_dir)
        return supervise(OnThisMachine(command, processes, run, config.timeouts.grace_s), run, max_restarts, stop)


@contextlib.contextmanager
def _threads(each: int) -> Iterator[None]:
    """Processes that start within share the cores, unless the caller said otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(each)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _outcome(folder: Path, code: int) -> tuple[Literal["done", "stopped"], int]:
    """State and step of a run that ended with an exit code. Raises RuntimeError if it failed."""
    from maskloom.status import EXIT_DONE, EXIT_STOPPED, read_status

    status = read_status(folder)
    if status is None or code not in (EXIT_DONE, EXIT_STOPPED):
        why = f": {status.reason}" if status and status.reason else ""
        advice = f" {status.advice}" if status and status.advice else ""
        raise RuntimeError(
            f"the run in {folder} failed{why} (exit code {code}).{advice} The ranks' messages are above, and in "
            f"{folder / 'logs'}"
        )
    return "done" if code == EXIT_DONE else "stopped", status.step


def load_model(source: Source, step: Which = None) -> PreTrainedModel:
    """The masked language model of a run, as Hugging Face's own class, in fp32 and evaluation mode.

    Args:
        source: a run directory, `RUN@STEP` or `RUN@best`. A folder with a Hugging Face checkpoint. A name on the Hub.
        step: of a run, if `source` does not say it.

    Raises:
        UserError: the model cannot be found or loaded.

    >>> type(load_model("run")).__name__
    'BertForMaskedLM'
    """
    from maskloom.commands.loading import load_named

    return load_named(_path(source, "source"), _step(step), takes_any=True).model


def load_tokenizer(source: Source) -> Tokenizer:
    """A tokenizer for `MaskedStream` and `evaluate`: that of a run, a folder, a file or a name on the Hub.

    Raises:
        UserError: there is none, or it cannot be used.

    >>> load_tokenizer("tokenizer").vocab_size == load_tokenizer("run").vocab_size
    True
    """
    from maskloom.tokenizers import loading

    folder = Path(_path(source, "source"))
    is_run = (folder / "config.yaml").is_file() and (folder / "model").is_dir()
    return loading.load_tokenizer(folder / "model" if is_run else os.fspath(source))


def _path(given: Any, name: str) -> str:
    """An argument that names a file, a folder or a model."""
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise UserError(f"{name}={brief(given)} is not a path: give a text or a pathlib.Path")
    return path


def _step(given: Any) -> Which:
    """An argument that names a checkpoint."""
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return given
    if given != "best":
        raise UserError(f"step={brief(given)} is not a checkpoint: give a step, 'best', or leave it out for the newest")
    return "best"


def evaluate(
    model: Source | PreTrainedModel,
    data: Source | Sequence[Source] | None = None,
    *,
    step: Which = None,
    tokenizer: Tokenizer | Source | None = None,
    **options: Any,
) -> dict[str, Any]:
    """How well a model predicts masked tokens: what `maskloom eval --json` prints.

    Args:
        model: as `load_model` takes it, or a model of Hugging Face's in memory. It is left as it was.
        data: text, as `maskloom shards` reads it, or a corpus, of which the held-out documents are taken. Left out: what the
            run's own corpora hold out.
        step: of a run, if `model` does not say it.
        tokenizer: of a model in memory.
        options: with `data`: `documents`, `mask_rate`, `seq_len`, `seed`, `text_key`, as the options of `maskloom eval`.

    Returns:
        the figures that `docs/evaluate.md` explains: of a run `evaluation_loss`, `evaluation_accuracy` and others; on `data`
        `nats_per_byte`, `accuracy` and others.

    Raises:
        UserError: the model or the text cannot be read, or an option is wrong.

    >>> figures = evaluate("run")
    >>> figures["evaluation_loss"] < 7
    True
    """
    from maskloom.commands.eval import DEFAULTS
    from maskloom.commands.evaluating import compare
    from maskloom.commands.loading import device, is_run, load_named, load_run, run_and_step
    from maskloom.commands.run_figures import held_out_figures
    from maskloom.runs import read_metrics

    is_named = isinstance(model, str | os.PathLike)
    if is_named and tokenizer is not None:
        raise UserError(f"tokenizer is for a model in memory: {model} has its own; leave it out")
    step = _step(step)
    if not is_named and step is not None:
        raise UserError(f"step={step!r} is for a run, and {_called(model)} is none: leave it out")
    settings = _evaluation_options(options, DEFAULTS)
    if data is None:
        if not is_named or not is_run(os.fspath(model)):
            raise UserError(f"{_called(model)} is not a run, so it has no held-out text of its own: give data=TEXT")
        if options:
            raise UserError(f"{', '.join(options)}: for a run on its own corpora, its section `evaluation` counts")
        folder, step = run_and_step(os.fspath(model), step)
        return held_out_figures(load_run(folder, step), read_metrics(folder))[0]
    texts = list(data) if isinstance(data, list | tuple) else [data]
    settings["data"] = [_path(text, "data") for text in texts]
    if not texts:
        raise UserError("data=[] has no text: name a file, a folder or a corpus")
    if is_named:
        loaded = load_named(os.fspath(model), step, takes_any=True)
        loaded.model.to(device())
        found = compare([loaded], argparse.Namespace(**settings))
    else:
        with _evaluating(model):
            found = compare([_in_memory(model, tokenizer)], argparse.Namespace(**settings))
    (figures,) = found.pop("models")
    return {**found, **figures}


def _evaluation_options(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    known = set(defaults) - {"sentences", "blank_line"}
    if unknown := sorted(given.keys() - known):
        raise UserError(f"evaluate has no option {unknown[0]!r}: there are {', '.join(sorted(known))}")
    for name, least in (("documents", 1), ("seq_len", 8), ("seed", 0)):
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name}={value!r} is not a whole number from {least}")
    rate = given.get("mask_rate", 0.5)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise UserError(f"mask_rate={rate!r} is not a share: give a number above 0, and at most 1")
    return {**defaults, **given, "pseudo_perplexity": False}


def _called(model: object) -> str:
    return str(model) if isinstance(model, str | os.PathLike) else f"a {type(model).__name__} in memory"


def _in_memory(model: Any, tokenizer: Any) -> Any:
    """A model and a tokenizer as the commands take them."""
    from transformers import PreTrainedModel

    from maskloom.commands.loading import LoadedPlain
    from maskloom.models.foreign import check_rows
    from maskloom.tokenizers.base import Tokenizer

    if not isinstance(model, PreTrainedModel):
        raise UserError(f"model is a {type(model).__name__}: give a run, a folder, or a model of Hugging Face's")
    if tokenizer is None:
        raise UserError("a model in memory needs its tokenizer: give tokenizer=maskloom.load_tokenizer(FOLDER)")
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    check_rows(model, tokenizer, type(model).__name__)
    return LoadedPlain(type(model).__name__, model, tokenizer)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """A model is in evaluation mode within."""
    modes = [(module, module.training) for module in model.modules()] if hasattr(model, "modules") else []
    if modes:
        model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def export(
    run: Source,
    out: Source,
    *,
    step: Which = None,
    name: str | None = None,
    license: str | None = None,
    languages: Sequence[str] = (),
    sentence_transformers: bool = False,
) -> Path:
    """Write a run's model for Hugging Face: config.json, model.safetensors, the tokenizer and a model card.

    Args:
        run: run directory, `RUN@STEP` or `RUN@best`.
        out: folder to write; it must not exist.
        step: if `run` does not say it.
        name, license, languages: for the card, as the options of `maskloom export`.
        sentence_transformers: also write the files of sentence-transformers, with mean pooling.

    Returns:
        `out`, for `from_pretrained`.

    Raises:
        UserError: `run` is not a run, or `out` exists.

    >>> sorted(file.name for file in export("run", "my_model", license="apache-2.0").glob("*.json"))
    ['config.json', 'tokenizer.json', 'tokenizer_config.json']
    """
    from maskloom.commands.export import plain_word
    from maskloom.commands.exporting import export_run
    from maskloom.publish.card import Author

    if isinstance(languages, str):
        raise UserError(f"languages={languages!r} is a text: give a list of codes, such as ['en']")
    run, folder = _path(run, "run"), Path(_path(out, "out"))
    try:
        for word in (name, license, *languages):
            if not isinstance(word, str | None):
                raise UserError(f"for the model's card: {brief(word)} is not a text")
            if word is not None:
                plain_word(word)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"for the model's card: {error}") from None
    author = Author(name or folder.absolute().name, license, list(languages))
    export_run(run, folder, _step(step), author, sentence_transformers)
    return folder
