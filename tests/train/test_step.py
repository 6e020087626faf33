"""A step with a model of one weight: what the loss is divided by, and what a refused step leaves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskloom.config_file import parse_config
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.train.engine.engine import Backward, LossScaleCollapsed, StepOutcome
from maskloom.train.rank.heartbeats import Pulse
from maskloom.train.rank.notices import Notices
from maskloom.train.refusal import NOT_FINITE, GuardState
from maskloom.train.step import train_step
from maskloom.train.tally import Tally
from maskloom.train.timing import OwnTime, Traffic
from tests.trees import tree_with

CPU = torch.device("cpu")
CLIPPING = 0.75


class Engine:
    """The sum of the losses of a micro-batch is the weight times the number that it holds; gradients are added up."""

    adapts_loss_scale = False

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.factors: list[float] = []
        self.collapses = False

    def train(self) -> None:
        pass

    def __call__(self, micro_batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weight * micro_batch.loss, torch.tensor(micro_batch.hits)

    @contextlib.contextmanager
    def accumulating(self, micro_batches: int) -> Iterator[Backward]:
        def backward(loss: torch.Tensor) -> None:
            before = 0.0 if self.weight.grad is None else float(self.weight.grad)
            loss.backward()  # type: ignore[no-untyped-call]
            self.factors.append(float(self.weight.grad) - before)

        yield backward

    def step(self, lr: float, is_spoilt: bool, clipping: float | None) -> StepOutcome:
        assert clipping == CLIPPING
        assert self.weight.grad is not None
        if self.collapses:
            raise LossScaleCollapsed
        is_taken = bool(torch.isfinite(self.weight.grad))
        if is_taken:
            assert not is_spoilt
            with torch.no_grad():
                self.weight -= lr * self.weight.grad
        return StepOutcome(self.weight.grad.abs(), is_taken)


def a_trainer(engine: Engine, losses: tuple[float, ...] = ()) -> Any:
    """The state of one rank, at step 0."""
    guard = {"spike_sigma": 3.0, "window_steps": 8}
    optimizer = {"lr": 0.5, "warmup_steps": 1, "gradient_clipping": CLIPPING}
    config = parse_config(tree_with(guard=guard, optimizer=optimizer), "here")
    return SimpleNamespace(
        config=config,
        world=World(),
        device=CPU,
        time=OwnTime(Traffic(), World(), CPU),
        pulse=Pulse(),
        notices=Notices(),
        saver=SimpleNamespace(last_good="step-00000004"),
        plan=SimpleNamespace(phase_of=lambda number: 0),
        guard=GuardState(losses=losses),
        tally=Tally(0, CPU),
        skipped=SimpleNamespace(add=lambda step, skips: None),
        seed_dropout=lambda step, micro_batch: None,
        set_model=lambda step: None,
        cursors=["before"] * 3,
        step=0,
        engine=engine,
    )


def a_batch(losses: list[float], predicted: int) -> Any:
    """Micro-batches with these sums of losses, a hit each, and `predicted` tokens in all."""
    micro_batches = []
    for loss in losses:
        micro_batch = SimpleNamespace(loss=loss, hits=1, input_ids=torch.zeros(32))
        micro_batch.to = lambda device, micro_batch=micro_batch: micro_batch
        micro_batches.append(micro_batch)
    counts = torch.tensor([predicted, 50, 60, 700])
    return SimpleNamespace(number=0, micro_batches=micro_batches, counts=counts, cursors={1: "after"}, skips=())


def test_every_predicted_token_of_the_batch_weighs_the_same() -> None:
    """Micro-batches of 3 + 7 tokens are ten tokens, not two means."""
    engine = Engine()
    trainer = a_trainer(engine)
    result = train_step(a_batch([3.0, 14.0], predicted=10), trainer, engine)  # type: ignore[arg-type]
    assert result.loss == pytest.approx(2.0 * 17 / 10)
    assert result.accuracy == pytest.approx(2 / 10)
    assert float(result.norm) == pytest.approx(17 / 10)
    assert engine.factors == pytest.approx([3 / 10, 14 / 10])
    assert engine.weight.item() == pytest.approx(2.0 - result.lr * 17 / 10)
    assert (result.step, result.refusal, result.must_stop) == (1, None, False)
    assert result.counts.tolist() == [10, 50, 60, 700]


def test_a_step_moves_the_run_on() -> None:
    engine = Engine()
    trainer = a_trainer(engine)
    result = train_step(a_batch([3.0], predicted=3), trainer, engine)  # type: ignore[arg-type]
    assert (trainer.step, trainer.pulse.step, trainer.cursors) == (1, 1, ["before", "after", "before"])
    assert trainer.guard == GuardState(losses=(result.loss,))
    assert trainer.tally.tokens_seen() == 50


def test_the_model_is_set_for_the_step_before_it_is_taken() -> None:
    engine, taken = Engine(), []
    trainer = a_trainer(engine)
    trainer.set_model = lambda step: taken.append((step, len(engine.factors)))
    train_step(a_batch([3.0], predicted=3), trainer, engine)  # type: ignore[arg-type]
    assert taken == [(1, 0)]


@pytest.mark.parametrize(
    ("loss", "said"), [(40.0, "its loss 8.0000 is a spike, above 1.0000"), (math.nan, "its loss is nan")]
)
def test_a_loss_that_is_refused_turns_the_last_backward_into_nan(
    loss: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine()
    trainer = a_trainer(engine, losses=(1.0,) * 8)
    result = train_step(a_batch([0.0, loss], predicted=10), trainer, engine)  # type: ignore[arg-type]
    assert result.refusal == said
    assert engine.factors[0] == 0
    assert math.isnan(engine.factors[1])
    assert engine.weight.item() == 2.0
    assert (trainer.guard.in_a_row, trainer.guard.bad_steps, trainer.guard.losses) == (1, 1, (1.0,) * 8)
    assert trainer.cursors[1] == "after", "its rows are seen"
    assert trainer.tally.tokens_seen() == 50
    assert f"step 1 was not taken: {said} (1 in a row)" in capsys.readouterr().err


@pytest.mark.parametrize("adapts", [False, True])
def test_gradients_that_overflow_are_refused_unless_the_loss_scale_adapts_to_them(adapts: bool) -> None:
    engine = Engine()
    engine.adapts_loss_scale = adapts
    engine.weight.register_hook(lambda gradient: gradient * torch.inf)
    result = train_step(a_batch([1.0], predicted=10), a_trainer(engine), engine)  # type: ignore[arg-type]
    assert result.refusal == (None if adapts else NOT_FINITE)
    assert engine.weight.item() == 2.0


def test_a_request_to_stop_is_heard_with_the_step() -> None:
    engine = Engine()
    trainer = a_trainer(engine)
    trainer.notices.mine["stop"] = 1
    assert train_step(a_batch([1.0], predicted=10), trainer, engine).must_stop  # type: ignore[arg-type]


def test_a_batch_without_a_predicted_token_has_no_loss() -> None:
    engine = Engine()
    result = train_step(a_batch([0.0], predicted=0), a_trainer(engine), engine)  # type: ignore[arg-type]
    assert (result.loss, result.refusal) == (0.0, None)


def test_a_loss_scale_that_collapses_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskloom.train.step.first_not_finite", lambda *arguments: "rank 0: the loss")
    engine = Engine()
    engine.collapses = True
    with pytest.raises(UserError, match=r"fp16 collapsed at step 1: .* Not finite: rank 0: the loss"):
        train_step(a_batch([1.0], predicted=10), a_trainer(engine), engine)  # type: ignore[arg-type]
