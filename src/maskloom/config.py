"""The configuration of a run: typed, frozen, and the one home of every default. `config_file` reads it from a file.

`RunConfig` holds all sections, and checks what several of them must agree on. Here are also the sections that depend on the
optimizer. `config_models` has those that depend on the architecture, `config_phases` the phases, `config_sections` all others,
and `config_values` the kinds of values. Import any of them from here. Each message says what to set instead.
"""

from __future__ import annotations

import difflib
import itertools
from typing import Annotated, Any, Literal, cast

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, SerializeAsAny
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from maskloom.config_models import MODELS, Bert, Camembert, Model, ModernBert, Roberta, XlmRoberta, model_section
from maskloom.config_phases import BatchWarmup, Phase, RewarmUp, Schedule, Stretch, shape_faults
from maskloom.config_sections import (
    ONE,
    SEVERAL,
    Checkpoint,
    Corpus,
    Data,
    Engine,
    Evaluation,
    Guard,
    Logging,
    Masking,
    Probe,
    Storage,
    Timeouts,
)
from maskloom.config_tokens import in_steps, lane_faults
from maskloom.config_values import (
    MOST_STEP_SLOTS,
    BelowOne,
    Few,
    Folder,
    PositiveShare,
    Section,
    Share,
    Steps,
    StepsOrNone,
    Tokens,
    Width,
    check_length,
)
from maskloom.extensions import where_names_come_from

__all__ = [
    "MODELS", "ONE", "SEVERAL", "BatchWarmup", "BelowOne", "Bert", "Camembert", "Checkpoint", "Corpus", "Data", "Engine",
    "Evaluation", "Few", "Guard", "Logging", "Masking", "Model", "ModernBert", "Muon", "Optimizer", "OptimizerSection",
    "Phase", "PositiveShare", "Probe", "RewarmUp", "Roberta", "RunConfig", "Section", "Share", "Steps", "StepsOrNone", "Storage",
    "Stretch", "Timeouts", "Width", "XlmRoberta", "model_section",
]  # fmt: skip


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
    """Newton-Schulz iteration over the matrix (`standard`) or, cheaper if it is oblong, over its Gram matrix."""

    @classmethod
    def faults(cls, optimizer: Optimizer) -> list[str]:
        """Gradients must not be clipped."""
        if not optimizer.gradient_clipping:
            return []
        return [
            "name muon needs gradient_clipping 0: DeepSpeed clips by a norm that is taken after the updates were "
            "orthogonalised, and would shrink them all. Set gradient_clipping=0"
        ]


OPTIMIZERS: dict[str, type[OptimizerSection] | None] = {
    "adamw": None,
    "lamb": None,
    "muon": Muon,
    "stable_adamw": None,
}
"""`optimizer.name` -> the settings that this optimizer has for itself. `maskloom.optim` knows all else of it."""


def _is_optimizer(name: str) -> str:
    if name not in OPTIMIZERS:
        message = f"should be one of {', '.join(OPTIMIZERS)}; {where_names_come_from()}"
        raise PydanticCustomError("name", "{message}", {"message": message})
    return name


class Optimizer(Section):
    """AdamW (Loshchilov & Hutter, 2019), StableAdamW (Wortsman et al., 2023), LAMB (You et al., 2019), Muon (Jordan et al.,
    2024), or one that `--import` added. Biases and LayerNorm have no weight decay. StableAdamW clips the update of each tensor.
    Muon moves the matrices of the encoder layers, and AdamW the rest."""

    name: Annotated[str, pydantic.AfterValidator(_is_optimizer)] = "adamw"
    """`adamw`, `stable_adamw`, `lamb`, `muon`, or one that `--import` added."""
    lr: PositiveFloat = 1e-4
    """Highest learning rate, reached at the end of the warm-up."""
    schedule: Schedule = "linear"
    """How the rate falls after the warm-up; `wsd` holds it until the last `decay_steps`, which fall linearly. `1-sqrt` falls
    fast first: over all steps, or over the last `decay_steps`. `constant` does not fall."""
    warmup_steps: StepsOrNone = 0
    """Steps of linear warm-up from 0; the decay takes the rest of the run."""
    warmup_tokens: Tokens | None = Field(default=None, exclude=True)
    """Instead of `warmup_steps`: token slots. The least number of steps that have so many."""
    final_lr_share: Share = 0.0
    """Share of the highest rate that the decay goes to; it would be reached one step after the last."""
    decay_steps: Steps | None = None
    """Of schedules wsd and 1-sqrt: steps of the decay at the end of the run."""
    decay_tokens: Tokens | None = Field(default=None, exclude=True)
    """Instead of `decay_steps`: token slots. The least number of steps, counted from the end, that have so many."""
    power: PositiveFloat | None = None
    """Of schedule polynomial: exponent of the decay; 1 is linear."""
    beta1: BelowOne = 0.9
    """Decay of the running mean of the gradients."""
    beta2: BelowOne = 0.98
    """Decay of the running mean of their squares."""
    eps: PositiveFloat = 1e-6
    """Added to the root of that mean, which an update is divided by."""
    muon: Muon | None = None
    """Of name muon: what the matrices have for themselves."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay: each step takes the learning rate times this share of the weights away. Biases and norms have
    none."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 does not clip."""

    @pydantic.model_validator(mode="after")
    def _belong_together(self) -> Optimizer:
        wrong = [
            f"{other} means nothing for name {self.name}: remove it, or set name to {other}"
            for other in OPTIMIZERS
            if other != self.name and getattr(self, other, None) is not None
        ]
        wrong += shape_faults(self.schedule, self.decay_steps, self.power, self.final_lr_share, self.decay_tokens)
        check_length(self, "warmup_steps", "warmup_tokens")
        check_length(self, "decay_steps", "decay_tokens")
        section = OPTIMIZERS[self.name]
        wrong += section.faults(self) if section else []
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @pydantic.model_serializer(mode="wrap")
    def _dump(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, object]:
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
    is_taken = (
        name in OPTIMIZERS or name in Optimizer.model_fields or hasattr(Optimizer, name)
    )  # a method, such as `copy`
    if is_taken or not name.isidentifier() or name.startswith("_"):
        raise ValueError(
            f"an optimizer cannot be named {name!r}: it is taken ({', '.join(OPTIMIZERS)}), the name of a setting, or not a "
            "Python name"
        )
    OPTIMIZERS[name] = section
    if section is None:
        return
    ADDED.add(name)
    # pydantic's own way to add a field: the classes that hold the section are made again.
    Optimizer.model_fields[name] = FieldInfo(annotation=cast(Any, section | None), default=None)
    Optimizer.model_rebuild(force=True)
    RunConfig.model_rebuild(force=True)


class RunConfig(Section):
    """All settings of a run."""

    run_dir: Folder
    """Folder of the run. If a run exists there, it is resumed."""
    from_: Folder | None = Field(default=None, alias="from")
    """Fork from a checkpoint of another run: `RUN@STEP`, `RUN@best`, or `RUN` for its newest. Weights, optimizer state, data
    position and step are taken over. Model, tokenizer, corpora, lanes and optimizer must be the same. Once this run has
    checkpoints of its own, it resumes from those."""
    tokenizer: str = ""
    """`tokenizer.json`, BERT's `vocab.txt` or RoBERTa's `vocab.json`, a folder with one of them, or a name on the Hub. Left out:
    that of `model.init`."""
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    """One phase or several: lengths and batches of the run, in their order."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random: order, packing, masks, dropout and the first weights."""
    data: Data
    """What is read, and how."""
    masking: Masking = Masking()
    """Which tokens are predicted, and what stands there instead."""
    model: SerializeAsAny[Model] = Bert()
    """The encoder: its kind, shape and first weights."""
    optimizer: Optimizer = Optimizer()
    """The optimizer and its learning rate."""
    evaluation: Evaluation = Evaluation()
    """The loss on held-out documents: how often, how much."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are written, and which are kept."""
    guard: Guard = Guard()
    """What happens at a bad loss."""
    timeouts: Timeouts = Timeouts()
    """How long a rank waits for the others."""
    logging: Logging = Logging()
    """What is logged, and how often."""
    engine: Engine = Engine()
    """Precision, ZeRO stage, kernels and communication."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Passed on to DeepSpeed. Settings that maskloom derives itself are refused here."""

    @property
    def evaluation_seq_len(self) -> int:
        """Token slots of a row in evaluation."""
        return self.evaluation.seq_len or self.phases[-1].seq_len

    @property
    def seq_lens(self) -> dict[str, int]:
        """Key of each setting of a sequence length -> its token slots."""
        lengths = {f"phases.{number}.seq_len": phase.seq_len for number, phase in enumerate(self.phases)}
        return {**lengths, "evaluation.seq_len": self.evaluation_seq_len}

    @property
    def evaluation_filled(self) -> Evaluation:
        """`evaluation` with its sequence length filled in."""
        return self.evaluation.model_copy(update={"seq_len": self.evaluation_seq_len})

    @property
    def needs_evaluation(self) -> list[str]:
        """The settings that mean nothing without evaluations."""
        found = {
            "checkpoint.keep_best": self.checkpoint.keep_best,
            "evaluation.patience": self.evaluation.patience is not None,
            "evaluation.probe": self.evaluation.probe is not None,
            "evaluation.sentences": bool(self.evaluation.sentences),
        }
        return [name for name, is_set in found.items() if is_set]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def model_at(self, step: int) -> dict[str, Any]:
        """Fields of the model that phases have changed by a step, and their values.

        Args:
            step: number of the step, from 1; 0 is before the first.
        """
        found: dict[str, Any] = {}
        for phase in self.phases:
            found |= phase.changes_of_model
            step -= phase.steps
            if step <= 0:
                break
        return found

    @property
    def schedules(self) -> tuple[Stretch, ...]:
        """The parts of the run that have a schedule of the learning rate each, in order."""
        starts = [0, *(number for number, phase in enumerate(self.phases) if number and phase.rewarm_up)]
        stretches = []
        for start, end in itertools.pairwise([*starts, len(self.phases)]):
            own = self.phases[start].rewarm_up if start else None
            lr, warmup_steps = (own or self.optimizer).lr, (own or self.optimizer).warmup_steps
            first, steps = (
                sum(phase.steps for phase in part) for part in (self.phases[:start], self.phases[start:end])
            )
            shape = own if own and own.schedule else None
            stretches.append(Stretch(start, first, steps, lr, warmup_steps, shape, own.final_lr_share if own else None))
        return tuple(stretches)

    @pydantic.field_validator("model", mode="wrap")
    @classmethod
    def _by_architecture(cls, given: object, read: pydantic.ValidatorFunctionWrapHandler) -> object:
        if not isinstance(given, dict):
            return read(given)
        if section := model_section(given):
            return section.model_validate(given)
        name = given["architecture"]
        near = difflib.get_close_matches(str(name).lower(), MODELS, n=1, cutoff=0.8)
        said = PydanticCustomError(
            "architecture",
            "there is no such architecture; {near}there are {known}, and one of your own comes with --import MODULE",
            {"known": ", ".join(MODELS), "near": f"did you mean '{near[0]}'? " if near else ""},
        )
        fault = InitErrorDetails(type=said, loc=("architecture",), input=str(name))
        raise ValidationError.from_exception_data("model", [fault])

    @pydantic.model_validator(mode="before")
    @classmethod
    def _tokenizer_of_init(cls, tree: object) -> object:
        """A run that starts from a checkpoint takes its tokenizer, unless another one is named."""
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
                "it is missing: name a folder that holds tokenizer.json (`maskloom tokenizer` makes one), or "
                "model.init, whose tokenizer is then taken"
            )
        return tokenizer

    @pydantic.model_validator(mode="after")
    def _across(self) -> RunConfig:
        """The configuration with its lengths in steps."""
        phases, optimizer, wrong = in_steps(self.phases, self.optimizer, self.data.lanes)
        is_settled = phases is self.phases
        config = self if is_settled else self.model_copy(update={"phases": phases, "optimizer": optimizer})
        if wrong := wrong or config._faults_across():
            raise ValueError("\n".join(wrong))
        return config

    def _faults_across(self) -> list[str]:
        """In what several sections do not agree, once all lengths are in steps."""
        wrong: list[str] = [*self._schedule_faults(), *self._clipping_faults()]
        wrong += lane_faults(self.phases, self.data.lanes)
        for number, phase in enumerate(self.phases):
            slots = phase.global_batch_rows * phase.seq_len
            if slots > MOST_STEP_SLOTS:
                wrong.append(
                    f"phases.{number}: global_batch_rows {phase.global_batch_rows} * seq_len {phase.seq_len} are {slots:,} slots "
                    f"a step, more than {MOST_STEP_SLOTS:,}: lower one of them"
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
        wrong += self._faults_of_changes()
        if not self.evaluation.every_steps:
            wrong += [f"{name} needs evaluations: set evaluation.every_steps" for name in self.needs_evaluation]
        if self.model.freeze and not self.model.init and not self.from_:
            wrong.append(
                f"model.freeze {self.model.freeze} would keep weights that nobody trained: set model.init to the model that has "
                "them, or leave model.freeze out"
            )
        for name, length in self.seq_lens.items():
            rows = self.model.max_position_embeddings
            if length > rows and (
                self.model.init is None or "max_position_embeddings" in self.model.given_beside_init()
            ):
                note = self.model.positions_note
                wrong.append(f"{name} {length} is more than model.max_position_embeddings {rows}{note}")
        return wrong

    def _faults_of_changes(self) -> list[str]:
        """Fields that a phase changes, but the model does not have."""
        if self.model.init is not None and "architecture" not in self.model.model_fields_set:
            return []  # the checkpoint's is not known yet
        return [
            f"phases.{number}.{name} {value:g}: architecture {self.model.architecture} has no {name}: remove it"
            for number, phase in enumerate(self.phases)
            for name, value in phase.changes_of_model.items()
            if name not in type(self.model).model_fields
        ]

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
            elif stretch.warmup_steps + ((stretch.own or self.optimizer).decay_steps or 0) > stretch.steps:
                decay = (
                    f"{said if stretch.own else 'optimizer.'}decay_steps {(stretch.own or self.optimizer).decay_steps}"
                )
                wrong.append(
                    f"{said}warmup_steps {stretch.warmup_steps} and {decay} are together more than {steps}: lower one of them"
                )
        if self.phases[0].rewarm_up:
            wrong.append("phases.0.rewarm_up: the first phase has optimizer.lr and optimizer.warmup_steps: set those")
        return wrong

    def _clipping_faults(self) -> list[str]:
        """Where the optimizer does not go with the clipping of a phase."""
        section = OPTIMIZERS[self.optimizer.name]
        if section is None:
            return []
        return [
            f"phases.{number}.gradient_clipping: {fault}"
            for number, phase in enumerate(self.phases)
            if phase.gradient_clipping is not None
            for fault in section.faults(
                self.optimizer.model_copy(update={"gradient_clipping": phase.gradient_clipping})
            )
        ]

    def clipping_in(self, phase: int) -> float:
        """Largest global gradient norm in a phase; 0 does not clip."""
        own = self.phases[phase].gradient_clipping
        return self.optimizer.gradient_clipping if own is None else own
