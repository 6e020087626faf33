"""A checkpoint of one layout into an engine of another: any ZeRO stage from any, at any number of ranks.

Every layout holds the weights in fp32 and the optimizer's tensors of the same length in flat vectors, a parameter in one or
several pieces:

    stage 0    a vector a parameter (half precision with FusedAdam: a group's parameters one after the other), on every rank
    stage 1, 2 a vector a group and rank: the group's parameters one after the other, cut into equal parts wherever that falls
    stage 3    a vector a (sub)group and rank: of each parameter its part for this rank, filled up to equal lengths

So both sides are lists of pieces (which elements of which parameter lie where in which vector), and loading copies what they
have in common. A rank reads only what it holds: files are mapped. Nothing is computed, so weights and moments arrive bit for
bit, and nothing is written. DeepSpeed's universal format does the same by way of a file for each parameter, for the same
stage only, and without Muon's momentum.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from maskloom.errors import UserError
from maskloom.optim.kind import OptimizerKind, Placing, TensorPart
from maskloom.train.engine.patches import DeepSpeedEngine


class Piece(NamedTuple):
    """Elements `start` to `start + length` of a parameter, which lie at `place` of a vector."""

    name: str
    start: int
    length: int
    place: int


class Vector(NamedTuple):
    """Flat weights in fp32, their optimizer state (tensors that belong to them, and plain values), and their pieces.

    Attributes:
        whole: the whole parameters, at stages 1 and 2: some optimizers keep state of these although the weights are cut.
        whole_state: names of that state.
    """

    weights: torch.Tensor
    state: dict[str, Any]
    pieces: list[Piece]
    whole: list[Piece] | None = None
    whole_state: frozenset[str] = frozenset()

    def pieces_of(self, key: str) -> list[Piece]:
        """The pieces of a tensor of the state."""
        return self.whole if key in self.whole_state and self.whole is not None else self.pieces

    def has_element_a_weight(self, key: str) -> bool:
        """Whether a tensor of the state has an element for each weight, perhaps with what pads the vector."""
        last = max(self.pieces_of(key), key=lambda piece: piece.place)
        tensor: torch.Tensor = self.state[key]
        return last.place + last.length <= tensor.numel()


Sources = dict[str, list[tuple[torch.Tensor, Piece]]]
"""For each parameter the tensors that hold some of it."""


class Saved(NamedTuple):
    """A checkpoint's content.

    Attributes:
        vectors: of all ranks.
        counters: `global_steps`, `skipped_steps`, `global_samples`.
        scaler: the loss scaler's state of stages 1 to 3.
    """

    vectors: list[Vector]
    counters: dict[str, int]
    scaler: dict[str, Any]


def layout_of_engine(engine: DeepSpeedEngine) -> str:
    """What decides whether DeepSpeed itself can load a checkpoint, beside stage and number of ranks."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage():
        return "bf16" if hasattr(optimizer, "bf16_groups") else "zero"
    return (
        "flat" if hasattr(optimizer, "fp32_groups_flat") else "list" if hasattr(optimizer, "fp32_groups") else "plain"
    )


def layout_of_files(folder: Path) -> str:
    """The same of a checkpoint."""
    parts = optimizer_files(folder)
    if parts:
        return "zero" if "zero_stage" in optimizer_state(parts[0]) else "bf16"
    optimizer = _mapped(model_file(folder))["optimizer"]
    return "flat" if "fp32_groups_flat" in optimizer else "list" if "fp32_groups" in optimizer else "plain"


def optimizer_files(folder: Path) -> list[Path]:
    """The optimizer's files in the order of their ranks; none at stage 0."""
    return sorted(folder.glob("*zero_pp_rank_*optim_states.pt"), key=_rank_of)


def optimizer_state(file: Path) -> Any:
    """What one of `optimizer_files` holds, mapped."""
    return _mapped(file)["optimizer_state_dict"]


def model_file(folder: Path) -> Path:
    """The first rank's model file."""
    stage3 = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    return stage3 if stage3.exists() else folder / "mp_rank_00_model_states.pt"


def read_saved(folder: Path, names: list[str], whole_state: frozenset[str]) -> Saved:
    """The vectors of a checkpoint, mapped.

    Args:
        names: the parameters in the order of the optimizer's groups.
        whole_state: as `OptimizerKind` has it.
    """
    model = _mapped(model_file(folder))
    counters = {key: int(model[key]) for key in ("global_steps", "skipped_steps", "global_samples")}
    parts = optimizer_files(folder)
    if not parts:
        return Saved(list(_vectors_stage0(model, names)), counters, {})
    states = [optimizer_state(part) for part in parts]
    scaler = {key: states[0][key] for key in ("loss_scaler", "dynamic_loss_scale", "overflow") if key in states[0]}
    if "fp32_flat_groups" in states[0]:
        return Saved(list(_vectors_stage3(states, model["param_shapes"])), counters, scaler)
    return Saved(list(_vectors_stage12(states, model["param_shapes"], whole_state)), counters, scaler)


def flat_groups(engine: DeepSpeedEngine) -> list[tuple[torch.Tensor, list[Any]]]:
    """At stages 1 to 3 each vector of fp32 weights that this rank holds, and the model's parameters that it is made of."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return list(zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True))
    groups = optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups
    vectors = [group["params"][0] for group in optimizer.param_groups]
    return list(zip(vectors, groups, strict=True))


def pieces_in(engine: DeepSpeedEngine, group: list[Any]) -> list[Piece]:
    """What of a group's parameters lies where in this rank's vector of it, stages 1 to 3."""
    name_of, pieces = engine.param_names, []
    if engine.zero_optimization_stage() == 3:
        rank, place = torch.distributed.get_rank(engine.optimizer.dp_process_group), 0
        for parameter in group:
            part = parameter.partition_numel()
            pieces.append(_part(name_of[parameter], parameter.ds_numel, part, rank, place))
            place += part
        return pieces
    for parameter in group:
        if (held := parameter._hp_mapping) is not None:
            start, length = held.lp_fragment_address.start, held.lp_fragment_address.numel
            pieces.append(Piece(name_of[parameter], start, length, held.get_hp_fragment_address().start))
    return pieces


def place_tensors(engine: DeepSpeedEngine, kind: OptimizerKind) -> None:
    """Tell an optimizer that takes norms of whole tensors which parts of them lie where in the vectors that ZeRO made."""
    if not kind.norms_whole_tensors or engine.zero_optimization_stage() == 0:
        return
    placings = {}
    for vector, group in flat_groups(engine):
        numbers = {engine.param_names[parameter]: number for number, parameter in enumerate(group)}
        pieces = (piece for piece in pieces_in(engine, group) if piece.length)
        parts = tuple(TensorPart(numbers[piece.name], piece.place, piece.length) for piece in pieces)
        placings[vector] = Placing(len(group), parts)
    cast(Any, engine.basic_optimizer).place(placings)


def own_part(parameter: Any) -> torch.Tensor:
    """The elements of a parameter that this rank holds: all, or under ZeRO 3 its share without what pads it, as a vector.

    What pads a share is memory that nobody wrote: it may hold anything.
    """
    if not hasattr(parameter, "ds_tensor"):
        return cast(torch.Tensor, parameter)
    share: torch.Tensor = parameter.ds_tensor.flatten()
    return share[: max(0, min(len(share), parameter.ds_numel - torch.distributed.get_rank() * len(share)))]


def vectors_of(engine: DeepSpeedEngine, whole_state: frozenset[str]) -> list[Vector]:
    """The vectors that this rank holds, of weights only: `state` is empty."""
    optimizer, stage, name_of = engine.optimizer, engine.zero_optimization_stage(), engine.param_names
    if stage == 3:
        return [Vector(vector, {}, pieces_in(engine, group)) for vector, group in flat_groups(engine)]
    if stage:
        found = []
        for vector, group in flat_groups(engine):
            whole = None
            if not hasattr(optimizer, "bf16_groups"):
                whole = _in_a_row({name_of[each]: each.numel() for each in group if each._hp_mapping is not None})
            # If a rank holds nothing but what pads the group, its state has to exist all the same.
            pieces = pieces_in(engine, group) or [Piece(name_of[group[0]], 0, 0, 0)]
            found.append(Vector(vector, {}, pieces, whole, whole_state))
        return found
    layout = layout_of_engine(engine)
    if layout == "flat":
        return [
            Vector(vector, {}, _in_a_row({name_of[parameter]: parameter.numel() for parameter in group}))
            for vector, group in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups, strict=True)
        ]
    masters = optimizer.fp32_groups if layout == "list" else [group["params"] for group in optimizer.param_groups]
    models = optimizer.fp16_groups if layout == "list" else masters
    return [
        Vector(master, {}, _in_a_row({name_of[parameter]: parameter.numel()}))
        for group, parameters in zip(masters, models, strict=True)
        for master, parameter in zip(group, parameters, strict=True)
    ]


def names_in_order(engine: DeepSpeedEngine) -> list[str]:
    """The names of all parameters in the order of the optimizer's groups; on every rank, whatever it holds."""
    optimizer = engine.optimizer
    for groups in ("fp16_groups", "bf16_groups", "bit16_groups"):
        if hasattr(optimizer, groups):
            return [engine.param_names[parameter] for group in getattr(optimizer, groups) for parameter in group]
    return [engine.param_names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def load_reshaped(engine: DeepSpeedEngine, kind: OptimizerKind, folder: Path, keeps_loss_scale: bool) -> None:
    """Load weights, optimizer state and counters of a checkpoint of any layout; all ranks call it.

    Raises:
        UserError: the checkpoint does not hold all of the engine's parameters, or the state of an optimizer whose tensors do
            not belong to the weights element by element.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()
    saved = read_saved(folder, names_in_order(engine), kind.whole_state)
    with torch.no_grad():
        _fill(engine.basic_optimizer.state, vectors_of(engine, kind.whole_state), saved.vectors, folder)
        _refresh_model(engine)
    for key, count in saved.counters.items():
        setattr(engine, key, count)
    if keeps_loss_scale and engine.fp16_enabled():
        for key, value in saved.scaler.items():
            setattr(optimizer, key, value)
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()


def _fill(states: Any, wanted: list[Vector], saved: list[Vector], folder: Path) -> None:
    """Copy weights into the wanted vectors, and give each the optimizer state that it had."""
    weights: Sources = {}
    moments: dict[str, Sources] = {}
    first_of: dict[str, Vector] = {}  # parameter -> the vector that holds its first elements
    for vector in saved:
        for piece in vector.pieces:
            weights.setdefault(piece.name, []).append((vector.weights, piece))
            first_of.setdefault(piece.name, vector)
        for key in filter(lambda key: _is_spread(vector.state[key]), vector.state):
            for piece in vector.pieces_of(key):
                moments.setdefault(key, {}).setdefault(piece.name, []).append((vector.state[key], piece))
    for vector in wanted:
        _copy(vector.weights.data, vector.pieces, weights, folder)
        before = first_of[vector.pieces[0].name]
        state = dict(before.state)  # plain values are the same for all parameters of a group
        for key in filter(lambda key: _is_spread(state[key]), state):
            if not before.has_element_a_weight(key):
                state[key] = _as_it_was(key, before, vector, folder)
                continue
            pieces = vector.pieces_of(key)
            state[key] = torch.zeros_like(vector.weights)
            if pieces is vector.whole:
                state[key] = state[key].new_zeros(sum(piece.length for piece in pieces))
            _copy(state[key], pieces, moments[key], folder)
        states[vector.weights] = state


def _as_it_was(key: str, before: Vector, vector: Vector, folder: Path) -> torch.Tensor:
    """State that has another shape than its weights, such as Adafactor's sums over rows: for the same weights only."""
    state: torch.Tensor = before.state[key]
    if before.pieces != vector.pieces:
        raise UserError(
            f"{folder} cannot be loaded with these settings of engine and this number of ranks. The optimizer's {key} has "
            f"{state.numel():,} elements for {before.weights.numel():,} weights, and only state with an element for each "
            "weight can be spread anew. Set engine and ranks as they were"
        )
    return state.to(vector.weights.device, copy=True)


def _copy(vector: torch.Tensor, pieces: list[Piece], sources: Sources, folder: Path) -> None:
    """Fill the pieces of a vector. Raises UserError if the sources do not hold all of a piece."""
    for piece in pieces:
        covered = piece.start
        for source, held in sorted(sources.get(piece.name, []), key=lambda found: found[1].start):
            start, end = max(covered, held.start), min(piece.start + piece.length, held.start + held.length)
            if start == covered < end:
                to, place = piece.place + start - piece.start, held.place + start - held.start
                vector.view(-1)[to : to + end - start].copy_(source.view(-1)[place : place + end - start])
                covered = end
        if piece.name not in sources or covered < piece.start + piece.length:
            raise UserError(
                f"{folder} holds {covered - piece.start} of {piece.length} elements of {piece.name}: it is of another model"
            )


def _is_spread(value: object) -> bool:
    """Whether a value of the state belongs to the weights element by element. torch's counts of steps are tensors of one
    number."""
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _refresh_model(engine: DeepSpeedEngine) -> None:
    """Bring the fp32 weights to where the forward reads them."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    layout = layout_of_engine(engine)
    if stage == 3:
        for number, vector in enumerate(optimizer.fp32_partitioned_groups_flat):
            flat = optimizer.fp16_partitioned_groups_flat[number]
            flat.data.copy_(vector.data)
            parts = optimizer.fp16_partitioned_groups[number]
            for part, values in zip(parts, optimizer.unflatten(flat, parts), strict=True):
                part.data = values.data
    elif stage:
        optimizer.update_lp_params()
    elif layout == "flat":
        for flat, vector in zip(optimizer.fp16_groups_flat, optimizer.fp32_groups_flat, strict=True):
            flat.data.copy_(vector.data)
    elif layout == "list":
        for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(group, masters, strict=True):
                parameter.data.copy_(master.data)


def _vectors_stage0(model: Any, names: list[str]) -> Iterator[Vector]:
    saved = model["optimizer"]
    states = saved.get("optimizer_state_dict", saved)["state"]
    sizes = {name: model["module"][name].numel() for name in names}
    if "fp32_groups_flat" in saved:
        left = dict(sizes)
        for number, vector in enumerate(saved["fp32_groups_flat"]):
            held, length = {}, 0
            while length < vector.numel():
                name = next(iter(left))
                held[name] = left.pop(name)
                length += held[name]
            yield Vector(vector.detach(), states.get(number, {}), _in_a_row(held))
        return
    if "fp32_groups" in saved:
        weights = [tensor for group in saved["fp32_groups"] for tensor in group]
    else:
        weights = [model["module"][name] for name in names]
    for number, (name, tensor) in enumerate(zip(names, weights, strict=True)):
        yield Vector(tensor.detach(), states.get(number, {}), _in_a_row({name: sizes[name]}))


def _vectors_stage12(ranks: list[Any], shapes: Any, whole_state: frozenset[str]) -> Iterator[Vector]:
    ends: dict[str, int] = {}  # a rank's piece of a parameter begins where that of the rank before ended
    for rank in ranks:
        states = rank["base_optimizer_state"]["state"]
        sizes = {name: shape.numel() for group in shapes for name, shape in group.items()}
        for number, weights in enumerate(rank["single_partition_of_fp32_groups"]):
            pieces: list[Piece] = []
            for name, address in rank["param_slice_mappings"][number].items():
                pieces.append(Piece(name, ends.get(name, 0), address.numel, address.start))
                ends[name] = pieces[-1].start + address.numel
            whole = _in_a_row({piece.name: sizes[piece.name] for piece in pieces}) if "zero_stage" in rank else None
            yield Vector(weights.detach(), states.get(number, {}), pieces, whole, whole_state)


def _vectors_stage3(ranks: list[Any], shapes: Any) -> Iterator[Vector]:
    for number, rank in enumerate(ranks):
        states = rank["optimizer_state_dict"]["state"]
        for group, weights in enumerate(rank["fp32_flat_groups"]):
            pieces, place = [], 0
            for name, shape in shapes[group].items():
                part = -(-shape.numel() // len(ranks))
                pieces.append(_part(name, shape.numel(), part, number, place))
                place += part
            yield Vector(weights.detach(), states.get(group, {}), pieces)


def _part(name: str, numel: int, part: int, rank: int, place: int) -> Piece:
    """What a rank holds of a parameter at stage 3."""
    start = min(rank * part, numel)
    return Piece(name, start, min(part, numel - start), place)


def _in_a_row(sizes: dict[str, int]) -> list[Piece]:
    """Whole parameters, one after the other."""
    pieces, place = [], 0
    for name, numel in sizes.items():
        pieces.append(Piece(name, 0, numel, place))
        place += numel
    return pieces


def _mapped(file: Path) -> Any:
    return torch.load(file, map_location="cpu", mmap=True)


def _rank_of(file: Path) -> int:
    return int(file.name.split("_pp_rank_")[1].split("_")[0])
