"""The sections of a configuration that have one form in every run, with their defaults.

A section is a block of the YAML file, and checks what concerns it alone. `config_phases` has the phases. `config` has the
sections that depend on the architecture and the optimizer, and puts all of them together.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag
from pydantic_core import PydanticCustomError

from maskloom.config_values import (
    LARGEST_WEIGHT,
    MOST_STEPS,
    Few,
    Folder,
    PositiveShare,
    RowCount,
    Section,
    SeqLen,
    Share,
    Steps,
    StepsOrNone,
)
from maskloom.extensions import where_names_come_from

ONE, SEVERAL = "<one>", "<several>"  # the two forms of data.train; pydantic shows these names in the place of an error


class Corpus(Section):
    """One of several corpora that a run mixes."""

    path: str
    """Folder or URL that holds `index.json`."""
    weight: Annotated[float, Field(gt=0.0, le=LARGEST_WEIGHT)] = 1.0
    """Share of the rows, relative to the other corpora. `phases.N.weights` replaces it for one phase."""


class Storage(Section):
    """How the bytes of shards are fetched and kept. Nothing here changes which rows a run sees."""

    timeout_s: PositiveFloat = 30.0
    """Longest wait for a connection, or for the next bytes of an answer."""
    attempts: Few = 6
    """A read fails after this many attempts in a row that bring no new byte. The wait between attempts grows."""
    cache: str | None = None
    """Folder on this machine for blocks from the network. All processes share it."""
    cache_bytes: PositiveInt = 32 << 30
    """Size limit of the cache. The least recently used blocks are removed first."""


class Data(Section):
    train: Annotated[
        Annotated[str, Tag(ONE)] | Annotated[tuple[Corpus, ...], Field(min_length=1), Tag(SEVERAL)],
        Discriminator(lambda given: ONE if isinstance(given, str) else SEVERAL),
    ]
    """Folder or URL that holds `index.json`, as `maskloom shards` and `maskloom index` write it. Or a list of `path` and
    `weight`: their rows are mixed."""
    lanes: RowCount | None = None
    """Virtual readers: the largest number of ranks that this run can ever have. Left out: the largest common divisor of all
    global batches that is at most 64, and at most a sixteenth of the blocks of the largest corpus."""
    workers: Annotated[int, Field(ge=0, le=1 << 12)] = 1
    """Reader processes of each rank. With 0 the training process reads."""
    prefetch_steps: Few = 4
    """Steps that each reader process prepares ahead."""
    on_bad_data: Literal["raise", "skip"] = "raise"
    """What happens at a block that differs from what was indexed: `raise` ends the run; `skip` skips, counts and lists it."""
    max_bad_share: Share = 0.001
    """Largest share of the blocks read that may be skipped. One is always allowed; beyond that the run ends."""
    storage: Storage = Storage()
    """How the bytes of shards are fetched and kept."""

    @pydantic.field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, given: object) -> object:
        if not isinstance(given, str | list | tuple) or not given:
            raise ValueError(f"{given!r} is neither a folder or URL nor a list of {{path: ..., weight: ...}}")
        return given

    @pydantic.field_validator("train")
    @classmethod
    def _each_once(cls, train: str | tuple[Corpus, ...]) -> str | tuple[Corpus, ...]:
        paths = [] if isinstance(train, str) else [corpus.path for corpus in train]
        twice = next((path for place, path in enumerate(paths) if path in paths[:place]), None)
        if twice is not None:
            raise ValueError(f"{twice} is listed twice: list it once, with the sum of the weights")
        return train

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The corpora as a list, even if only one path is given."""
        return (Corpus(path=self.train),) if isinstance(self.train, str) else self.train


class Masking(Section):
    rate: PositiveShare = 0.15
    """Share of a row's tokens that are predicted. Special and protected tokens do not count."""
    final_rate: PositiveShare | None = None
    """Rate at the end of the run. The rate moves there linearly with the step. Left out: it stays the same.
    `phases.N.mask_rate` replaces both for one phase."""
    unit: Literal["token", "whole_word", "span"] = "token"
    """What is masked together: single tokens, whole words, or spans of whole words."""
    draw: Literal["exact", "bernoulli"] = "exact"
    """`exact` predicts the share `rate` of each row, rounded. `bernoulli` picks each unit with probability `rate`, up to a
    limit for each row."""
    span_p: PositiveShare = 0.2
    """Parameter of the geometric distribution of span lengths, in words (SpanBERT's)."""
    span_max_words: PositiveInt = 10
    """Longest span. The distribution is cut there and renormalised. A value above 4096 becomes the slots of a row, or 4096 if
    they are fewer."""
    replace_unit: Literal["token", "unit"] = "token"
    """What decides between the mask, a random token and no change: each `token` alone, or the `unit` as a whole (as in
    SpanBERT)."""
    protected: tuple[str, ...] = ()
    """Tokens of the vocabulary that are never predicted and never drawn. Special tokens and `[unused*]` always are such."""
    mask_share: Share = 0.8
    """Share of the predicted tokens that become the mask."""
    random_share: Share = 0.1
    """Share of the predicted tokens that become a random token. The rest stay as they are."""

    @pydantic.model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask_share + self.random_share > 1.0:
            raise ValueError(
                f"mask_share {self.mask_share} + random_share {self.random_share} is more than 1: lower one of them"
            )
        return self


class Probe(Section):
    """Labelled texts, to see with each evaluation what the encoder knows of the labels. It does not learn from them: a logistic
    regression reads them off its vectors."""

    data: Folder
    """File with labelled texts (.csv, .tsv, .jsonl, also .gz and .zst, or .parquet), or a folder that `datasets` saved."""
    test: Folder | None = None
    """Another one, whose texts are tested. Left out: a fifth of `data`, chosen by the hash of the text."""
    text: str | None = None
    """Column of the text. Left out: guessed from the names."""
    pair: str | None = None
    """Column of the second text of a pair."""
    label: str | None = None
    """Column of the label. Left out: guessed from the names."""
    most_examples: Steps = 2000
    """Most examples to learn from, and a quarter of it to test. Of more, those with the smallest hash are taken."""
    every_steps: Steps | None = None
    """Steps between probes, a multiple of `evaluation.every_steps`. Left out: with each evaluation."""


MOST_SENTENCES = 64
Sentence = Annotated[str, Field(min_length=1, max_length=4000)]


class Evaluation(Section):
    """The loss on held-out documents."""

    every_steps: StepsOrNone = 0
    """Steps between evaluations; 0 for none."""
    seq_len: SeqLen | None = None
    """Token slots of a row. Left out: those of the last phase."""
    mask_rate: PositiveShare = 0.15
    """Share of the tokens that are predicted."""
    micro_batch_rows: RowCount = 32
    """Rows that a rank runs forward at once."""
    patience: Few | None = None
    """End the run early if so many evaluations in a row bring no new lowest loss. Left out: never."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """For `patience` a loss is a new lowest one if it is lower by more than this, in nats a token."""

    probe: Probe | None = None
    """Labelled texts to probe the encoder with."""
    sentences: Annotated[tuple[Sentence, ...], Field(max_length=MOST_SENTENCES)] = ()
    """Texts with [MASK], which the model fills with each evaluation. TensorBoard shows them, and the run's config.yaml has them:
    name nothing here that is private."""

    @pydantic.model_validator(mode="after")
    def _go_together(self) -> Evaluation:
        wrong = []
        if self.min_delta and self.patience is None:
            wrong.append(f"min_delta {self.min_delta:g} means nothing without patience: remove it, or set patience")
        probes = self.probe.every_steps if self.probe else None
        if self.every_steps and probes and probes % self.every_steps:
            wrong.append(
                f"probe.every_steps {probes} is not a multiple of every_steps {self.every_steps}: a probe goes with an "
                "evaluation; change one of them"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Checkpoint(Section):
    """When checkpoints are written, and which are kept."""

    every_steps: StepsOrNone = 500
    """Steps between checkpoints; 0 writes one at the end only."""
    keep_last: Annotated[int, Field(ge=2, le=MOST_STEPS)] = 2
    """Number of newest checkpoints to keep. It is at least 2: if the newest is damaged, the run resumes from the other."""
    keep_every_steps: Steps | None = None
    """Checkpoints at multiples of this step are kept for good."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest held-out loss. An evaluation with a new lowest loss makes a checkpoint due."""
    background: bool = True
    """Write from a copy of the state while training continues. If memory has no room for the copy, training waits."""


class Guard(Section):
    """Refuses steps that would spoil the weights. Their gradients are dropped and counted."""

    spike_sigma: PositiveFloat | None = None
    """Refuse a step if its loss is this many standard deviations above the mean of the last `window_steps` (OLMo 2 does so,
    with 6). Left out: refuse a step only if its loss or its gradients are not finite."""
    window_steps: Annotated[int, Field(ge=8, le=1 << 20)] = 128
    """Steps of the phase that a loss is compared with. Before there are so many, no loss counts as a spike."""
    skips_before_rollback: Few = 3
    """After this many refused steps in a row, the run rolls back to its last checkpoint and skips their data."""
    rollbacks: StepsOrNone = 2
    """Rollbacks to the same checkpoint before the run ends."""


class Timeouts(Section):
    """How long a rank waits for the others before it ends the run. The logs then hold the stacks of all ranks."""

    start_s: PositiveFloat = 1800.0
    """Longest wait until the first step is done, and while a checkpoint is written or read."""
    train_s: PositiveFloat = 600.0
    """Longest wait between two micro-batches of any rank."""

    @property
    def grace_s(self) -> float:
        """How long ranks may take to end after a request: the rest of a step, and saving. Later ones end themselves."""
        return self.train_s + self.start_s


REPORTERS = {"wandb"}
"""What `logging.reporters` may name. `maskloom.train.reporters` knows all else of them."""


def add_reporter(name: str) -> None:
    """Let configurations name a reporter. Raises ValueError if the name is taken or empty."""
    if name in REPORTERS or not name.strip():
        raise ValueError(f"a reporter cannot be named {name!r}: it is taken ({', '.join(sorted(REPORTERS))}), or empty")
    REPORTERS.add(name)


def _is_reporter(name: str) -> str:
    if name not in REPORTERS:
        message = f"should be one of {', '.join(sorted(REPORTERS))}; {where_names_come_from()}"
        raise PydanticCustomError("name", "{message}", {"message": message})
    return name


class Logging(Section):
    """What is logged, and how often."""

    every_steps: Steps = 10
    """Steps between lines in metrics.jsonl, TensorBoard and the terminal."""
    peak_tflops: PositiveFloat | None = None
    """Peak of a rank's device in TFLOP/s; `mfu` is a share of it. Left out: a GPU's data sheet, or a measurement at the start.
    A CPU has no `mfu` then."""
    reporters: tuple[Annotated[str, pydantic.AfterValidator(_is_reporter)], ...] = ()
    """Who else is told what is logged, such as `wandb`. Or one of your own, which `--import` added."""

    @pydantic.field_validator("reporters")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is there twice: name each reporter once")
        return names


class Engine(Section):
    """How a step is computed: precision, ZeRO stage, kernels and communication."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage. Stage 1 spreads the optimizer state over the ranks, 2 also the gradients, 3 also the parameters."""
    kernels: Literal["auto", "eager", "compile", "onednn"] = "auto"
    """`compile` lets torch.compile fuse forward and backward: of the whole model, or layer by layer at stage 3. Each start then
    takes a minute more, and needs a C compiler (C++ on CPUs). `onednn` is for CPUs: products by oneDNN instead of MKL. `auto` is
    compile on a GPU if possible. On a CPU it is onednn if that is known to be faster (AMD with AVX-512, models of 256 and wider),
    else eager."""
    deterministic: bool = False
    """Use only operators whose results never vary. GPUs are slower then, and losses repeat bit for bit on the same hardware,
    versions and number of ranks. On a CPU they do so anyway."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer, and compute the layer again in the backward: less memory, a third more arithmetic."""
    reduce: Literal["step", "micro_batch"] = "step"
    """When gradients are summed over the ranks: once a step, or after every micro-batch. Stages 0 and 1 always do it once a
    step. At stages 2 and 3, `step` sends less by a factor of the micro-batches of a step, but each rank holds whole gradients.
    `micro_batch` holds a part of them, and can send it during the backward (`overlap`)."""
    reduce_precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format in which gradients are sent and summed. `auto` is `precision`. fp16 needs precision fp16."""
    overlap: bool | None = None
    """Send gradients during the backward (stages 1 to 3). Left out: on several GPUs, if the stage can."""

    @pydantic.model_validator(mode="after")
    def _communication(self) -> Engine:
        wrong = []
        if self.reduce == "micro_batch" and self.zero_stage < 2:
            wrong.append(
                f"reduce micro_batch needs zero_stage 2 or 3: stage {self.zero_stage} holds whole gradients, and sums them over "
                "the ranks once a step. Set engine.reduce=step"
            )
        if self.overlap and self.zero_stage == 0:
            wrong.append(
                "overlap needs zero_stage 1, 2 or 3: stage 0 sends gradients after the backward. Set engine.overlap=false"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self
