"""The reference: the step unrolled, with a copy of the student, by `higher`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msdlosses.meta import _support as support
from msdlosses.meta._higher import differentiable, monkeypatch
from msdlosses.meta._memory import Memory, rehearsed
from msdlosses.meta._passes import differentiable_kernels, graph_of
from msdlosses.meta._problem import Look, Objective, Problem, as_used


def unroll(problem: Problem, steps: int) -> Look:
    """Some steps on the inner loss, and the gradient through all of them."""
    support.check_copied(problem.student, problem.optimizer)
    parameters = list(problem.student.parameters())
    with (
        rehearsed(Memory(problem.student, problem.weighting)),
        differentiable_kernels(problem.student),
    ):
        model = monkeypatch(problem.student, track_higher_grads=True)
        optimizer = differentiable(problem.optimizer)(
            problem.optimizer, parameters, fmodel=model, grad_callback=as_used(problem, parameters)
        )
        losses = []
        for _ in range(steps):
            losses.append(_loss(problem, "inner", model))
            optimizer.step(losses[-1])
        outer = _loss(problem, "outer", model)
        found = torch.autograd.grad(outer, problem.learned, allow_unused=True)
    weighting = support.reached(found, problem.learned)
    return Look(losses[0].detach(), outer.detach(), weighting, "higher")


def _loss(problem: Problem, name: str, model: nn.Module) -> Tensor:
    several: tuple[Objective, ...] = getattr(problem, name)
    loss = torch.stack([support.scalar(name, objective(model)) for objective in several]).sum()
    if not loss.requires_grad:
        raise support.no_path()
    own = {id(p) for p in problem.student.parameters()}
    if any(id(getattr(node, "variable", None)) in own for node in graph_of(loss)):
        raise ValueError(
            f"Expected `{name}` to use the model that it is given, which `higher` has copied, got "
            "a loss that depends on the student's own parameters: by calling the student, or by "
            "parameters that it keeps aside."
        )
    return loss
