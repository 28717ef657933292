"""A look-ahead step to differentiate: its losses, their gradients, and the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from msdlosses._checks import check_that
from msdlosses._torch import version
from msdlosses.meta._alarm import Alarm
from msdlosses.meta._graph import check_no_reentrant_checkpoint, watch_custom_functions
from msdlosses.meta._kernels import differentiable_kernels
from msdlosses.meta._losses import Losses
from msdlosses.meta._modes import WatchedHooks
from msdlosses.meta._parameters import temporary_values
from msdlosses.meta._sharding import gradients_by_backward, temporary_shards
from msdlosses.meta._state import State, StateKeeper

Gradients = Sequence[Tensor | None]
"""None for a parameter without a gradient."""
Group = distributed.ProcessGroup


@dataclass(frozen=True)
class LookAhead:
    """A step of the student's optimizer, to be differentiated with respect to the weighting."""

    model: nn.Module
    optimizer: Optimizer
    weighting: nn.Module
    inner: Losses
    outer: Losses
    probe: Losses | None = None
    """Replaces `inner` in the gradient of the weighting, but not in the step."""
    max_norm: float | None = None
    loss_scale: float = 1.0
    """Keeps gradients in half precision from underflowing."""
    group: Group | None = None
    """The processes to average over; None for a single process."""
    shards: Group | None = None
    """The processes over which the parameters are sharded."""
    alarm: Alarm = field(default_factory=Alarm)
    verify: bool = True
    """Whether to compare the gradients of `inner` with its derivative, by one more pass."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters of the student's optimizer, in the order of its groups."""
        return parameters_of(self.optimizer)

    @property
    def meta_parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters of the weighting whose gradient is computed."""
        return trainable(self.weighting)

    def evaluate(
        self, losses: Losses, parameters: Sequence[Tensor], *, create_graph: bool = False
    ) -> tuple[Tensor, Gradients]:
        """Return the sum of the losses, detached, and its gradients in this process."""
        values: list[Tensor] = []
        gradients: Gradients = [None] * len(parameters)
        trained = [p for p in parameters if p.requires_grad]
        versions = [version(p) for p in trained]
        with self._twice_differentiable() if create_graph else nullcontext():
            for loss in losses(self.model):
                values.append(loss.detach())
                gradients = add(gradients, self._gradients(loss, parameters, create_graph))
        unchanged = versions == [version(p) for p in trained]
        what = f"`{losses.name}` to leave the parameters of the optimizer as they are"
        check_that(what, unchanged, "changes in place")
        dense = all(g is None or g.layout == torch.strided for g in gradients)
        check_that("dense gradients", dense, "sparse ones", "Set sparse=False.")
        return torch.stack(values).sum(), gradients

    @contextmanager
    def _twice_differentiable(self) -> Iterator[None]:
        with differentiable_kernels(self.model), self.watched_hooks():
            yield

    def watched_hooks(self) -> AbstractContextManager[object]:
        """Return a context that checks hooks. It costs time for each operation, so not always."""
        return WatchedHooks() if self.verify else nullcontext()

    def _gradients(
        self, loss: Tensor, parameters: Sequence[Tensor], create_graph: bool
    ) -> Gradients:
        if loss.grad_fn is None:
            raise no_path()
        if create_graph:
            watch_custom_functions(loss)
        scaled = loss if self.loss_scale == 1 else loss * self.loss_scale
        wanted = [p for p in parameters if p.requires_grad]
        if self.shards is not None:
            others = (*self.model.parameters(), *self.weighting.parameters())
            some = gradients_by_backward(scaled, wanted, others)
        else:
            some = torch.autograd.grad(scaled, wanted, create_graph=create_graph, allow_unused=True)
        if any(g is None for g in some):
            check_no_reentrant_checkpoint(loss)
        rest = iter(some)
        gradients = [next(rest) if p.requires_grad else None for p in parameters]
        return multiply(gradients, 1 / self.loss_scale)

    def temporary_values(
        self, parameters: Sequence[Tensor], values: Sequence[Tensor]
    ) -> AbstractContextManager[None]:
        """Return a context in which parameters of the student have other values."""
        if self.shards is not None:
            return temporary_shards(self.model, parameters, values)
        return temporary_values(parameters, values)

    def average_of_student(self, gradients: Gradients) -> Gradients:
        """Average gradients of the student. Those of shards are averaged already."""
        if self.shards is not None:
            return [None if g is None else g.detach() for g in gradients]
        return self.average(gradients, self.parameters)

    def average(self, gradients: Gradients, parameters: Sequence[Tensor]) -> Gradients:
        """Return the gradients, detached, averaged over the processes.

        The result is None only where no process has a gradient.
        """
        gradients = [None if g is None else g.detach() for g in gradients]
        if self.group is None:
            return gradients
        used = torch.tensor([g is not None for g in gradients], dtype=torch.uint8)
        used = used.to(parameters[0].device)
        distributed.all_reduce(used, distributed.ReduceOp.MAX, self.group)
        pairs = zip(gradients, parameters, used.tolist(), strict=True)
        gradients = [
            (torch.zeros_like(p) if g is None else g.clone()) if anywhere else None
            for g, p, anywhere in pairs
        ]
        some = [g for g in gradients if g is not None]
        wait_all([distributed.all_reduce(g, group=self.group, async_op=True) for g in some])
        return multiply(gradients, 1 / self.group.size())


@dataclass(frozen=True)
class StudentStep:
    """What a learner needs to take the step without another pass."""

    gradients: Gradients
    """The averaged gradients of `inner`, for the parameters of the student's optimizer."""
    keeper: StateKeeper
    state: State
    """Buffers and random states after the pass of `inner`."""


@dataclass(frozen=True)
class MetaGradient:
    """The gradient of the held-out loss with respect to the weighting, and the losses."""

    inner_loss: Tensor
    outer_loss: Tensor
    gradients: tuple[Tensor, ...]
    """One tensor for each of the meta-parameters."""
    engine: str
    fell_back: bool = False
    """The engine that "auto" prefers lacks a derivative."""
    error: Tensor | None = None
    """An estimate of the relative error, if the engine made one."""
    step: StudentStep | None = None
    """None from the engine "higher", which takes the step on a copy of the student."""


def wait_all(works: Iterable[Any]) -> None:
    """Wait for asynchronous collective operations."""
    for work in works:
        work.wait()


def parameters_of(optimizer: Optimizer) -> tuple[Tensor, ...]:
    """Return the parameters of an optimizer, in the order of its groups."""
    return tuple(p for group in optimizer.param_groups for p in group["params"])


def trainable(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters of a module that require a gradient."""
    return tuple(p for p in module.parameters() if p.requires_grad)


def add(left: Gradients, right: Gradients) -> Gradients:
    """Add two lists of gradients."""
    pairs = zip(left, right, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


def multiply(gradients: Gradients, factor: float) -> Gradients:
    """Multiply gradients by a factor."""
    if factor == 1:
        return gradients
    return [None if g is None else g * factor for g in gradients]


def zeros_for_none(gradients: Gradients, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return a gradient for each parameter; raise an error if there is none for any."""
    if all(g is None for g in gradients):
        raise no_path()
    pairs = zip(parameters, gradients, strict=True)
    return tuple(torch.zeros_like(p) if g is None else g for p, g in pairs)


def no_path() -> ValueError:
    """Return the error for losses that do not connect the weighting to the held-out loss."""
    return ValueError(
        "Expected a path from the weighting through the step on `inner` to `outer`, got none. Both "
        "losses must use the model, and `inner` must use the weights without detaching them."
    )
