"""A look-ahead step to differentiate, and what is seen of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from msdlosses.meta import _support as support
from msdlosses.meta._distributed import Gradients, Group
from msdlosses.meta._memory import Memory, State
from msdlosses.meta._passes import (
    check_no_reentrant_checkpoint,
    differentiable_kernels,
    watch_custom_functions,
)

Objective = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Problem:
    """A look-ahead step to differentiate."""

    student: nn.Module
    optimizer: Optimizer
    weighting: nn.Module
    inner: tuple[Objective, ...]
    outer: tuple[Objective, ...]
    probe: tuple[Objective, ...] = ()
    """In place of `inner` where the weighting's gradient is concerned, if there is one."""
    max_norm: float | None = None
    scale: float | None = None
    group: Group | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What the student's optimiser holds, in the order of its groups."""
        return support.parameters_of(self.optimizer)

    @property
    def grouped(self) -> list[tuple[Mapping[str, Any], Tensor]]:
        """The same parameters, each with the options of its group."""
        return [(group, p) for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def learned(self) -> tuple[nn.Parameter, ...]:
        """The parameters whose gradient is sought."""
        return support.learned(self.weighting)


@dataclass(frozen=True)
class Look:
    """What was seen from one step ahead."""

    inner: Tensor
    outer: Tensor
    weighting: tuple[Tensor, ...]
    """The gradients of the outer loss, for what is learned of the weighting."""
    engine: str
    student: Gradients | None = None
    """The gradients of the inner loss, for all that the student's optimiser holds."""
    memory: Memory | None = None
    after: State | None = None
    """Buffers and random state as the pass of the inner loss left them."""


def differentiate(
    problem: Problem, name: str, wanted: Sequence[Tensor], *, graph: bool = False
) -> tuple[Tensor, Gradients]:
    """The sum of the losses of that name, detached, and its gradients."""
    losses: list[Tensor] = []
    sums: Gradients = [None] * len(wanted)
    with differentiable_kernels(problem.student, needed=graph):
        for objective in getattr(problem, name):
            loss = support.scalar(name, objective(problem.student))
            losses.append(loss.detach())
            sums = plus(sums, _gradients(loss, wanted, problem.scale, graph))
    support.check_dense(sums)
    return torch.stack(losses).sum(), sums


def _gradients(
    loss: Tensor, wanted: Sequence[Tensor], scale: float | None, graph: bool
) -> Gradients:
    """None for what has none; a scale keeps gradients in half precision from becoming 0."""
    if loss.grad_fn is None:
        raise support.no_path()
    if graph:
        watch_custom_functions(loss)
    asked = [p for p in wanted if p.requires_grad]
    scaled = loss if scale is None else loss * scale
    found = torch.autograd.grad(scaled, asked, create_graph=graph, allow_unused=True)
    if any(g is None for g in found):
        check_no_reentrant_checkpoint(loss)
    rest = iter(found)
    gradients = [next(rest) if p.requires_grad else None for p in wanted]
    return times(gradients, None if scale is None else 1 / scale)


def plus(left: Gradients, right: Gradients) -> Gradients:
    """Their sum, in which None is nothing."""
    pairs = zip(left, right, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


def times(gradients: Gradients, factor: float | None) -> Gradients:
    """Multiplied; None for no factor."""
    if factor is None:
        return gradients
    return [None if g is None else g * factor for g in gradients]


def as_used(problem: Problem, parameters: Sequence[Tensor]) -> Callable[[Gradients], Gradients]:
    """What becomes of the gradients of `parameters` before the optimiser's own algebra."""
    groups = problem.optimizer.param_groups
    signs = {id(p): -1 if group["maximize"] else 1 for group in groups for p in group["params"]}

    def use(gradients: Gradients) -> Gradients:
        pairs = zip(parameters, gradients, strict=True)
        held = [g if id(p) in signs else None for p, g in pairs]
        pairs = zip(parameters, _clipped(held, problem.max_norm), strict=True)
        return [g if g is None or signs[id(p)] > 0 else -g for p, g in pairs]

    return use


def _clipped(gradients: Gradients, max_norm: float | None) -> Gradients:
    """`torch.nn.utils.clip_grad_norm_` as a function."""
    if max_norm is None or all(g is None for g in gradients):
        return gradients
    norms = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    return [None if g is None else g * factor.to(g.device) for g in gradients]
