"""Checking that the student's gradient is the derivative of its loss.

The student steps along the gradient that the backward pass returns. Hooks and custom Functions can
make it differ from the derivative of the loss, which the engines compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses.meta._forward import Derivative, differentiate_along
from msdlosses.meta._functions import ROUNDING, lacks_forward_mode, with_forward_mode
from msdlosses.meta._lookahead import Gradients, LookAhead

ROUNDINGS = 1000
"""How many times its rounding error a correct derivative may be off."""
LOOSEST = 0.1
TENSOR_FLOAT_32 = 1e-3
"""The rounding error of float32 on devices other than the CPU, which may use fewer bits."""


def contradicts_gradients(ahead: LookAhead, gradients: Gradients) -> Tensor | None:
    """Return whether the derivative of `inner` contradicts its gradients, by one more pass.

    The pass follows the gradients, scaled alike in all tensors. So no terms cancel, and small
    gradients count. The result is None if an operation lacks a forward mode.
    """
    directions = [None if g is None else _scaled(g.detach()) for g in gradients]
    functions = {f for f in ahead.functions if lacks_forward_mode(f)}
    if functions and ahead.group is not None:
        return None  # they may communicate, and would do so at different points
    try:
        with with_forward_mode(functions):
            derivative = differentiate_along(ahead, ahead.inner, directions)
    except RuntimeError:  # the base class of errors about missing derivatives
        return None
    if torch.float16 in derivative.dtypes and ahead.loss_scale == 1:
        return None  # gradients underflow without a scaler, and are not the derivative
    return contradicts(derivative, directions, gradients, ROUNDING if functions else 0.0)


def contradicts(
    derivative: Derivative, directions: Gradients, gradients: Gradients, rounding: float = 0.0
) -> Tensor:
    """Return whether a derivative differs from the product of directions and gradients.

    Numbers that are not finite contradict nothing, as a step on them is skipped or fails anyway.
    """
    value = _wide(derivative.value)
    pairs = [
        (_wide(direction), _wide(g.detach()))
        for direction, g in zip(directions, gradients, strict=True)
        if direction is not None and g is not None
    ]
    product = _gather([_dot(direction, g) for direction, g in pairs], value).sum()
    size = _norm([direction for direction, _ in pairs], value) * _norm([g for _, g in pairs], value)
    rounding = max(rounding, derivative.rounding)
    if value.device.type != "cpu":
        rounding = max(rounding, TENSOR_FLOAT_32)
    error, limits = (value - product).abs(), torch.finfo(value.dtype)
    allowed = min(ROUNDINGS * rounding, LOOSEST) * size + limits.tiny / limits.eps
    return (error > allowed) & error.isfinite()


def _scaled(gradient: Tensor) -> Tensor:
    """Scale the largest entry to 1."""
    if not gradient.numel():
        return gradient
    return gradient / gradient.abs().amax().clamp(min=torch.finfo(gradient.dtype).tiny)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the real part of the inner product."""
    product: Tensor = torch.linalg.vecdot(left.flatten(), right.flatten())
    return product.real


def _norm(tensors: list[Tensor], like: Tensor) -> Tensor:
    norms = _gather([torch.linalg.vector_norm(t) for t in tensors], like)
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm


def _gather(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(like), *(v.to(like) for v in values)])


def _wide(tensor: Tensor) -> Tensor:
    """Upcast half precision, in which sums overflow."""
    return tensor if torch.finfo(tensor.dtype).bits >= 32 else tensor.float()
