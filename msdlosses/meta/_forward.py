"""The engine "forward": the direction as a tangent in a second pass of the training loss."""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses._checks import expected
from msdlosses._torch import unpack_dual
from msdlosses.meta._kernels import differentiable_kernels
from msdlosses.meta._lookahead import Gradients, LookAhead, add
from msdlosses.meta._parameters import tangents

ADVICE = "Fetch batches outside of it, or use engine='double-backward', which calls it once."


def propagate_tangents(ahead: LookAhead, directions: Gradients, inner_loss: Tensor) -> Gradients:
    """Carry the directions through the model and differentiate the tangent of the loss."""
    parameters = ahead.meta_parameters
    values: list[Tensor] = []
    gradients: Gradients = [None] * len(parameters)
    with (
        differentiable_kernels(ahead.model),
        tangents(ahead.parameters, directions, ahead.model, parameters),
    ):
        for loss in (ahead.probe or ahead.inner)(ahead.model):
            value, tangent = unpack_dual(loss)
            values.append(value.detach())
            if tangent is not None and tangent.requires_grad:
                some = torch.autograd.grad(tangent, parameters, allow_unused=True)
                gradients = add(gradients, some)
    # The passes use different kernels, which round differently, above all under autocast.
    tolerance = 1e-6 if inner_loss.dtype == torch.float64 else 1e-2
    same = torch.isclose(inner_loss, torch.stack(values).sum(), rtol=tolerance, atol=tolerance)
    if ahead.probe is None and not same:  # another batch, or another dropout mask
        raise ValueError(expected("the same loss from a second call of `inner`", "another", ADVICE))
    return gradients
