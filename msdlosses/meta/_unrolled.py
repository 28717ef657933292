"""The engine "higher": steps on a copy of the student, unrolled by the package `higher`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msdlosses._checks import check_that
from msdlosses.meta._consistency import contradicts_gradients
from msdlosses.meta._graph import graph_nodes
from msdlosses.meta._kernels import differentiable_kernels
from msdlosses.meta._lookahead import LookAhead, MetaGradient, no_path, zeros_for_none
from msdlosses.meta._losses import Losses
from msdlosses.meta._optimizers import differentiable, monkeypatch
from msdlosses.meta._state import Start, StateKeeper, restored_afterwards
from msdlosses.meta._step import as_optimizer_uses


def unrolled_gradient(ahead: LookAhead, steps: int) -> MetaGradient:
    """Take some steps on the inner loss, and differentiate through all of them."""
    parameters = list(ahead.model.parameters())
    keeper = StateKeeper(ahead.model, ahead.weighting)
    with (
        restored_afterwards(keeper) as start,
        differentiable_kernels(ahead.model),
        ahead.watched_hooks(),
    ):
        model = monkeypatch(ahead.model, track_higher_grads=True)
        optimizer = differentiable(ahead.optimizer)(
            ahead.optimizer,
            parameters,
            fmodel=model,
            grad_callback=as_optimizer_uses(ahead.optimizer, parameters, ahead.max_norm),
        )
        inner_losses = []
        for _ in range(steps):
            inner_losses.append(_sum(ahead.inner, model, parameters))
            optimizer.step(inner_losses[-1])
        outer_loss = _sum(ahead.outer, model, parameters)
        found = torch.autograd.grad(outer_loss, ahead.meta_parameters, allow_unused=True)
        if ahead.verify:
            _verify(ahead, start)
    gradients = zeros_for_none(found, ahead.meta_parameters)
    return MetaGradient(inner_losses[0].detach(), outer_loss.detach(), gradients, "higher")


def _verify(ahead: LookAhead, start: Start) -> None:
    """Check the gradients of the first step, on the student itself."""
    start.restore()
    _, gradients = ahead.evaluate(ahead.inner, ahead.parameters)
    flag = contradicts_gradients(ahead, gradients, start)
    if flag is not None:
        ahead.alarm.watch(flag)


def _sum(losses: Losses, model: nn.Module, original: list[nn.Parameter]) -> Tensor:
    loss = torch.stack(list(losses(model))).sum()
    if not loss.requires_grad:
        raise no_path()
    ids = {id(p) for p in original}
    own = any(id(getattr(node, "variable", None)) in ids for node in graph_nodes(loss))
    what = f"`{losses.name}` to use the model it is called with, a copy by `higher`"
    check_that(what, not own, "a loss of the student's original parameters")
    return loss
