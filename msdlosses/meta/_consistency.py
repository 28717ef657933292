"""Checking that the student's gradient is the derivative of its loss.

The student steps along the gradient that the backward pass returns. Hooks and custom Functions can
make it differ from the derivative of the loss, which the engines compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses._formulas.logits import upcast
from msdlosses.meta._central import CentralDifference
from msdlosses.meta._forward import Derivative, differentiate_along
from msdlosses.meta._lookahead import Gradients, LookAhead
from msdlosses.meta._norms import dot, norm
from msdlosses.meta._replay import Replay
from msdlosses.meta._sharding import Group, local, sum_of_shards
from msdlosses.meta._state import Start

ROUNDINGS = 1000
"""How many times its rounding error a correct derivative may be off."""
LOOSEST = 0.1
DIFFERENCE = 1e-2
"""How far a difference may be off in any precision."""
TENSOR_FLOAT_32 = 1e-3
"""The rounding error of float32 on devices other than the CPU, which may use fewer bits."""
SINGLE = torch.finfo(torch.float32).eps


def contradicts_gradients(ahead: LookAhead, gradients: Gradients, start: Start) -> Tensor | None:
    """Return whether the derivative of `inner` contradicts its gradients, by one more pass.

    The pass follows the gradients, scaled alike in all tensors. So no terms cancel, and small
    gradients count. The result is None if this cannot be known.
    """
    directions = scaled_alike(gradients)
    start.restore()
    try:
        derivative = differentiate_along(ahead, ahead.inner, directions)
    except RuntimeError:  # the base class of errors about missing derivatives
        return _contradicts_by_difference(ahead, directions, gradients, start)
    if torch.float16 in derivative.dtypes and ahead.loss_scale == 1:
        return None  # gradients underflow without a scaler, and are not the derivative
    return contradicts(derivative, directions, gradients)


def _contradicts_by_difference(
    ahead: LookAhead, directions: Gradients, gradients: Gradients, start: Start
) -> Tensor | None:
    """Compare gradients with a difference of the loss, for which no operation needs a formula."""
    difference = CentralDifference(ahead, ahead.inner, Replay(ahead.weighting), start)
    difference.record()
    if difference.replay.constants.incomplete:
        return None  # values without a gradient move with the parameters
    return contradicts_difference(difference.along(directions), directions, gradients)


def contradicts_difference(
    derivative: Derivative,
    directions: Gradients,
    gradients: Gradients,
    shards: Group | None = None,
) -> Tensor | None:
    """Compare gradients with a difference. In half precision it is too inaccurate."""
    if derivative.rounding > SINGLE:
        return None
    return contradicts(derivative, directions, gradients, DIFFERENCE / ROUNDINGS, shards)


def contradicts(
    derivative: Derivative,
    directions: Gradients,
    gradients: Gradients,
    rounding: float = 0.0,
    shards: Group | None = None,
) -> Tensor:
    """Return whether a derivative differs from the product of directions and gradients.

    Numbers that are not finite contradict nothing, as a step on them is skipped or fails anyway.
    """
    value = upcast(derivative.value)
    if shards is not None:  # gradients of shards are averaged over the processes
        value = sum_of_shards(value, shards) / shards.size()
    pairs = [
        (direction, local(g.detach()))
        for direction, g in zip(directions, gradients, strict=True)
        if direction is not None and g is not None
    ]
    size = norm((d for d, _ in pairs), shards) * norm((g for _, g in pairs), shards)
    rounding = max(rounding, derivative.rounding)
    if value.device.type != "cpu":
        rounding = max(rounding, TENSOR_FLOAT_32)  # pragma: no cover - needs a GPU
    error, limits = (value - dot(pairs, shards).to(value)).abs(), torch.finfo(value.dtype)
    allowed = min(ROUNDINGS * rounding, LOOSEST) * size.to(value) + limits.tiny / limits.eps
    return (error > allowed + derivative.noise) & error.isfinite()


def scaled_alike(gradients: Gradients) -> Gradients:
    """Scale the largest entry of each tensor to 1."""
    return [None if g is None else _scaled(local(g.detach())) for g in gradients]


def _scaled(gradient: Tensor) -> Tensor:
    if not gradient.numel():
        return gradient
    return gradient / gradient.abs().amax().clamp(min=torch.finfo(gradient.dtype).tiny)
