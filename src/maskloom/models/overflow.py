"""Find the layer at which a forward or backward first leaves the numbers that its precision has.

fp16 ends at 65504. A run whose loss scale cannot be lowered further says which layer is to blame. The micro-batch is run
once more, without torch.compile. Every layer's output is looked at on the way forward, then every gradient on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from maskloom.data.batch import MicroBatch
from maskloom.models.masked_lm import MaskedLM, decoder_of


def find_overflow(
    model: MaskedLM, batch: MicroBatch, scale: float, parameters: Mapping[str, nn.Parameter] | None = None
) -> str | None:
    """The first place with a value that is not finite, in words; None if all are.

    Args:
        model: in training mode, its dropout seeded as for the micro-batch; its gradients are left alone.
        scale: what the loss is multiplied with before the backward.
        parameters: those whose gradients are looked at too; None for all of the model. Under ZeRO-3 a rank holds parts of them,
            which have no gradient of their own.
    """
    outputs: dict[str, torch.Tensor] = {}
    wrong: list[str] = []

    def look_at(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def look(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            # At once, as the loss overwrites the logits; and what pads the vocabulary is infinite by intent.
            is_logits = module is decoder_of(model)
            if not torch.isfinite(output[:, : model.config.vocab_size] if is_logits else output).all():
                wrong.append(f"the output of {name}")
            if not is_logits:
                outputs[name] = output

        return look

    handles = [module.register_forward_hook(look_at(name)) for name, module in _stations(model).items()]
    try:
        loss, _ = model._call_impl(batch)  # type: ignore[no-untyped-call]  # as `model(batch)`, but not its compiled form, into which hooks cannot see
    finally:
        for handle in handles:
            handle.remove()
    if wrong:
        return wrong[0]
    if not torch.isfinite(loss):
        return "the loss"
    if parameters is None:
        parameters = dict(model.named_parameters())
    places = {f"the gradient at the output of {name}": output for name, output in reversed(outputs.items())}
    places |= {f"the gradient of {name}": parameter for name, parameter in parameters.items()}
    # autograd.grad runs none of the hooks with which DeepSpeed collects gradients.
    gradients = torch.autograd.grad(loss * scale, list(places.values()), allow_unused=True)
    found = zip(places, gradients, strict=True)
    return next((place for place, part in found if part is not None and not torch.isfinite(part).all()), None)


def _stations(model: MaskedLM) -> dict[str, nn.Module]:
    """The modules whose outputs are looked at, in the order of the forward."""
    paths = {module: path for path, module in model.named_modules()}
    embeddings, head = model.architecture.stations(model)
    named = {"the embeddings": embeddings}
    named |= {f"layer {number}": layer for number, layer in enumerate(model.architecture.layers(model))}
    named |= {"the head": head, "the decoder": decoder_of(model)}
    return {f"{name} ({paths[module]})": module for name, module in named.items()}
