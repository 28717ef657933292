"""The engine "difference": the derivative along the direction by two values of the loss.

It needs no second derivative and keeps no graph of the student, but is approximate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses.meta._central import CentralDifference
from msdlosses.meta._consistency import contradicts_difference, scaled_alike
from msdlosses.meta._exact import average_and_check, look_ahead, student_step
from msdlosses.meta._lookahead import Gradients, LookAhead, MetaGradient, add
from msdlosses.meta._norms import norm
from msdlosses.meta._replay import Replay
from msdlosses.meta._sharding import Group, local
from msdlosses.meta._state import StateKeeper, has_compiled_parts, restored_afterwards
from msdlosses.meta._support import check_precision


def difference_gradient(ahead: LookAhead) -> MetaGradient:
    """Compute the gradient by differences along the exact direction."""
    check_precision(ahead.optimizer)
    keeper = StateKeeper(ahead.model, ahead.weighting)
    # Compiled code does not show its constants.
    replay = Replay(ahead.weighting, hold_constants=not has_compiled_parts(ahead.model))
    with restored_afterwards(keeper, ahead.model) as start:
        inner_loss, gradients = ahead.evaluate(replay.recorded(ahead.inner), ahead.parameters)
        step = student_step(ahead, gradients, keeper)
        outer_loss, direct, directions = look_ahead(ahead, step.gradients)
        inner = CentralDifference(ahead, ahead.inner, replay, start)
        through_step, flag, error = _differentiate(inner, directions, gradients)
        flags = [flag, _verify(inner, gradients) if ahead.verify else None]
    gradients = average_and_check(ahead, add(direct, through_step), flags)
    return MetaGradient(inner_loss, outer_loss, gradients, "difference", step=step, error=error)


def _differentiate(
    inner: CentralDifference, directions: Gradients, gradients: Gradients
) -> tuple[Gradients, Tensor | None, Tensor | None]:
    """Return gradients for the weighting, whether they are wrong, and perhaps their error."""
    difference = inner if inner.ahead.probe is None else _of_probe(inner)
    directions = _without_outliers(directions, [local(g) for g in gradients], inner.ahead.shards)
    parameters = inner.ahead.meta_parameters
    derivative = difference.along(directions, parameters)
    error = flag = None
    if difference is inner:
        flag = contradicts_difference(derivative, directions, gradients, inner.ahead.shards)
    if inner.ahead.verify:
        wider = difference.along(directions, parameters, widening=2.0)
        error = _relative_error(inner.ahead, wider.gradients, derivative.gradients)
    return derivative.gradients, flag, error


def _without_outliers(
    directions: Gradients, gradients: Gradients, shards: Group | None
) -> Gradients:
    """Remove large entries of the directions at parameters whose gradient is 0.

    There, Adam's direction is up to 1 / eps times as large as elsewhere, so that all other
    parameters would hardly move. These parameters have no effect on the loss, as the unused rows
    of an embedding.
    """
    pairs = list(zip(directions, gradients, strict=True))
    used = [d * (g != 0) for d, g in pairs if d is not None and g is not None]
    limit = norm(used, shards)
    return [d if d is None or g is None else _limited(d, g, limit) for d, g in pairs]


def _limited(direction: Tensor, gradient: Tensor, limit: Tensor) -> Tensor:
    usual = (gradient != 0) | (direction.abs() <= limit.to(direction.device))
    return direction.where(usual, torch.zeros_like(direction))


def _of_probe(inner: CentralDifference) -> CentralDifference:
    """Return the same for the probe, by one pass that records its weights."""
    ahead = inner.ahead
    assert ahead.probe is not None
    replay = Replay(ahead.weighting, hold_constants=not has_compiled_parts(ahead.model))
    probe = CentralDifference(ahead, ahead.probe, replay, inner.start)
    probe.record()
    return probe


def _verify(inner: CentralDifference, gradients: Gradients) -> Tensor | None:
    """Return whether the gradients are wrong, by a difference that follows them."""
    directions = scaled_alike(gradients)
    shards = inner.ahead.shards
    return contradicts_difference(inner.along(directions), directions, gradients, shards)


def _relative_error(ahead: LookAhead, approximate: Gradients, gradients: Gradients) -> Tensor:
    pairs = zip(
        ahead.average(approximate, ahead.meta_parameters),
        ahead.average(gradients, ahead.meta_parameters),
        strict=True,
    )
    some = [(a, g) for a, g in pairs if a is not None and g is not None]
    return norm(a - g for a, g in some) / norm(g for _, g in some)
