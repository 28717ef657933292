"""The exact engines: a direction from the optimizer, and the loss's derivative along it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from msdlosses._checks import expected
from msdlosses.meta._consistency import contradicts, contradicts_gradients
from msdlosses.meta._double_backward import differentiate_gradients
from msdlosses.meta._forward import differentiate_along
from msdlosses.meta._lookahead import (
    Gradients,
    LookAhead,
    MetaGradient,
    StudentStep,
    add,
    multiply,
    zeros_for_none,
)
from msdlosses.meta._sharding import local
from msdlosses.meta._state import StateKeeper, restored_afterwards
from msdlosses.meta._step import look_ahead_step

MISSING = re.compile("derivative for .* is not implemented|forward AD|forward mode AD|jvp")
SINGLE = torch.finfo(torch.float32).eps

Flags = Sequence[Tensor | None]
"""Whether derivatives contradict gradients; None where this was not checked."""


class MissingDerivativeError(NotImplementedError):
    """An operation of the losses has no derivative of the kind that an engine needs."""


@dataclass(frozen=True)
class Engine:
    """A way to differentiate the inner product of directions and the student's gradients."""

    name: str
    keeps_graph: bool
    """Whether it differentiates the graph of the student's gradients."""
    differentiate: Callable[[LookAhead, Gradients, Gradients], tuple[Gradients, Tensor | None]]
    """Takes the directions and gradients; returns gradients for the weighting, and a flag."""


def exact_gradient(ahead: LookAhead, engine: Engine) -> MetaGradient:
    """Compute the gradient by one of the exact engines."""
    keeper = StateKeeper(ahead.model, ahead.weighting)
    with restored_afterwards(keeper) as start, _missing_derivatives(engine.name):
        create_graph = engine.keeps_graph and ahead.probe is None
        inner_loss, gradients = ahead.evaluate(
            ahead.inner, ahead.parameters, create_graph=create_graph
        )
        step = student_step(ahead, gradients, keeper)
        outer_loss, direct, directions = look_ahead(ahead, step.gradients)
        # One factor for each derivative that is taken by a backward pass.
        factor = ahead.loss_scale**2 if engine.keeps_graph else ahead.loss_scale
        directions = multiply(directions, factor)
        start.restore()  # for the same random numbers as in the first pass
        through_step, flag = engine.differentiate(ahead, directions, gradients)
        flags = [flag, contradicts_gradients(ahead, gradients, start) if ahead.verify else None]
    gradients = add(direct, multiply(through_step, 1 / factor))
    gradients = average_and_check(ahead, gradients, flags)
    return MetaGradient(inner_loss, outer_loss, gradients, engine.name, step=step)


def _forward(
    ahead: LookAhead, directions: Gradients, gradients: Gradients
) -> tuple[Gradients, Tensor | None]:
    losses = ahead.probe or ahead.inner
    derivative = differentiate_along(ahead, losses, directions, ahead.meta_parameters)
    # With a probe, the gradients are those of another loss. In half precision, small directions
    # underflow, which is no fault of the loss.
    if ahead.probe is not None or derivative.rounding > SINGLE:
        return derivative.gradients, None
    return derivative.gradients, contradicts(derivative, directions, gradients)


def _double_backward(
    ahead: LookAhead, directions: Gradients, gradients: Gradients
) -> tuple[Gradients, Tensor | None]:
    return differentiate_gradients(ahead, directions, gradients), None


FORWARD = Engine("forward", keeps_graph=False, differentiate=_forward)
DOUBLE_BACKWARD = Engine("double-backward", keeps_graph=True, differentiate=_double_backward)


def student_step(ahead: LookAhead, gradients: Gradients, keeper: StateKeeper) -> StudentStep:
    """Return the student's step, and let later passes change a copy of its state."""
    after = keeper.save()
    keeper.restore(after.copy())
    return StudentStep(ahead.average_of_student(gradients), keeper, after)


def look_ahead(ahead: LookAhead, gradients: Gradients) -> tuple[Tensor, Gradients, Gradients]:
    """Return the held-out loss after the step, its direct gradient, and the directions c.

    The direct gradient is that with respect to the weighting at a fixed step.
    """
    parameters = ahead.parameters
    updated, pull_back = look_ahead_step(
        ahead.optimizer, parameters, [local(g) for g in gradients], ahead.max_norm, ahead.shards
    )
    moved = [i for i, g in enumerate(gradients) if g is not None]
    with ahead.temporary_values([parameters[i] for i in moved], [updated[i] for i in moved]):
        outer_loss, gradients = ahead.evaluate(ahead.outer, (*parameters, *ahead.meta_parameters))
    gradients, direct = gradients[: len(parameters)], gradients[len(parameters) :]
    return outer_loss, direct, pull_back([local(g) for g in ahead.average_of_student(gradients)])


def average_and_check(ahead: LookAhead, gradients: Gradients, flags: Flags) -> tuple[Tensor, ...]:
    """Average the gradients over the processes, which also raise their errors together."""
    parameters = ahead.meta_parameters
    raised = torch.zeros((), device=parameters[0].device)
    for flag in flags:
        raised = raised if flag is None else raised + flag.to(raised.device)
    *gradients, flag = ahead.average([*gradients, raised], [*parameters, raised])
    assert flag is not None
    ahead.alarm.watch(flag > 0)
    return zeros_for_none(gradients, parameters)


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
