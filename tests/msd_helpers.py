"""Helpers for tests of `MSDLoss`: constant weights, and gradients by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from schemes import Names, make_weighting
from torch import Tensor

from msdlosses import KDLoss, MSDLoss, Weighting


class ConstantWeighting(Weighting):
    """Returns the weights that it is constructed with."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = weights

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Names,
        valid: Tensor | None = None,
    ) -> Any:
        return self.weights


def make_msd(scheme: str, names: Names) -> MSDLoss:
    """Make a loss with a weighting of `SCHEMES`, always with the same initial parameters."""
    torch.manual_seed(3)
    return MSDLoss(KDLoss(2.0), make_weighting(scheme, names))


def require_grad(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy logits to leaves of a graph."""
    return {view: values.detach().clone().requires_grad_() for view, values in logits.items()}


def gradients(loss: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of each input by its name."""
    values = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    return dict(zip(inputs, values, strict=True))
