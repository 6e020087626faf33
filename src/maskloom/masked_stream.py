"""The batches of a run for a training loop of your own: exact, resumable at any number of ranks.

    corpus, tokenizer, settings -> DataPlan -> read_steps -> rows of this rank -> packed | padded -> your loop
                                                  |
                                           state: step, cursors of this rank's lanes

It is the reader of `maskloom train` with another end. The same corpus, tokenizer, seed, lanes, batch and masks give the same
rows, whoever trains on them.

The state counts what was given out, never what was read ahead. It holds where the lanes of this rank stand, which nobody else
knows. So a job of another size loads the states of all ranks, or one that `gather_state_dict` has joined. Lanes that are in no
given state are read again from the beginning: slow, but right.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed
from torch.utils.data import IterableDataset

from maskloom.config import Corpus, Masking, Phase, Storage
from maskloom.config_values import MOST_STEPS
from maskloom.data.cursors import LaneCursors, first_cursors
from maskloom.data.forms import FORMS, Batch
from maskloom.data.identity import fingerprint, tokenizing_of, unlike
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.stream import read_steps
from maskloom.data.stream_state import FORMAT, Saved, State, join, parse, phase_to_json, skipped_to
from maskloom.data.wrappers import refuse_wrappers
from maskloom.distributed import gather_objects
from maskloom.errors import UserError
from maskloom.processes import refuse_unguarded_main
from maskloom.progress import warn
from maskloom.redaction import brief
from maskloom.scalars import is_count
from maskloom.stream_arguments import (
    Source,
    arguments_named,
    checked,
    plain,
    plain_corpus,
    python_int,
    tokenizer_of,
    world_of,
)
from maskloom.tokenizers.base import Tokenizer

KEPT_STATES = 64
"""States that a stream remembers, for loaders that take a few batches ahead."""


@dataclass(frozen=True)
class _Place:
    """How far a stream has come: steps done, and the cursors of lanes."""

    step: int
    cursors: dict[int, LaneCursors]


class MaskedStream(IterableDataset[Batch]):
    """This rank's masked batches, one item a step, for `for batch in stream` or `DataLoader(stream, batch_size=None)`.

    `iter` continues from where the stream stands; it does not start anew. One iterator at a time reads: a new one ends the
    older. A stream without `steps` never ends.

    Args:
        corpus: folder or URL that holds `index.json`, or a list of them. Items of the list may be `{"path": ..., "weight": ...}`.
        tokenizer: from `load_tokenizer`, or a folder, a file or a name on the Hub.
        seq_len: S, token slots of a row. Pieces of documents have at most so many tokens.
        global_batch_rows: rows of a step over all ranks. Pieces are packed into rows: a row has one or several.
        masking: settings of the section `masking` of a configuration, such as `{"rate": 0.3, "unit": "whole_word"}`.
        seed: of the order, the packing and the masks.
        rank, world_size: this process, from 0, and how many there are. Left out: as torch.distributed says, or the launcher.
        workers: reader processes of this rank. 0 reads in this process.
        form: `packed` or `padded`; `maskloom.data.forms` says what an item holds.
        steps: items that there are in all. Left out: no end.
        lanes: the largest number of ranks that a job can ever have, a divisor of `global_batch_rows`. Left out: as `data.lanes`
            of a configuration.
        position_ids_start: of the packed form, position of a piece's first token: `pad_token_id + 1` for RoBERTa and its kin.
        prefetch_steps: steps that each reader process prepares ahead.
        storage: settings of the section `data.storage` of a configuration: timeouts and cache for URLs.

    Raises:
        UserError: an argument is wrong; the message says which and what to do.

    >>> stream = MaskedStream("shards", "tokenizer", seq_len=32, global_batch_rows=12, form="padded")
    >>> batch = next(iter(stream))
    >>> list(batch), batch["input_ids"].shape == batch["labels"].shape
    (['input_ids', 'attention_mask', 'labels'], True)
    >>> state = stream.state_dict()
    >>> again = MaskedStream("shards", "tokenizer", seq_len=32, global_batch_rows=12, form="padded")
    >>> again.load_state_dict(state)
    >>> bool((next(iter(again))["input_ids"] == next(iter(stream))["input_ids"]).all())
    True
    """

    def __init__(
        self,
        corpus: Source | Sequence[Source | Mapping[str, Any] | Corpus],
        tokenizer: Tokenizer | Source,
        *,
        seq_len: int,
        global_batch_rows: int,
        masking: Masking | Mapping[str, Any] | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        workers: int = 0,
        form: Literal["packed", "padded"] = "packed",
        steps: int | None = None,
        lanes: int | None = None,
        position_ids_start: int = 0,
        prefetch_steps: int = 4,
        storage: Storage | Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(form, str) or form not in FORMS:
            raise UserError(f"form={form!r} is not a form of batches: choose one of {', '.join(FORMS)}")
        position_ids_start, rank, world_size = map(python_int, (position_ids_start, rank, world_size))
        if not is_count(position_ids_start):
            raise UserError(f"position_ids_start={position_ids_start!r} is not a position: give a whole number from 0")
        if position_ids_start and form != "packed":
            raise UserError(
                f"position_ids_start={position_ids_start} is for form='packed': in the padded form the model numbers positions"
            )
        self._form, self._position_ids_start = form, position_ids_start
        phase = {
            "steps": MOST_STEPS if steps is None else steps,
            "seq_len": seq_len,
            "global_batch_rows": global_batch_rows,
        }
        data = {"train": plain_corpus(corpus), "lanes": lanes, "workers": workers, "prefetch_steps": prefetch_steps}
        with arguments_named():
            self._config = checked(phase, {**data, "storage": plain(storage)}, plain(masking), seed)
            self._steps = None if steps is None else self._config.phases[0].steps
            self.world = world_of(rank, world_size)
            self.tokenizer = tokenizer_of(tokenizer)
            if self._config.masking.final_rate is not None and steps is None:
                raise UserError("masking.final_rate is the rate of the last step: set steps too, or leave it out")
            self._corpora = open_corpora(self._config.data)
            self._past: tuple[Phase, ...] = ()
            self._plan = self._plan_with((), self._config.data.lanes, None)
        first = first_cursors(self._plan.lanes, len(self._corpora))
        self._place = _Place(0, {lane: first[lane] for lane in self.world.share(self._plan.lanes)})
        self._kept = deque([self._place], maxlen=KEPT_STATES)
        self._reader: Generator[Batch] | None = None

    @property
    def step(self) -> int:
        """Items given out so far, by this stream and by those whose state it loaded."""
        return self._place.step

    @property
    def lanes(self) -> int:
        """Virtual readers, V: the largest number of ranks for which a state of this stream can be loaded."""
        return self._plan.lanes

    def __len__(self) -> int:
        """`steps`. Raises TypeError for a stream without end."""
        if self._steps is None:
            raise TypeError("this MaskedStream has no end: give it steps=N, or tell the trainer how many steps to take")
        return self._steps

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Batch]:
        refuse_wrappers()
        if self._config.data.workers:
            refuse_unguarded_main()
        self.close()
        self._reader = self._read()
        return _Reading(self, self._reader)

    def __getstate__(self) -> dict[str, Any]:
        """A copy stands where this stream stands, and reads for itself."""
        return {**self.__dict__, "_reader": None, "_kept": self._kept.copy()}

    def close(self) -> None:
        """End the reader processes, if there are any. The stream keeps its place: iterate again to continue."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _read(self) -> Generator[Batch]:
        plan, place, data = self._plan, self._place, self._config.data
        if place.step >= plan.total_steps:
            return
        cursors = first_cursors(plan.lanes, len(self._corpora))
        for lane, lane_cursors in place.cursors.items():
            cursors[lane] = lane_cursors
        form, pad_id = FORMS[self._form], plan.tokenizer.pad_id
        reading = read_steps(
            plan, self.world, cursors, place.step, workers=data.workers, prefetch_steps=data.prefetch_steps
        )
        with arguments_named(), contextlib.closing(reading) as steps:
            for step in steps:
                batch = form(step.rows, pad_id, self._position_ids_start)
                self._place = _Place(step.number + 1, step.cursors)
                self._kept.append(self._place)
                yield batch

    def state_dict(self, step: int | None = None) -> State:
        """Where this rank stands: plain values for JSON, pickle or torch.save. A few integers for each of its lanes.

        Args:
            step: after how many items. Left out: after the last one that was given out. A loader that takes batches ahead has
                more of them than you have trained on: then say how many you have. The last 64 are known.

        Raises:
            UserError: that step is not known any more, or not yet.
        """
        place = next((place for place in self._kept if place.step == step), None) if step is not None else self._place
        if place is None:
            raise UserError(
                f"step {step!r}: this stream knows its states of steps {self._kept[0].step} to {self._kept[-1].step} only"
            )
        past = [phase_to_json(phase, phase.steps) for phase in self._past]
        done = place.step - sum(phase.steps for phase in self._past)
        return {
            "format": FORMAT,
            "step": place.step,
            "identity": {"seed": self._config.seed, **fingerprint(self._plan)},
            "phases": [*past, phase_to_json(self._own_phase(), done)],
            "cursors": {
                str(lane): [cursor.to_json() for cursor in cursors] for lane, cursors in sorted(place.cursors.items())
            },
        }

    def gather_state_dict(self, step: int | None = None) -> State:
        """`state_dict` with the lanes of all ranks, the same on each. Every rank must call it: they send each other their parts.

        Raises:
            UserError: torch.distributed does not connect the ranks of this stream.
        """
        mine = self.state_dict(step)
        if self.world.size == 1:
            return mine
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() != self.world.size:
            raise UserError(
                f"the {self.world.size} ranks of this stream are not those of torch.distributed, so that they cannot send each "
                "other their states: save state_dict() of each, and load the list of all"
            )
        return join(gather_objects(mine, self.world))

    def load_state_dict(self, state: State | Sequence[State]) -> None:
        """Continue from a saved state: of one rank, of all ranks as a list, or of `gather_state_dict`.

        The number of ranks may be another one. So may `seq_len`, `global_batch_rows`, `masking`, `form` and the weights of the
        corpora: then a new phase begins here, as in a run with several phases. Corpora, tokenizer and seed must be the same.

        If lanes of this rank are in none of the states, their text is read again from the beginning, without masking. That takes
        as long as reading took, and a warning says so.

        Raises:
            UserError: the state is of another corpus, tokenizer or seed, is damaged, or does not fit `lanes` or `steps`. The
                stream stays as it was.
        """
        whole = join([state] if isinstance(state, Mapping) else state)
        with arguments_named():
            found = parse(whole)
            past, lanes = self._past_of(found.phases, found.step), found.identity.get("lanes")
            if not is_count(lanes) or not lanes or any(phase.global_batch_rows % lanes for phase in past):
                raise UserError(f"the state of the stream is damaged: {brief(ValueError(f'{lanes!r} lanes'))}")
            if self._config.data.lanes is None and self._own_phase().global_batch_rows % lanes:
                raise UserError(
                    f"global_batch_rows {self._own_phase().global_batch_rows} is not a multiple of the {lanes} lanes of the "
                    "state: choose one that is"
                )
            plan = self._plan_with(past, self._config.data.lanes or lanes, tokenizing_of(found.identity))
            wrong = unlike(found.identity, {"seed": self._config.seed, **fingerprint(plan)}, "in the state")
            if wrong:
                raise UserError(
                    "this state does not fit the stream:\n"
                    + "\n".join(wrong)
                    + "\nMake the stream with what the state was "
                    "saved with, or begin without the state"
                )
            place = _Place(found.step, self._cursors_of_mine(plan, found))
        self.close()
        self._past, self._plan, self._place = past, plan, place
        self._kept = deque([place], maxlen=KEPT_STATES)

    def _past_of(self, phases: Sequence[Phase], step: int) -> tuple[Phase, ...]:
        """The phases that are over, once this stream continues after them."""
        own = self._own_phase()
        past = tuple(phases)
        if sum(phase.steps for phase in past) != step:
            raise UserError(f"the state of the stream is damaged: its phases do not have {step} steps in all")
        total = MOST_STEPS if self._steps is None else self._steps
        if step > total:
            raise UserError(f"steps={total}: the state has {step} done already; raise it")
        return past[:-1] if past and phase_to_json(past[-1], 0) == phase_to_json(own, 0) else past

    def _cursors_of_mine(self, plan: DataPlan, found: Saved) -> dict[int, LaneCursors]:
        mine = self.world.share(plan.lanes)
        cursors = {lane: found.cursors[lane] for lane in mine if lane in found.cursors}
        missing = [lane for lane in mine if lane not in cursors]
        if missing and found.step:
            warn(
                f"{len(missing)} of the {len(mine)} lanes of rank {self.world.rank} are not in the given state: their text is "
                f"read again up to step {found.step:,}. The states of all ranks, or gather_state_dict(), spare this"
            )
        return cursors | skipped_to(plan, missing, found.step)

    def _own_phase(self) -> Phase:
        return self._config.phases[0].model_copy(
            update={"weights": tuple(corpus.weight for corpus in self._config.data.corpora)}
        )

    def _plan_with(self, past: tuple[Phase, ...], lanes: int | None, tokenizing: int | None) -> DataPlan:
        """The plan of this stream after phases that are over."""
        config = self._config
        done = sum(phase.steps for phase in past)
        own = self._own_phase()
        phases = (*past, own.model_copy(update={"steps": own.steps - done}))
        data = config.data.model_copy(update={"lanes": lanes})
        plan = DataPlan.of(data, phases, config.masking, config.seed, self._corpora, self.tokenizer, tokenizing)
        plan.check_world(self.world)
        return plan


class _Reading:
    """An iterator over a stream, until another one takes over."""

    def __init__(self, stream: MaskedStream, reader: Generator[Batch]) -> None:
        self._stream, self._reader = stream, reader

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._stream._reader is not self._reader:
            raise UserError(
                "this iterator of a MaskedStream was ended: the stream was closed, loaded a state, or is iterated anew. Use "
                "the newest iterator, or a stream for each"
            )
        return next(self._reader)
