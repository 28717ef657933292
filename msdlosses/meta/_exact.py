"""The exact engines: a direction from the optimiser, and the inner loss's derivative in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from msdlosses.meta import _support as support
from msdlosses.meta._distributed import Gradients, average
from msdlosses.meta._higher import next_parameter
from msdlosses.meta._memory import Memory, rehearsed
from msdlosses.meta._passes import differentiable_kernels, moving, valued
from msdlosses.meta._problem import Look, Problem, as_used, differentiate, plus, times

MISSING = re.compile("derivative for .* is not implemented|forward AD|forward mode AD|jvp")


unpack_dual: Any = forward_ad.unpack_dual


class MissingFormulaError(NotImplementedError):
    """An operation of the losses has no derivative of the kind that an engine needs."""


def look(problem: Problem, engine: str) -> Look:
    """By one of the engines, which differ in how the direction reaches the weighting."""
    twice = engine == "double-backward" and not problem.probe
    memory = Memory(problem.student, problem.weighting)
    with rehearsed(memory) as before, _missing_formulas(engine):
        inner, gradients = differentiate(problem, "inner", problem.parameters, graph=twice)
        after = memory.take()
        memory.put(after.copy())
        mean = average(_detached(gradients), problem.parameters, problem.group)
        outer, direct, directions = _directions(problem, mean)
        memory.put(before.copy())
        if engine == "forward":
            through = _by_tangents(problem, directions, inner)
        else:
            through = _by_second_backward(problem, directions, gradients if twice else None)
    found = average(plus(direct, through), problem.learned, problem.group)
    weighting = support.reached(found, problem.learned)
    return Look(inner, outer, weighting, engine, mean, memory, after)


def _directions(problem: Problem, mean: Gradients) -> tuple[Tensor, Gradients, Gradients]:
    """The held-out loss after the step, its own gradient by the weighting, and the directions.

    The optimiser's step is elementwise algebra, and small: the student has no part in it.
    """
    parameters = problem.parameters
    leaves = [None if g is None else g.detach().requires_grad_() for g in mean]
    used = as_used(problem, parameters)(leaves)
    moved = [
        p.detach() if g is None else _next(problem.optimizer, group, p, g)
        for (group, p), g in zip(problem.grouped, used, strict=True)
    ]
    with valued(parameters, [p.detach() for p in moved]):
        outer, found = differentiate(problem, "outer", (*parameters, *problem.learned))
    slopes, direct = found[: len(parameters)], found[len(parameters) :]
    slopes = average(slopes, parameters, problem.group)
    return outer, direct, _pull_back(moved, leaves, slopes)


def _next(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, g: Tensor) -> Tensor:
    """Checkpointed: what Adam's algebra saves is several times as large as the student."""
    moved: Tensor = checkpoint(
        partial(next_parameter, optimizer, group, parameter),
        g,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return moved


def _pull_back(moved: Sequence[Tensor], leaves: Gradients, slopes: Gradients) -> Gradients:
    """Slopes by the parameters after the step, as slopes by the gradients before it."""
    pairs = [
        (after, slope)
        for after, slope in zip(moved, slopes, strict=True)
        if slope is not None and after.requires_grad
    ]
    if not pairs:
        raise support.no_path()
    asked = [g for g in leaves if g is not None]
    outputs, along = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, asked, along, allow_unused=True))
    return [None if g is None else next(found) for g in leaves]


def _by_tangents(problem: Problem, directions: Gradients, inner: Tensor) -> Gradients:
    """Carry the directions forward through the student, and differentiate where they arrive."""
    learned = {id(p) for p in problem.learned}
    others = [p for p in problem.student.parameters() if id(p) not in learned]
    losses: list[Tensor] = []
    sums: Gradients = [None] * len(problem.learned)
    with (
        differentiable_kernels(problem.student),
        moving(problem.parameters, times(directions, problem.scale), others),
    ):
        for objective in problem.probe or problem.inner:
            dual = support.scalar("probe" if problem.probe else "inner", objective(problem.student))
            loss, tangent = unpack_dual(dual)
            losses.append(loss.detach())
            if tangent is not None and tangent.requires_grad:
                found = torch.autograd.grad(tangent, problem.learned, allow_unused=True)
                sums = plus(sums, found)
    if not problem.probe:
        _check_repeated(inner, torch.stack(losses).sum())
    return times(sums, None if problem.scale is None else 1 / problem.scale)


def _by_second_backward(
    problem: Problem, directions: Gradients, gradients: Gradients | None
) -> Gradients:
    """Differentiate the student's gradient in the directions."""
    if gradients is None:
        _, gradients = differentiate(problem, "probe", problem.parameters, graph=True)
    scale = None if problem.scale is None else problem.scale**2  # of both backward passes
    pairs = [
        (gradient, direction)
        for gradient, direction in zip(gradients, times(directions, scale), strict=True)
        if gradient is not None and direction is not None and gradient.requires_grad
    ]
    if not pairs:
        raise support.no_path()
    values, along = zip(*pairs, strict=True)
    found = torch.autograd.grad(values, problem.learned, along, allow_unused=True)
    return times(found, None if scale is None else 1 / scale)


def _detached(gradients: Gradients) -> Gradients:
    return [None if g is None else g.detach() for g in gradients]


def _check_repeated(first: Tensor, again: Tensor) -> None:
    """The pass in forward mode has to be a repetition: of the same batch, with the same masks."""
    # Kernels differ between the passes, and so does rounding, most of all under autocast.
    tolerance = 1e-6 if first.dtype == torch.float64 else 1e-2
    if not torch.isclose(first, again, rtol=tolerance, atol=tolerance):
        raise ValueError(
            "Expected `inner` to give the same loss when it is called again from the same random "
            f"state, got {first.item():g} and {again.item():g}: fetch batches outside of it, or "
            "use engine='double-backward', which calls it once."
        )


@contextmanager
def _missing_formulas(engine: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of which NotImplementedError is one
        what = str(error).partition("\n")[0].rstrip(".")
        if not MISSING.search(what):
            raise
        raise MissingFormulaError(
            f"Expected operations that engine={engine!r} can differentiate, got: {what}."
        ) from error
