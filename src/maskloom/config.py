"""The configuration of a run: typed, frozen, and the one home of every default. `config_file` reads it."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, cast

import pydantic
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    Tag,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from maskloom.extensions import where_names_come_from
from maskloom.scalars import read_as

BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

# Far above what anybody trains, and low enough that a slip of the keyboard is told from a run before it fills the memory.
MOST_STEPS = 10**12
MOST_ROWS = 1 << 24
MOST_SEQ_LEN = 1 << 20
MOST_STEP_SLOTS = 1 << 30
"""Token slots of one optimizer step over all ranks; BERT-large by LAMB has 2^25."""
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
StepsOrNone = Annotated[int, Field(ge=0, le=MOST_STEPS)]
"""0 means none, or never."""
RowCount = Annotated[int, Field(ge=1, le=MOST_ROWS)]
SeqLen = Annotated[int, Field(ge=8, le=MOST_SEQ_LEN)]
Width = Annotated[int, Field(ge=1, le=1 << 17)]
Few = Annotated[int, Field(ge=1, le=1 << 12)]
"""What there are at most some thousands of: layers, heads, attempts."""


def _folder(text: str) -> str:
    """A path as it is written: no shell reads it."""
    if not text.strip():
        raise ValueError(f"{text!r} names no folder")
    if not text.isprintable():
        raise ValueError(f"{text!r} has a line break or another character that cannot be printed: choose another name")
    if text.startswith("~"):
        raise ValueError(f"{text!r}: ~ means nothing here, and would be a folder of that name: write the path in full")
    return text


Folder = Annotated[str, pydantic.AfterValidator(_folder)]
LARGEST_WEIGHT = 1e6  # only the proportions of weights count

ONE, SEVERAL = "<one>", "<several>"  # the two forms of data.train; pydantic puts their names into an error's place


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _read(cls, given: Any, info: pydantic.ValidationInfo) -> Any:
        try:
            return read_as(given, cls.model_fields[str(info.field_name)].annotation)
        except ValueError as error:
            raise PydanticCustomError("form", "{reason}", {"reason": str(error)}) from None


class Corpus(Section):
    """One of several corpora that a run mixes."""

    path: str
    """Folder or URL that holds `index.json`."""
    weight: Annotated[float, Field(gt=0.0, le=LARGEST_WEIGHT)] = 1.0
    """Share of the rows, relative to the other corpora's; `phases.N.weights` replaces it for one phase."""


class Storage(Section):
    """How bytes of shards are fetched and kept; nothing here changes which rows a run sees."""

    timeout_s: PositiveFloat = 30.0
    """Longest wait for a connection or for the next bytes of a body."""
    attempts: Few = 6
    """Attempts in a row without one new byte before a read fails; the wait between them grows."""
    cache: str | None = None
    """Folder on this machine for blocks that were fetched over the network; shared by all processes."""
    cache_bytes: PositiveInt = 32 << 30
    """Bound of the cache; what was used longest ago goes first."""


class Data(Section):
    train: Annotated[
        Annotated[str, Tag(ONE)] | Annotated[tuple[Corpus, ...], Field(min_length=1), Tag(SEVERAL)],
        Discriminator(lambda given: ONE if isinstance(given, str) else SEVERAL),
    ]
    """Folder or URL that holds `index.json`, as `maskloom shards` and `maskloom index` write it; or a list of `path` and
    `weight`, whose rows are mixed."""
    lanes: RowCount | None = None
    """Virtual readers: the largest world size this run can ever have. Left out: the largest divisor of every phase's
    global batch that is at most 64 and at most a sixteenth of the (largest) corpus's blocks."""
    workers: Annotated[int, Field(ge=0, le=1 << 12)] = 1
    """Reader processes a rank; 0 reads in the training process."""
    prefetch_steps: Few = 4
    """Steps that each reader process prepares ahead."""
    on_bad_data: Literal["raise", "skip"] = "raise"
    """`raise` ends the run at a block that is not what was indexed; `skip` passes over it, counts it and lists it."""
    max_bad_share: Share = 0.001
    """Largest share of the blocks read that may be skipped; one is always allowed. Beyond it the run ends."""
    storage: Storage = Storage()

    @pydantic.field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
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
        """The corpora, also where one is given by its path alone."""
        return (Corpus(path=self.train),) if isinstance(self.train, str) else self.train


class Masking(Section):
    rate: PositiveShare = 0.15
    """Share of a row's maskable tokens that are predicted."""
    final_rate: PositiveShare | None = None
    """Rate at the end of the run: it goes there linearly with the step. Left out: it stays. `phases.N.mask_rate` replaces
    both for one phase."""
    unit: Literal["token", "whole_word", "span"] = "token"
    """What is chosen as one: tokens, whole words, or spans of whole words."""
    draw: Literal["exact", "bernoulli"] = "exact"
    """`exact` predicts the same number in every row of as many maskable tokens; `bernoulli` chooses every unit with
    probability `rate`, up to a cap a row."""
    span_p: PositiveShare = 0.2
    """Of the geometric distribution of a span's length in words (SpanBERT's)."""
    span_max_words: PositiveInt = 10
    """Longest span; the distribution is cut there and renormalised. Above 4096 it is the slots of a row, or 4096 if they are
    fewer."""
    replace_unit: Literal["token", "unit"] = "token"
    """Whether each token of a unit draws what becomes of it, or the unit as a whole (as SpanBERT's spans)."""
    protected: tuple[str, ...] = ()
    """Tokens of the vocabulary that are never predicted and never drawn, beside special tokens and `[unused*]`."""
    mask_share: Share = 0.8
    """Share of the predicted tokens that are replaced by [MASK]."""
    random_share: Share = 0.1
    """Share of the predicted tokens that are replaced by a random token; the rest stay as they are."""

    @pydantic.model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask_share + self.random_share > 1.0:
            raise ValueError(
                f"mask_share {self.mask_share} + random_share {self.random_share} is more than 1: lower one of them"
            )
        return self


class Model(Section):
    """What all architectures have; the others' fields are in a section of each. They have Hugging Face's names."""

    dropouts: ClassVar[tuple[str, ...]] = ()
    """The fields that are probabilities of dropout: a run sets them, whatever it starts from."""

    architecture: str = "bert"
    """Kind of encoder, as `model_type` in a Hugging Face config.json. With `init` it follows from the checkpoint."""
    init: Annotated[str, pydantic.Field(min_length=1)] | None = None
    """Hugging Face checkpoint to start from (folder or name); its shape then holds, and no other may be given here."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=MOST_SEQ_LEN)] = 512
    """Longest piece of a document, in tokens with [CLS] and [SEP]."""

    @classmethod
    def shape_fields(cls) -> set[str]:
        """The fields that a checkpoint fixes."""
        return set(cls.model_fields) - {"architecture", "init", "initializer_range", *cls.dropouts}

    @pydantic.model_validator(mode="after")
    def _shape_of_init(self) -> Self:
        given = sorted(self.model_fields_set & self.shape_fields())
        if self.init and given:
            raise ValueError(f"init takes the shape from its checkpoint: remove {', '.join(given)}")
        return self


class Bert(Model):
    """The names of Hugging Face's `BertConfig`; the defaults are BERT-base's."""

    dropouts: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")

    hidden_size: Width = 768
    num_hidden_layers: Few = 12
    num_attention_heads: Few = 12
    intermediate_size: Width = 3072
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.0
    """Dropout on attention weights. Above 0 the attention runs over padded rows with a mask, which is slower on GPUs."""
    initializer_range: PositiveFloat = 0.02
    layer_norm_eps: PositiveFloat = 1e-12

    @pydantic.model_validator(mode="after")
    def _heads(self) -> Bert:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


MODELS: dict[str, type[Model]] = {"bert": Bert}
"""The section of each architecture. `maskloom.models.architecture.add` adds a user's own."""


def model_section(given: Any) -> type[Model] | None:
    """The section that the `model` block of a tree of plain values is read by; None for an unknown architecture."""
    name = given.get("architecture") if isinstance(given, dict) else None
    return MODELS.get(name) if isinstance(name, str) else Bert


class BatchWarmup(Section):
    """The global batch of a phase grows linearly with the step, by whole multiples of `data.lanes` rows: small batches make
    the most of a token early on (McCandlish et al., 2018; Brown et al., 2020, grew GPT-3's in the same way)."""

    from_rows: RowCount
    """Global batch of the phase's first step, in rows."""
    steps: Steps
    """Steps until `global_batch_rows` is reached."""


class RewarmUp(Section):
    """The learning rate's schedule begins anew with a phase, as in the second phase of You et al. (2019)."""

    lr: PositiveFloat
    """Highest learning rate from here on, in place of `optimizer.lr`."""
    warmup_steps: StepsOrNone = 0
    """Steps of linear warm-up from 0, counted from the phase's first."""


class Phase(Section):
    """A stretch of the run with one sequence length and one global batch."""

    steps: Steps
    """Optimizer steps."""
    seq_len: SeqLen = 128
    """Token slots a row."""
    global_batch_rows: RowCount = 256
    """Rows an optimizer step over all ranks; accumulation follows from the world size."""
    micro_batch_rows: RowCount = 32
    """Most rows that a rank runs forward and backward at once."""
    mask_rate: PositiveShare | None = None
    """Share of the tokens predicted in this phase, in place of `masking.rate` and `masking.final_rate`."""
    weights: tuple[Annotated[float, Field(ge=0.0, le=LARGEST_WEIGHT)], ...] | None = None
    """Weights of the corpora in this phase, in the order of `data.train`."""
    batch_warmup: BatchWarmup | None = None
    """Growth of the global batch at the beginning of the phase. Left out: it is `global_batch_rows` from the first step."""
    rewarm_up: RewarmUp | None = None
    """A schedule of its own from this phase on. Left out: the schedule before goes on."""

    @pydantic.model_validator(mode="after")
    def _growth(self) -> Phase:
        if not self.batch_warmup:
            return self
        wrong = []
        if self.batch_warmup.from_rows >= self.global_batch_rows:
            wrong.append(
                f"batch_warmup.from_rows {self.batch_warmup.from_rows} must be less than global_batch_rows "
                f"{self.global_batch_rows}: lower it, or leave batch_warmup out"
            )
        if self.batch_warmup.steps >= self.steps:
            wrong.append(
                f"batch_warmup.steps {self.batch_warmup.steps} must be less than the phase's {self.steps} steps, so that "
                "global_batch_rows is reached"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class OptimizerSection(Section):
    """Settings that one optimizer has for itself: they stand under its name in the section `optimizer`."""

    @classmethod
    def faults(cls, optimizer: Optimizer) -> list[str]:
        """What else in the section `optimizer` does not go with this optimizer, and what to set."""
        return []


class Muon(OptimizerSection):
    """What Muon does with the matrices of the encoder layers (as DeepSpeed has it)."""

    lr: PositiveFloat | None = None
    """Their highest learning rate; a step of 1 moves all singular directions by about 1. Left out: `optimizer.lr`, which
    the other parameters have."""
    momentum: BelowOne = 0.95
    """Nesterov momentum."""
    ns_method: Literal["gram", "standard"] = "gram"
    """Newton-Schulz iteration over the matrix (`standard`) or, cheaper where it is oblong, over its Gram matrix."""

    @classmethod
    def faults(cls, optimizer: Optimizer) -> list[str]:
        """Gradients must not be clipped."""
        if not optimizer.gradient_clipping:
            return []
        return [
            "name muon needs gradient_clipping 0: DeepSpeed clips by a norm that is taken after the updates were "
            "orthogonalised, and would shrink them all. Set gradient_clipping=0"
        ]


OPTIMIZERS: dict[str, type[OptimizerSection] | None] = {"adamw": None, "lamb": None, "muon": Muon}
"""`optimizer.name` -> the settings that this optimizer has for itself. `maskloom.optim` knows all else of it."""


def _is_optimizer(name: str) -> str:
    if name not in OPTIMIZERS:
        message = f"should be one of {', '.join(OPTIMIZERS)}; {where_names_come_from()}"
        raise PydanticCustomError("name", "{message}", {"message": message})
    return name


class Optimizer(Section):
    """AdamW (Loshchilov & Hutter, 2019), LAMB (You et al., 2019), Muon (Jordan et al., 2024), or one that `--import` added.
    Biases and LayerNorm have no weight decay. Muon moves the matrices of the encoder layers, and AdamW the rest."""

    name: Annotated[str, pydantic.AfterValidator(_is_optimizer)] = "adamw"
    lr: PositiveFloat = 1e-4
    """Highest learning rate, reached at the end of the warm-up."""
    schedule: Literal["linear", "cosine", "wsd", "polynomial"] = "linear"
    """How the rate falls after the warm-up; `wsd` holds it until the last `decay_steps`, which fall linearly."""
    warmup_steps: StepsOrNone = 0
    """Steps of linear warm-up from 0; the decay takes the rest of the run."""
    final_lr_share: Share = 0.0
    """Share of the highest rate that the decay goes to; it would be reached one step after the last."""
    decay_steps: Steps | None = None
    """Of schedule wsd: steps of the decay at the end of the run."""
    power: PositiveFloat | None = None
    """Of schedule polynomial: exponent of the decay; 1 is linear."""
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.98
    eps: PositiveFloat = 1e-6
    muon: Muon | None = None
    """Of name muon: what the matrices have for themselves."""
    weight_decay: NonNegativeFloat = 0.01
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 does not clip."""

    @pydantic.model_validator(mode="after")
    def _belong_together(self) -> Optimizer:
        wrong = [
            f"{other} means nothing for name {self.name}: remove it, or set name to {other}"
            for other in OPTIMIZERS
            if other != self.name and getattr(self, other, None) is not None
        ]
        for schedule, (key, example) in SCHEDULE_KEYS.items():
            is_given = getattr(self, key) is not None
            if is_given and self.schedule != schedule:
                wrong.append(
                    f"{key} means nothing for schedule {self.schedule}: remove it, or set schedule to {schedule}"
                )
            if not is_given and self.schedule == schedule:
                wrong.append(f"schedule {schedule} needs {key}: set it, for example to {example}")
        section = OPTIMIZERS[self.name]
        wrong += section.faults(self) if section else []
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @pydantic.model_serializer(mode="wrap")
    def _dump(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the sections of optimizers that were added: a run of another one is read without them too."""
        tree: dict[str, Any] = dump(self)
        return {key: value for key, value in tree.items() if key not in ADDED or value is not None}


ADDED: set[str] = set()
"""Optimizers that came with `--import`."""


def add_optimizer(name: str, section: type[OptimizerSection] | None) -> None:
    """Let configurations name an optimizer, and have its settings under that name.

    Raises:
        ValueError: the name is taken, or cannot be the name of a setting.
    """
    if name in OPTIMIZERS or name in Optimizer.model_fields or not name.isidentifier():
        raise ValueError(f"an optimizer cannot be named {name!r}: these names are taken: {', '.join(OPTIMIZERS)}")
    OPTIMIZERS[name] = section
    if section is None:
        return
    ADDED.add(name)
    # pydantic's own way to add a field: the classes that hold the section are made again.
    Optimizer.model_fields[name] = FieldInfo(annotation=cast(Any, section | None), default=None)
    Optimizer.model_rebuild(force=True)
    RunConfig.model_rebuild(force=True)


SCHEDULE_KEYS = {"wsd": ("decay_steps", "a tenth of the run's steps"), "polynomial": ("power", "0.5")}


class Evaluation(Section):
    every_steps: StepsOrNone = 0
    """Steps between passes over the held-out documents; 0 never."""
    seq_len: SeqLen | None = None
    """Token slots a row; left out: those of the last phase."""
    mask_rate: PositiveShare = 0.15
    micro_batch_rows: RowCount = 32


class Checkpoint(Section):
    every_steps: StepsOrNone = 500
    """Steps between checkpoints; 0 writes one at the end only."""
    keep_last: Annotated[int, Field(ge=2, le=MOST_STEPS)] = 2
    """Newest checkpoints kept. At least 2: should the newest be damaged, the run goes on from the one before."""
    keep_every_steps: Steps | None = None
    """Checkpoints of steps that are multiples of it are kept for good."""
    background: bool = True
    """Write while training goes on, from a copy of the state in memory; without room for the copy a save is waited for."""


class Guard(Section):
    """What becomes of steps that would spoil the weights."""

    spike_sigma: PositiveFloat | None = None
    """A step whose loss is more than this many standard deviations above the mean of the `window_steps` before it is not
    taken: its gradients are dropped, and it is counted (as in OLMo 2; 6 there). Left out: only losses and gradients that are
    not finite."""
    window_steps: Annotated[int, Field(ge=8, le=1 << 20)] = 128
    """Steps of the phase that a loss is compared with; until so many were taken, none counts as a spike."""
    skips_before_rollback: Few = 3
    """So many steps in a row that were not taken, and the run goes back to its last checkpoint and on behind their data."""
    rollbacks: StepsOrNone = 2
    """Times that a run may go back from the same checkpoint; beyond it the run ends."""


class Timeouts(Section):
    """How long a rank waits for others before it ends the run, with the stacks of all ranks in their logs."""

    start_s: PositiveFloat = 1800.0
    """Until the first step is done, and while a checkpoint is written or read."""
    train_s: PositiveFloat = 600.0
    """Between two micro-batches of any rank."""


class Logging(Section):
    every_steps: Steps = 10
    """Steps between lines in metrics.jsonl, TensorBoard and the terminal."""
    peak_tflops: PositiveFloat | None = None
    """TFLOP/s of a rank's device that `mfu` is a share of. Left out: a GPU's data sheet's, or measured at the start; of a CPU
    there is no `mfu` then."""


class Engine(Section):
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: what is spread over the ranks (1 optimizer state, 2 and gradients, 3 and parameters)."""
    kernels: Literal["auto", "eager", "compile"] = "auto"
    """`compile` lets torch.compile fuse the forward and backward: the whole model, or at stage 3 layer by layer. It takes
    a minute at each start, and a C compiler (on CPUs C++). `auto` is compile on a GPU where it can be had, eager on a CPU."""
    deterministic: bool = False
    """Only operators whose results are the same at every run: on GPUs slower, and the same losses bit for bit on the same
    hardware, versions and ranks. On a CPU they are so anyway."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer and compute the layer once more in the backward: less memory for a third more
    arithmetic."""
    reduce: Literal["step", "micro_batch"] = "step"
    """When gradients are summed over the ranks: once a step, or after every micro-batch. Stages 0 and 1 do it once a step.
    At stages 2 and 3 once a step sends an Ath part for A micro-batches, and holds whole gradients meanwhile; after every
    micro-batch they are held in parts, and sent while the backward goes on (`overlap`)."""
    reduce_precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numbers that gradients are sent and summed over the ranks in; `auto` is `precision`. fp16 needs precision fp16."""
    overlap: bool | None = None
    """Send gradients while the backward goes on (stages 1 to 3). Left out: on several GPUs, where the stage can."""

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


class Stretch(NamedTuple):
    """Steps over which one schedule of the learning rate holds.

    Attributes:
        phase: number of the phase that it begins with.
        first_step: steps of the run before it.
        steps: its length.
        lr: its highest learning rate.
        warmup_steps: steps of its warm-up.
    """

    phase: int
    first_step: int
    steps: int
    lr: float
    warmup_steps: int


class RunConfig(Section):
    run_dir: Folder
    """Folder of the run. A run that exists there is resumed."""
    from_: Folder | None = Field(default=None, alias="from")
    """`RUN@STEP`, or `RUN` for its newest checkpoint: another run that this one goes on from, with its weights, optimizer state,
    data position and steps. Model, tokenizer, corpora, lanes and optimizer have to be the same. Once this run has
    checkpoints of its own, it goes on with those."""
    tokenizer: str = ""
    """`tokenizer.json` or BERT's `vocab.txt`, a folder that holds one, or a name on the Hub. Left out: that of `model.init`."""
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random follows from it: order, packing, masks, dropout and the first weights."""
    data: Data
    masking: Masking = Masking()
    model: SerializeAsAny[Model] = Bert()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    guard: Guard = Guard()
    timeouts: Timeouts = Timeouts()
    logging: Logging = Logging()
    engine: Engine = Engine()
    deepspeed: dict[str, Any] = {}
    """Passed through to DeepSpeed. What maskloom derives itself may not stand here."""

    @property
    def evaluation_seq_len(self) -> int:
        """Token slots a row in evaluation."""
        return self.evaluation.seq_len or self.phases[-1].seq_len

    @property
    def seq_lens(self) -> dict[str, int]:
        """Each setting of a sequence length, and its token slots a row."""
        lengths = {f"phases.{number}.seq_len": phase.seq_len for number, phase in enumerate(self.phases)}
        return {**lengths, "evaluation.seq_len": self.evaluation_seq_len}

    @property
    def evaluation_filled(self) -> Evaluation:
        """`evaluation` with its sequence length."""
        return self.evaluation.model_copy(update={"seq_len": self.evaluation_seq_len})

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def schedules(self) -> tuple[Stretch, ...]:
        """The stretches of the run in which one schedule of the learning rate holds, in their order."""
        starts = [0, *(number for number, phase in enumerate(self.phases) if number and phase.rewarm_up)]
        stretches = []
        for start, end in itertools.pairwise([*starts, len(self.phases)]):
            own = self.phases[start].rewarm_up if start else None
            lr, warmup_steps = (own or self.optimizer).lr, (own or self.optimizer).warmup_steps
            first, steps = (
                sum(phase.steps for phase in part) for part in (self.phases[:start], self.phases[start:end])
            )
            stretches.append(Stretch(start, first, steps, lr, warmup_steps))
        return tuple(stretches)

    @pydantic.field_validator("model", mode="wrap")
    @classmethod
    def _by_architecture(cls, given: Any, read: pydantic.ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(given, dict):
            return read(given)
        if section := model_section(given):
            return section.model_validate(given)
        name = given["architecture"]
        said = PydanticCustomError(
            "architecture",
            "there is no such architecture; there are {known}, and one of your own comes with --import MODULE",
            {"known": ", ".join(MODELS)},
        )
        fault = InitErrorDetails(type=said, loc=("architecture",), input=str(name))
        raise ValidationError.from_exception_data("model", [fault])

    @pydantic.model_validator(mode="before")
    @classmethod
    def _tokenizer_of_init(cls, tree: Any) -> Any:
        """A run that starts from a checkpoint has its tokenizer, if it names no other."""
        if not isinstance(tree, dict) or tree.get("tokenizer") is not None:
            return tree
        model = tree.get("model")
        init = model.get("init") if isinstance(model, dict) else None
        return {**tree, "tokenizer": init if isinstance(init, str) else ""}

    @pydantic.field_validator("tokenizer")
    @classmethod
    def _has_tokenizer(cls, tokenizer: str) -> str:
        if not tokenizer.strip():
            raise ValueError(
                "it is missing: name a folder that holds tokenizer.json or vocab.txt (`maskloom tokenizer` makes one), or "
                "model.init, whose tokenizer is then taken"
            )
        return tokenizer

    @pydantic.model_validator(mode="after")
    def _across(self) -> RunConfig:
        wrong: list[str] = self._schedule_faults()
        for number, phase in enumerate(self.phases):
            slots = phase.global_batch_rows * phase.seq_len
            if slots > MOST_STEP_SLOTS:
                wrong.append(
                    f"phases.{number}: global_batch_rows {phase.global_batch_rows} * seq_len {phase.seq_len} are {slots:,} slots "
                    f"a step, more than {MOST_STEP_SLOTS:,}: lower one of them"
                )
            if self.data.lanes and phase.batch_warmup and phase.batch_warmup.from_rows % self.data.lanes:
                wrong.append(
                    f"phases.{number}.batch_warmup.from_rows {phase.batch_warmup.from_rows} is no multiple of data.lanes "
                    f"{self.data.lanes}: each lane gives the same number of rows a step; change one of them"
                )
            if self.data.lanes and phase.global_batch_rows % self.data.lanes:
                wrong.append(
                    f"phases.{number}.global_batch_rows {phase.global_batch_rows} is no multiple of data.lanes "
                    f"{self.data.lanes}: each lane gives the same number of rows a step; change one of them"
                )
            rates = {f"phases.{number}.mask_rate": phase.mask_rate}
            if phase.mask_rate is None:
                rates = {"masking.rate": self.masking.rate, "masking.final_rate": self.masking.final_rate}
            for name, rate in rates.items():
                if rate is not None and int(rate * (phase.seq_len - 2) + 0.5) == 0:
                    wrong.append(
                        f"{name} {rate} predicts no token of a row of phases.{number}.seq_len {phase.seq_len}: raise one "
                        "of them"
                    )
            corpora = len(self.data.corpora)
            if phase.weights is not None and (len(phase.weights) != corpora or not any(phase.weights)):
                wrong.append(
                    f"phases.{number}.weights {list(phase.weights)}: {corpora} weight(s) are needed, one for each corpus of "
                    "data.train, and at least one above 0"
                )
        for name, length in self.seq_lens.items():
            if self.model.init is None and length > self.model.max_position_embeddings:
                wrong.append(
                    f"{name} {length} is more than model.max_position_embeddings {self.model.max_position_embeddings}"
                )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _schedule_faults(self) -> list[str]:
        """What is wrong with the lengths of warm-ups and decays."""
        wrong = []
        for number, stretch in enumerate(self.schedules):
            said = f"phases.{stretch.phase}.rewarm_up." if number else "optimizer."
            steps = f"the run's {stretch.steps} steps" if len(self.schedules) == 1 else f"its {stretch.steps} steps"
            if stretch.warmup_steps >= stretch.steps:
                wrong.append(
                    f"{said}warmup_steps {stretch.warmup_steps} must be less than {steps} (the sum of phases.N.steps)"
                )
            elif stretch.warmup_steps + (self.optimizer.decay_steps or 0) > stretch.steps:
                wrong.append(
                    f"{said}warmup_steps {stretch.warmup_steps} and optimizer.decay_steps {self.optimizer.decay_steps} are "
                    f"together more than {steps}: lower one of them"
                )
        if self.phases[0].rewarm_up:
            wrong.append("phases.0.rewarm_up: the first phase has optimizer.lr and optimizer.warmup_steps: set those")
        return wrong
