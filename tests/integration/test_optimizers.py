"""LAMB and Muon on real ranks against plain loops over whole tensors, written here, in one process.

The reference sees the global batch at once, in fp32, and knows nothing of ranks, partitions or micro-batches.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from maskloom import optim
from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.data.batch import Layout, micro_batches
from maskloom.data.cursors import first_cursors
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.models.build import build_model
from maskloom.models.masked_lm import MaskedLM
from maskloom.optim.schedule import learning_rate
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.train.checkpoint import saved_at
from tests.architectures import tiny
from tests.conftest import plan_for

from .conftest import final_weights

STEPS = 6
Weights = dict[str, torch.Tensor]


@pytest.fixture
def settings(run_config: dict) -> dict:
    """Six steps of 12 rows, five micro-batches at one rank, the last of them with filling; no dropout."""
    return {
        **run_config,
        "model": tiny("bert"),
        "optimizer": OPTIMIZERS["lamb"],
        "phases": [{"steps": STEPS, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 3}],
        "checkpoint": {"every_steps": 3, "keep_last": 9},
    }


def reference_weights(path: Path, step: Callable[[Weights, Weights, dict, int, RunConfig], None]) -> Weights:
    """The weights after the run of a configuration file, with `step` as the optimizer: it changes the weights in place."""
    config = load_config(path)
    plan = plan_for(config, open_corpora(config.data), load_tokenizer(config.tokenizer))
    model, _ = build_model(config.model, plan.tokenizer, config.seed)
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    state: dict[str, torch.Tensor] = {}
    for number, gradients in enumerate(reference_gradients(model, plan), start=1):
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).double().norm()
        clipping = config.clipping_in(plan.phase_of(number - 1))
        if 0 < clipping < norm:
            for gradient in gradients.values():
                gradient *= (clipping / norm).float()
        step(weights, gradients, state, number, config)
    return {name: weight.clone() for name, weight in weights.items()}


def reference_gradients(model: MaskedLM, plan: DataPlan) -> Iterator[Weights]:
    """The gradients of every step's global batch as one micro-batch."""
    model.eval()
    for batch in read_steps(plan, World(), first_cursors(plan.lanes), 0):
        layout = Layout.of(plan.lanes, plan.phases[0].lane_rows, 10**6, World())
        (bucket,) = micro_batches(batch.rows, layout, plan.capacity(0), plan.tokenizer)
        model.zero_grad()
        loss, _ = model(bucket)
        (loss / bucket.weights.sum()).backward()
        yield {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def reference_lamb(weights: Weights, gradients: Weights, state: Weights, number: int, config: RunConfig) -> None:
    """Algorithm 2 of You et al. (2019), a tensor at a time."""
    settings = config.optimizer
    lr = learning_rate(number, settings, config.schedules)
    for name, weight in weights.items():
        m = state.setdefault(f"m {name}", torch.zeros_like(weight))
        v = state.setdefault(f"v {name}", torch.zeros_like(weight))
        m.copy_(settings.beta1 * m + (1 - settings.beta1) * gradients[name])
        v.copy_(settings.beta2 * v + (1 - settings.beta2) * gradients[name] ** 2)
        update = (m / (1 - settings.beta1**number)) / ((v / (1 - settings.beta2**number)).sqrt() + settings.eps)
        if weight.ndim > 1:
            update += settings.weight_decay * weight
            update *= weight.double().norm() / update.double().norm()
        weight -= lr * update


def reference_adamw(weights: Weights, gradients: Weights, state: Weights, number: int, config: RunConfig) -> None:
    """Algorithm 2 of Loshchilov & Hutter (2019)."""
    settings = config.optimizer
    lr = learning_rate(number, settings, config.schedules)
    for name, weight in weights.items():
        m = state.setdefault(f"m {name}", torch.zeros_like(weight))
        v = state.setdefault(f"v {name}", torch.zeros_like(weight))
        m.copy_(settings.beta1 * m + (1 - settings.beta1) * gradients[name])
        v.copy_(settings.beta2 * v + (1 - settings.beta2) * gradients[name] ** 2)
        if weight.ndim > 1:
            weight *= 1 - lr * settings.weight_decay
        weight -= lr * (m / (1 - settings.beta1**number)) / ((v / (1 - settings.beta2**number)).sqrt() + settings.eps)


def reference_stable_adamw(
    weights: Weights, gradients: Weights, state: Weights, number: int, config: RunConfig
) -> None:
    """Algorithm 2 of Wortsman et al. (2023), a tensor at a time: it corrects the betas, not the moments."""
    settings = config.optimizer
    beta1, beta2 = (beta * (1 - beta ** (number - 1)) / (1 - beta**number) for beta in (settings.beta1, settings.beta2))
    for name, weight in weights.items():
        v = state.setdefault(f"v {name}", torch.zeros_like(weight))
        u = state.setdefault(f"u {name}", torch.zeros_like(weight))
        v.copy_(beta1 * v + (1 - beta1) * gradients[name])
        u.copy_(beta2 * u + (1 - beta2) * gradients[name] ** 2)
        rms = (gradients[name] ** 2 / u.clamp(min=settings.eps**2)).double().mean().sqrt().float()
        rate = learning_rate(number, settings, config.schedules) / max(1.0, float(rms))
        if weight.ndim > 1:
            weight *= 1 - rate * settings.weight_decay
        weight -= rate * v / (u.sqrt() + settings.eps)


def reference_muon(weights: Weights, gradients: Weights, state: Weights, number: int, config: RunConfig) -> None:
    """Jordan et al. (2024) for the matrices of the encoder layers, AdamW for the rest."""
    settings, muon = config.optimizer, config.optimizer.muon
    assert muon is not None
    assert muon.lr is not None
    rate = learning_rate(number, settings, config.schedules) * muon.lr / settings.lr
    for name, weight in weights.items():
        if not LAYER.search(name) or weight.ndim < 2:
            reference_adamw({name: weight}, gradients, state, number, config)
            continue
        m = state.setdefault(f"m {name}", torch.zeros_like(weight))
        m.copy_(muon.momentum * m + (1 - muon.momentum) * gradients[name])
        update = orthogonalized((1 - muon.momentum) * gradients[name] + muon.momentum * m)
        weight *= 1 - rate * settings.weight_decay
        weight -= rate * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * update


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Five steps of the quintic Newton-Schulz iteration of Jordan et al. (2024)."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


LAYER = re.compile(r"\.layers?\.[0-9]+\.")
"""In the name of a layer's weight, of whatever architecture."""
REFERENCES = {
    "adamw": reference_adamw,
    "lamb": reference_lamb,
    "muon": reference_muon,
    "stable_adamw": reference_stable_adamw,
}
OPTIMIZERS = {
    "adamw": {"name": "adamw", "lr": 1e-3, "warmup_steps": 2, "schedule": "cosine", "final_lr_share": 0.1},
    "lamb": {"name": "lamb", "lr": 0.02, "warmup_steps": 2, "schedule": "polynomial", "power": 0.5},
    "muon": {"name": "muon", "lr": 1e-3, "muon": {"lr": 0.02}, "weight_decay": 0.1, "gradient_clipping": 0.0},
    "stable_adamw": {
        "name": "stable_adamw",
        "lr": 1e-3,
        "schedule": "1-sqrt",
        "decay_steps": 4,
        "beta2": 0.9,
        "weight_decay": 1.0,
        "gradient_clipping": 0.0,
    },
}


def errors(config: Path, name: str) -> dict[str, float]:
    """Of every weight, how far the run's is from the reference's, relative to the way that the reference went.

    Left out: key.bias, whose gradients are rounding noise that Adam's division makes as large as any other.
    """
    expected = reference_weights(config, REFERENCES[name])
    read = load_config(config)
    model, _ = build_model(read.model, load_tokenizer(read.tokenizer), read.seed)
    begun = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = final_weights(read.run_dir)
    if read.engine.zero_stage == 0 and read.engine.precision == "bf16":
        found |= master_weights(model, read)
    names = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert {names[name] for name in found.keys() - expected.keys()} <= {names[name] for name in expected}  # tied
    return {
        name: float((found[name].detach() - weight).norm() / (weight - begun[name]).norm())
        for name, weight in expected.items()
        if "key.bias" not in name
    }


def master_weights(model: MaskedLM, config: RunConfig) -> Weights:
    """The fp32 weights of stage 0 in half precision, which a checkpoint keeps without their names, a group after the other."""
    file = saved_at(Path(config.run_dir)) / "mp_rank_00_model_states.pt"
    masters = torch.load(file, map_location="cpu")["optimizer"]["fp32_groups"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [group["params"] for group in optim.OPTIMIZERS[config.optimizer.name].groups(model, config.optimizer)]
    return {
        names[parameter]: master
        for group, part in zip(groups, masters, strict=True)
        for parameter, master in zip(group, part, strict=True)
    }


@pytest.mark.parametrize(
    ("architecture", "stage", "ranks"),
    [
        *(("bert", *layout) for layout in ((0, 2), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3))),
        *((name, *layout) for name in ("roberta", "modernbert") for layout in ((1, 3), (3, 2))),
    ],
)
def test_lamb_is_the_reference_at_every_stage(
    architecture: str,
    stage: int,
    ranks: int,
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
) -> None:
    config = write_config({**settings, "model": tiny(architecture), "engine": {"zero_stage": stage}})
    output = run_ranks(config, ranks)
    assert "optimizer: LAMB, schedule polynomial" in output
    # With one ratio for all tensors of a group it is 1.5, without any above 10.
    assert max(errors(config, "lamb").values()) < 1e-3
    assert largest_difference(config) < 5e-6


@pytest.mark.parametrize(("stage", "ranks"), [(0, 2), (1, 3), (3, 2)])
def test_stable_adamw_is_the_reference_at_every_stage(
    stage: int, ranks: int, settings: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    tree = {**settings, "optimizer": OPTIMIZERS["stable_adamw"], "engine": {"zero_stage": stage}}
    config = write_config(tree)
    assert "optimizer: StableAdamW, schedule 1-sqrt" in run_ranks(config, ranks)
    assert max(errors(config, "stable_adamw").values()) < 1e-3
    unclipped = reference_weights(config, reference_adamw)
    clipped = reference_weights(config, reference_stable_adamw)
    assert max(float((clipped[name] - each).norm() / each.norm()) for name, each in unclipped.items()) > 1e-3


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 2), (3, 2)])
def test_each_phase_clips_as_it_says_also_after_a_resume(
    stage: int, ranks: int, settings: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    """The checkpoint of step 3 ends the first phase, and holds its norm: less than any gradient has, while the next clips by
    none. Adam's moments then are of gradients of two sizes."""
    phase = {**settings["phases"][0], "steps": STEPS // 2}
    phases = [phase, {**phase, "gradient_clipping": 0.0}]
    optimizer = {**OPTIMIZERS["adamw"], "gradient_clipping": 0.05}
    config = write_config({**settings, "phases": phases, "optimizer": optimizer, "engine": {"zero_stage": stage}})
    run_ranks(config, ranks)
    assert max(errors(config, "adamw").values()) < 1e-3
    whole = final_weights(settings["run_dir"])
    shutil.rmtree(Path(settings["run_dir"], "checkpoints/step-00000006"))
    assert "resuming after step 3 of 6" in run_ranks(config, ranks)
    assert all(torch.equal(weight, whole[name]) for name, weight in final_weights(settings["run_dir"]).items())


def largest_difference(config: Path) -> float:
    expected, found = reference_weights(config, reference_lamb), final_weights(load_config(config).run_dir)
    return max(
        float((found[name].detach() - expected[name]).abs().max()) for name in expected if "key.bias" not in name
    )


@pytest.mark.parametrize(
    ("name", "precision", "stage"),
    [
        ("lamb", "bf16", 0),
        ("lamb", "bf16", 1),  # DeepSpeed takes its BF16_Optimizer here
        ("lamb", "bf16", 2),
        ("lamb", "bf16", 3),
        ("lamb", "fp16", 1),
        ("lamb", "fp16", 2),
        ("adamw", "bf16", 0),
        ("muon", "bf16", 1),
        ("muon", "fp16", 3),
    ],
)
def test_half_precision_goes_the_way_of_the_reference(
    name: str,
    precision: str,
    stage: int,
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
) -> None:
    """Over three ranks, each with four micro-batches (one at stage 0). A bf16 gradient is off by some 2^-8; where Adam or
    Newton-Schulz divide by what is nearly 0 this grows. Wrong trust ratios would be off by more than the way itself."""
    phase = {**settings["phases"][0], "micro_batch_rows": 12 if stage == 0 else 1}
    deepspeed = {"fp16": {"initial_scale_power": 8}} if precision == "fp16" else {}
    engine = {"zero_stage": stage, "precision": precision}
    tree = {**settings, "optimizer": OPTIMIZERS[name], "phases": [phase], "engine": engine, "deepspeed": deepspeed}
    config = write_config(tree)
    run_ranks(config, 3, fake_fp16=precision == "fp16", compiles=False)
    matrices = {weight: error for weight, error in errors(config, name).items() if "LayerNorm" not in weight}
    bound = (0.4 if name == "muon" else 0.2) * (1 if precision == "bf16" else 0.25)
    assert max(matrices.values()) < bound


@pytest.mark.parametrize(
    ("architecture", "stage", "ranks"),
    [
        *(("bert", *layout) for layout in ((0, 2), (1, 3), (2, 3), (3, 3))),
        *((name, *layout) for name in ("roberta", "modernbert") for layout in ((1, 3), (3, 2))),
    ],
)
def test_muon_is_the_reference_at_every_stage(
    architecture: str,
    stage: int,
    ranks: int,
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
) -> None:
    """Also where a border between ranks goes through a matrix. Not compiled here: DeepSpeed's Newton-Schulz takes half a
    minute to compile."""
    tree = {**settings, "model": tiny(architecture), "optimizer": OPTIMIZERS["muon"], "engine": {"zero_stage": stage}}
    config = write_config(tree)
    output = run_ranks(config, ranks, compiles=False)
    assert (
        "optimizer: Muon (DeepSpeed's) for the encoder layers' matrices, AdamW (torch's fused) for the rest" in output
    )
    assert max(errors(config, "muon").values()) < 1e-3


@pytest.mark.parametrize(
    ("name", "stage", "precision", "ranks", "then"),
    [
        ("lamb", 1, "fp32", 2, 2),
        ("lamb", 1, "fp32", 2, 3),
        ("lamb", 2, "fp32", 2, 1),
        ("lamb", 3, "fp32", 2, 3),
        ("lamb", 1, "bf16", 2, 3),
        ("muon", 1, "bf16", 2, 2),
        ("muon", 3, "fp32", 2, 2),
        ("muon", 2, "fp32", 3, 2),
        ("stable_adamw", 2, "fp32", 2, 3),
    ],
)
def test_a_resumed_run_is_the_undisturbed_one(
    name: str,
    stage: int,
    precision: str,
    ranks: int,
    then: int,
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
) -> None:
    """From step 3 of 6, on as many ranks or on others; fp32 against the reference, bf16 against the run itself."""
    engine = {"zero_stage": stage, "precision": precision}
    config = write_config({**settings, "optimizer": OPTIMIZERS[name], "engine": engine})
    run_ranks(config, ranks, compiles=False)
    whole = final_weights(settings["run_dir"])
    shutil.rmtree(Path(settings["run_dir"], "checkpoints/step-00000006"))
    output = run_ranks(config, then, compiles=False)
    assert "resuming after step 3 of 6" in output
    resumed = final_weights(settings["run_dir"])
    if precision == "fp32":
        assert max(errors(config, name).values()) < 1e-3
    for weight_name, weight in whole.items():
        if ranks == then:
            assert torch.equal(weight, resumed[weight_name]), weight_name
        elif "key.bias" not in weight_name:
            assert (weight - resumed[weight_name]).norm() < 0.01 * weight.norm(), weight_name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"precision": "fp16", "zero_stage": 0}}, "zero_stage 0 with fp16 does not scale the loss"),
        (
            {"engine": {"precision": "bf16", "zero_stage": 2}, "optimizer": OPTIMIZERS["muon"]},
            "zero_stage 2 does not go with optimizer.name muon, bf16 and several micro-batches",
        ),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
            "offload_optimizer does not go with optimizer.name lamb",
        ),
    ],
)
def test_what_deepspeed_gets_wrong_is_refused(
    change: dict, message: str, settings: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    output = run_ranks(write_config({**settings, **change}), fake_fp16=True, expect=1)
    assert message in output
    assert "Traceback" not in output
    assert not Path(settings["run_dir"]).exists()
