"""The model card: a README.md with the metadata that model hubs read, and what a run knows of its own training.

    metadata (YAML)  use  data  training  held-out figures  configuration  digests

Each fact comes from the run's folder: the checkpoint, config.yaml, environment.json, metrics.jsonl. The run does not know for
whom the model is, nor its limits. The card says where the author should write them. Absolute paths and the queries of URLs are
left out, since they tell of a machine or are secrets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from maskloom.config import RunConfig
from maskloom.config_file import config_tree
from maskloom.data.index.loading import load_index
from maskloom.errors import UserError
from maskloom.files import parse_json, read_plain
from maskloom.models.masked_lm import MaskedLM, count_parameters
from maskloom.plain_yaml import write_yaml
from maskloom.progress import size
from maskloom.redaction import one_line, shown
from maskloom.runs import read_metrics
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.checkpoint import State
from maskloom.train.checkpoint.digests import digest

FIGURES = {
    "evaluation_loss": "loss (nats a token)",
    "evaluation_perplexity": "perplexity",
    "evaluation_accuracy": "accuracy",
    "evaluation_probe_accuracy": "accuracy of the probe",
    "evaluation_probe_macro_f1": "macro F1 of the probe",
}
"""Name in metrics.jsonl -> what the card calls it."""
DIGESTED = ("model.safetensors", "config.json", "tokenizer.json")


@dataclass(frozen=True)
class Author:
    """What only the author knows.

    Attributes:
        name: of the model.
        license: the short name of a licence, as hubs list them: `apache-2.0`.
        languages: codes of ISO 639: `en`.
    """

    name: str
    license: str | None = None
    languages: Sequence[str] = ()


def model_card(
    run: Path,
    config: RunConfig,
    state: State,
    model: MaskedLM,
    tokenizer: Tokenizer,
    author: Author,
    written: Path,
    has_pooling: bool,
) -> str:
    """The text of README.md.

    Args:
        run: the run's folder.
        state: of the checkpoint whose model is written.
        written: the folder that holds the written files, whose digests the card has.
        has_pooling: whether sentence-transformers finds its files there.
    """
    figures = evaluated_at(run, state.step)
    sections = [
        f"---\n{_metadata(config, model, tokenizer, author, figures, has_pooling)}\n---\n",
        f"# {author.name}\n",
        f"A masked language model of the architecture {model.config.model_type}, {count_parameters(model):,} parameters, "
        f"vocabulary of {model.config.vocab_size:,}. It was {_origin(config)} with maskloom, and is the checkpoint of step "
        f"{state.step:,} of {config.total_steps:,}.\n",
        "<!-- For the author: say for whom the model is, what it should not be used for, and where its text is from. -->\n",
        *_use(author.name, tokenizer.roles.mask, has_pooling),
        *_data(config, state),
        *_training(run, config, state),
        *_held_out(config, figures, evaluated_at(run, 0)),
        "## Configuration\n",
        f"```yaml\n{_configuration(config)}```\n",
        *_digests(written),
    ]
    return "\n".join(sections)


def evaluated_at(run: Path, step: int) -> dict[str, float]:
    """The held-out figures that a run logged at a step; empty if there was no evaluation."""
    found: dict[str, float] = {}
    for line in read_metrics(run):
        if line["step"] == step:
            found |= {name: line[name] for name in FIGURES if isinstance(line.get(name), int | float)}
    return found


def without_places(value: Any) -> Any:
    """A tree of settings without absolute paths and without the queries of URLs."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return shown(value)
    return PurePath(value).name if value.startswith(("/", "~")) else value


def _metadata(
    config: RunConfig,
    model: MaskedLM,
    tokenizer: Tokenizer,
    author: Author,
    figures: Mapping[str, float],
    has_pooling: bool,
) -> str:
    corpora = ", ".join(without_places(corpus.path) for corpus in config.data.corpora)
    results = [
        EvalResult(
            task_type="fill-mask",
            dataset_type="text",
            dataset_name=f"held-out documents of {corpora}",
            metric_type=name.removeprefix("evaluation_"),
            metric_value=value,
            metric_name=FIGURES[name],
        )
        for name, value in figures.items()
        if "probe" not in name
    ]
    data = ModelCardData(
        model_name=author.name,
        language=list(author.languages) or None,
        license=author.license,
        library_name="transformers",
        pipeline_tag="fill-mask",
        base_model=_on_a_hub(config.model.init),
        tags=[
            "maskloom",
            "masked-lm",
            str(model.config.model_type),
            *(["sentence-transformers"] if has_pooling else []),
        ],
        eval_results=results or None,
        mask_token=tokenizer.roles.mask,
    )
    return str(data.to_yaml())


def _on_a_hub(init: str | None) -> str | None:
    """The checkpoint that training started from, if its name can be one of a hub: a folder of this machine says nothing."""
    if init is None or Path(init).exists() or init.startswith((".", "/", "~")) or "://" in init:
        return None
    return init


def _origin(config: RunConfig) -> str:
    if config.model.init is None:
        return "trained from scratch"
    return f"trained further from {without_places(config.model.init)}"


def _use(name: str, mask: str, has_pooling: bool) -> Iterator[str]:
    yield "## Use\n"
    yield (
        "```python\nfrom transformers import pipeline\n\n"
        f'fill = pipeline("fill-mask", model="{name}")\nfill("A sentence with one {mask} in it.")\n```\n'
    )
    if has_pooling:
        yield (
            "With sentence-transformers, a sentence becomes the mean of its tokens' last hidden states. The model was not "
            "trained to compare sentences.\n\n"
            "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
            f'vectors = SentenceTransformer("{name}").encode(["One sentence.", "Another one."])\n```\n'
        )


def _data(config: RunConfig, state: State) -> Iterator[str]:
    yield "## Data\n"
    yield "| corpus | documents | held out | text | weight | digest |\n|---|---|---|---|---|---|"
    for number, corpus in enumerate(config.data.corpora):
        stored = str(state.fingerprint.get(f"corpus {number}", ""))
        counts = _counts(corpus.path, stored)
        yield f"| {cell(without_places(corpus.path))} | {counts} | {corpus.weight:g} | `{stored[:16]}` |"
    yield ""


def cell(text: str) -> str:
    """A text of the run as a cell of a table. A bar would begin another one, and the author would not see it."""
    return one_line(text).replace("|", r"\|")


def _counts(path: str, stored: str) -> str:
    """Cells with what a corpus holds, if it still lies on this machine as it was in training."""
    try:
        index = None if "://" in path else load_index(path, finds_shards=False)
    except (UserError, OSError):
        index = None
    if index is None or index.digest != stored:
        return "? | ? | ?"
    header = index.header
    return f"{header['documents']:,} | {header['held_out_documents']:,} | {size(header['text_bytes'])}"


def _training(run: Path, config: RunConfig, state: State) -> Iterator[str]:
    optimizer, masking = config.optimizer, config.masking
    rate = f"{masking.rate:.0%}" + (f", at the end {masking.final_rate:.0%}" if masking.final_rate else "")
    facts = {
        "steps": f"{state.step:,} of {config.total_steps:,}",
        "text tokens": f"{state.tokens_seen:,}",
        "phases": "; ".join(
            f"{phase.steps:,} steps of {phase.global_batch_rows:,} rows of {phase.seq_len:,}" for phase in config.phases
        ),
        "masked": f"{rate} of the tokens, unit {masking.unit}",
        "optimizer": f"{optimizer.name}, learning rate {optimizer.lr:g}, schedule {optimizer.schedule}",
        "precision": f"{state.precision}, ZeRO stage {state.zero_stage}",
        "seed": str(config.seed),
        **_environment(run),
    }
    yield "## Training\n\n| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in facts.items())
    yield ""


def _environment(run: Path) -> dict[str, str]:
    """What environment.json says of the last start; empty if the file is missing or damaged."""
    try:
        said = parse_json(read_plain(run / "environment.json").decode())
        packages = ", ".join(f"{name} {version}" for name, version in said["packages"].items())
        return {"ranks": f"{said['world_size']} on {cell(str(said['device']))}", "packages": cell(packages)}
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _held_out(config: RunConfig, figures: Mapping[str, float], before: Mapping[str, float]) -> Iterator[str]:
    yield "## Held-out figures\n"
    if not figures:
        yield "This checkpoint was not evaluated in the run. `maskloom eval` does it.\n"
        return
    settings = config.evaluation
    yield (
        f"On documents that were not trained on; {settings.mask_rate:.0%} of the tokens masked, rows of "
        f"{config.evaluation_seq_len:,}.\n"
    )
    yield f"| | this checkpoint |{' before training |' if before else ''}\n|---|---|{'---|' if before else ''}"
    for name, value in figures.items():
        first = f" {before[name]:.4g} |" if name in before else " |" if before else ""
        yield f"| {FIGURES[name]} | {value:.4g} |{first}"
    yield ""


def _configuration(config: RunConfig) -> str:
    """All settings that have a value."""
    return write_yaml(_filled(without_places(config_tree(config))))


def _filled(value: Any) -> Any:
    """A tree without keys that have neither a value nor items."""
    if isinstance(value, list):
        return [_filled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: kept for key, item in value.items() if (kept := _filled(item)) not in (None, {}, [])}


def _digests(written: Path) -> Iterator[str]:
    yield "## Digests\n\nSHA-256 of the files, as `sha256sum` prints it.\n\n| file | SHA-256 |\n|---|---|"
    for name in DIGESTED:
        yield f"| {name} | `{digest(written / name).sha256}` |"
    yield ""
