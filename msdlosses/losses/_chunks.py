"""Per-sample losses in chunks, so that only the logits are kept for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from msdlosses._masks import unsqueeze_right
from msdlosses._torch import apply_function, is_transformed
from msdlosses.losses._replay import ForwardContext


def can_chunk(loss: nn.Module, student: Tensor, target: Tensor | None) -> bool:
    """Return whether the loss can be computed in chunks here.

    It cannot where every operation is traced: by a compiler, which keeps no temporaries anyway,
    by `torch.func`, or in forward mode. Nor can it if the target has other samples.
    """
    if torch.compiler.is_compiling() or is_transformed(student, *_state(loss).values()):
        return False
    return target is None or student.ndim == 1 or target.shape[:1] == student.shape[:1]


def chunked_per_sample(
    loss: nn.Module,
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    mask: Tensor | None,
    size: int,
) -> Tensor:
    """Compute a loss for about `size` samples or positions at a time."""
    shape = student.shape[:-1]
    if mask is not None:
        mask = unsqueeze_right(mask, len(shape)).expand(shape)
    axes = _axes_of_rows(shape, target)
    inputs = (student, teacher.detach(), target, mask)
    rows = (None if x is None else x.reshape(-1, *x.shape[axes:]) for x in inputs)
    state = _state(loss)
    function = _LossOfState(loss, tuple(state))
    size = max(size // max(math.prod(shape[axes:]), 1), 1)
    values: Tensor = apply_function(_Chunked, function, size, *rows, *state.values())
    return values.reshape(shape)


def _axes_of_rows(shape: torch.Size, target: Tensor | None) -> int:
    """Return how many leading axes can be split: those that the target has as well."""
    if target is None:
        return len(shape)
    same = [s == t for s, t in zip(shape, target.shape, strict=False)]
    return [*same, False].index(False)


class _LossOfState(nn.Module):
    """A loss as a function of its parameters and buffers.

    It is copied, since its options may change before the backward pass.
    """

    def __init__(self, loss: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.loss: Any = copy(loss)  # any module with `_all_at_once`
        self.names = [f"loss.{name}" for name in names]

    def forward(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        values: Tensor = self.loss._all_at_once(student, teacher, target, mask)
        return values

    def evaluate(
        self, logits: tuple[Tensor | None, ...], state: tuple[Tensor, ...], size: int
    ) -> Tensor:
        parameters = dict(zip(self.names, state, strict=True))
        values = [functional_call(self, parameters, chunk) for chunk in _split(logits, size)]
        return torch.cat(values)


class _Chunked(torch.autograd.Function):
    """Compute each chunk again in the backward pass, and write its gradient into place."""

    @staticmethod
    def forward(ctx: Any, function: _LossOfState, size: int, *inputs: Any) -> Tensor:
        ctx.function, ctx.size = function, size
        ctx.save_for_backward(*inputs)
        ctx.context = ForwardContext(inputs[0])
        values = function.evaluate(inputs[:4], inputs[4:], size)
        ctx.context.finish(inputs[0])
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, state = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        with ctx.context.replay():
            if torch.is_grad_enabled() or is_transformed(gradient):  # of a higher order
                return None, None, *_gradients(ctx.function, logits, state, gradient, ctx.size)
            of_student, sums = _accumulate(ctx.function, logits, state, gradient, ctx.size)
        return None, None, of_student, None, None, None, *sums


def _accumulate(
    function: _LossOfState,
    logits: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    gradient: Tensor,
    size: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the gradient of the student's logits, and sums over the chunks for the state."""
    # Like `gradient`: if that is a batch of gradients, so is this.
    of_student = gradient.new_empty(logits[0].shape, dtype=logits[0].dtype)
    sums: list[Tensor | None] = [None for _ in state]
    with torch.enable_grad():  # so that chunks of what requires a gradient require one
        chunks = list(_split(logits, size))
    for (out, g), chunk in zip(_split((of_student, gradient), size), chunks, strict=True):
        gradients = _gradients(function, chunk, state, g, size)
        if gradients[0] is not None:
            out.copy_(gradients[0])
        # In place, or the gradients of all chunks would be kept.
        for i, part in enumerate(gradients[4:]):
            total = sums[i]
            if part is not None:  # the first one is copied: it may be an expanded tensor
                sums[i] = part.clone() if total is None else total.add_(part)
    return of_student, sums


def _gradients(
    function: _LossOfState,
    logits: tuple[Tensor | None, ...],
    state: tuple[Tensor, ...],
    gradient: Tensor,
    size: int,
) -> list[Tensor | None]:
    """Return the gradient of each input, None where it requires none."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views of their own, so that a gradient from one input to another is not counted twice.
        inputs = [None if x is None else x.view_as(x) for x in (*logits, *state)]
        state = tuple(x for x in inputs[4:] if x is not None)
        values = function.evaluate(tuple(inputs[:4]), state, size)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    gradients = iter(
        torch.autograd.grad(
            values, wanted, gradient, create_graph=create_graph, materialize_grads=True
        )
    )
    return [next(gradients) if x is not None and x.requires_grad else None for x in inputs]


def _split(columns: tuple[Any, ...], size: int) -> Iterator[tuple[Any, ...]]:
    return zip(*(repeat(None) if x is None else x.split(size) for x in columns), strict=False)


def _state(loss: nn.Module) -> dict[str, Tensor]:
    return dict(loss.named_parameters()) | dict(loss.named_buffers())
