"""The engine "forward": the direction as a tangent in a second pass of the training loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msdlosses._torch import unpack_dual
from msdlosses.meta._kernels import differentiable_kernels
from msdlosses.meta._lookahead import Gradients, LookAhead, add
from msdlosses.meta._losses import Losses
from msdlosses.meta._norms import coarsest
from msdlosses.meta._parameters import tangents


@dataclass(frozen=True)
class Derivative:
    """The derivative of a loss along a direction of the student's parameters."""

    value: Tensor
    gradients: Gradients
    """Its gradients with respect to the parameters that were asked for."""
    dtypes: frozenset[torch.dtype]
    """The types in which the loss was computed."""
    noise: Tensor | float = 0.0
    """How far the value may be off because of rounding, if it is a difference."""

    @property
    def rounding(self) -> float:
        """The relative rounding error of the coarsest type."""
        return coarsest(self.dtypes)


def differentiate_along(
    ahead: LookAhead, losses: Losses, directions: Gradients, parameters: Sequence[Tensor] = ()
) -> Derivative:
    """Carry a direction through the model, and differentiate the result for some parameters."""
    values: list[Tensor] = []
    gradients: Gradients = [None] * len(parameters)
    with (
        differentiable_kernels(ahead.model),
        tangents(ahead.parameters, directions, ahead.model, ahead.meta_parameters) as mode,
    ):
        for loss in losses(ahead.model):
            value, tangent = unpack_dual(loss)
            values.append(torch.zeros_like(value) if tangent is None else tangent.detach())
            if parameters and tangent is not None and tangent.requires_grad:
                some = torch.autograd.grad(tangent, parameters, allow_unused=True)
                gradients = add(gradients, some)
    return Derivative(torch.stack(values).sum(), gradients, frozenset(mode.dtypes))
