"""The exact engines: a direction from the optimizer, and the loss's derivative along it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from msdlosses._checks import expected
from msdlosses.meta._double_backward import differentiate_gradients
from msdlosses.meta._forward import propagate_tangents
from msdlosses.meta._lookahead import (
    Gradients,
    LookAhead,
    MetaGradient,
    StudentStep,
    add,
    multiply,
    zeros_for_none,
)
from msdlosses.meta._parameters import temporary_values
from msdlosses.meta._state import StateKeeper, restored_afterwards
from msdlosses.meta._step import next_parameters

MISSING = re.compile("derivative for .* is not implemented|forward AD|forward mode AD|jvp")


class MissingDerivativeError(NotImplementedError):
    """An operation of the losses has no derivative of the kind that an engine needs."""


def exact_gradient(ahead: LookAhead, engine: str) -> MetaGradient:
    """Compute the gradient by "forward" or "double-backward"."""
    forward = engine == "forward"
    keeper = StateKeeper(ahead.model, ahead.weighting)
    with restored_afterwards(keeper) as before, _missing_derivatives(engine):
        create_graph = not forward and ahead.probe is None
        inner_loss, gradients = ahead.evaluate(
            ahead.inner, ahead.parameters, create_graph=create_graph
        )
        after = keeper.save()
        keeper.restore(after.copy())
        step = StudentStep(ahead.average(gradients, ahead.parameters), keeper, after)
        outer_loss, direct, directions = _directions(ahead, step.gradients)
        factor = ahead.loss_scale if forward else ahead.loss_scale**2  # one for each derivative
        directions = multiply(directions, factor)
        keeper.restore(before.copy())  # for the same random numbers as in the first pass
        if forward:
            through_step = propagate_tangents(ahead, directions, inner_loss)
        else:
            through_step = differentiate_gradients(ahead, directions, gradients)
    gradients = add(direct, multiply(through_step, 1 / factor))
    gradients = ahead.average(gradients, ahead.meta_parameters)
    gradients = zeros_for_none(gradients, ahead.meta_parameters)
    return MetaGradient(inner_loss, outer_loss, gradients, engine, step=step)


def _directions(ahead: LookAhead, gradients: Gradients) -> tuple[Tensor, Gradients, Gradients]:
    """Return the held-out loss after the step, its direct gradient, and the directions c.

    The direct gradient is that with respect to the weighting at a fixed step.
    """
    parameters = ahead.parameters
    updated, pull_back = next_parameters(ahead.optimizer, parameters, gradients, ahead.max_norm)
    with temporary_values(parameters, updated):
        outer_loss, gradients = ahead.evaluate(ahead.outer, (*parameters, *ahead.meta_parameters))
    gradients, direct = gradients[: len(parameters)], gradients[len(parameters) :]
    return outer_loss, direct, pull_back(ahead.average(gradients, parameters))


@contextmanager
def _missing_derivatives(engine: str) -> Iterator[None]:
    """Turn PyTorch's errors about missing formulas into one that names the engine."""
    try:
        yield
    except RuntimeError as error:  # the base class of NotImplementedError
        reason = str(error).partition("\n")[0].rstrip(".")
        if not MISSING.search(reason):
            raise
        what = f"operations that engine={engine!r} can differentiate"
        raise MissingDerivativeError(expected(what, reason)) from error
