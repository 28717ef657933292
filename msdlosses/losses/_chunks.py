"""Rows of a loss a few at a time, so that only the logits are kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from msdlosses.functional._rows import per_row

unpack_dual: Any = forward_ad.unpack_dual  # torch gives it no types


def can_chunk(loss: nn.Module, student: Tensor, target: object) -> bool:
    """Whether rows can be taken in parts here.

    They can't where a transform follows the operations one by one: a compiler, which leaves no
    temporaries anyway; `torch.func`; forward mode. Nor if a target has not the axes of the rows.
    """
    if torch.compiler.is_compiling() or _transformed(student, *_state(loss).values()):
        return False
    rows = student.shape[:-1]
    return target is None or (isinstance(target, Tensor) and target.shape[: len(rows)] == rows)


def chunked_rows(
    loss: nn.Module,
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    valid: Tensor | None,
    size: int,
) -> Tensor:
    """`loss.all_rows`, of so many rows at once, over all positions."""
    shape = student.shape[:-1]
    if valid is not None:
        valid = per_row(valid, len(shape)).expand(shape).reshape(-1)
    if target is not None:
        target = target.reshape(-1, *target.shape[len(shape) :])
    logits = (x.reshape(-1, x.shape[-1]) for x in (student, teacher.detach()))
    state = _state(loss)
    inputs = (*logits, target, valid, *state.values())
    # torch gives `apply` no types.
    rows: Tensor = _Chunked.apply(_Rows(loss, tuple(state)), size, *inputs)  # type: ignore[no-untyped-call]
    return rows.reshape(shape)


class _Rows(nn.Module):
    """The rows of a loss as it is now: it may have been changed before the backward pass."""

    def __init__(self, loss: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.loss: Any = copy(loss)  # whatever has `all_rows`
        self.names = [f"loss.{name}" for name in names]

    def forward(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        rows: Tensor = self.loss.all_rows(student, teacher, target, valid=valid)
        return rows

    def of(self, logits: tuple[Tensor | None, ...], state: tuple[Tensor, ...]) -> Tensor:
        """With these parameters and buffers."""
        rows: Tensor = functional_call(self, dict(zip(self.names, state, strict=True)), logits)
        return rows


class _Chunked(torch.autograd.Function):
    """Each chunk is computed again for the backward pass, and its gradient written into place."""

    @staticmethod
    def forward(ctx: Any, rows: _Rows, size: int, *inputs: Any) -> Tensor:
        ctx.rows, ctx.size = rows, size
        ctx.save_for_backward(*inputs)
        logits, state = inputs[:4], inputs[4:]
        return torch.cat([rows.of(part, state) for part in _split(logits, size)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or _transformed(gradient):  # it will be derived itself
            return None, None, *_gradients(ctx.rows, inputs[:4], inputs[4:], gradient)
        found, sums = _accumulated(ctx.rows, inputs[:4], inputs[4:], gradient, ctx.size)
        return None, None, found, None, None, None, *sums


def _accumulated(
    rows: _Rows,
    logits: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    gradient: Tensor,
    size: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of all chunks: those of the student side by side, of the state as sums."""
    # Of the gradient: if it is a batch of gradients, this is one too.
    found = gradient.new_empty(logits[0].shape, dtype=logits[0].dtype)
    sums: list[list[Tensor]] = [[] for _ in state]
    with torch.enable_grad():  # parts of what asks for a gradient ask for one
        parts = list(_split(logits, size))
    for (out, g), part in zip(_split((found, gradient), size), parts, strict=True):
        grads = _gradients(rows, part, state, g)
        if grads[0] is not None:
            out.copy_(grads[0])
        for column, grad in zip(sums, grads[4:], strict=True):
            column.extend([] if grad is None else [grad])
    return found, [torch.stack(column).sum(0) if column else None for column in sums]


def _gradients(
    rows: _Rows, logits: tuple[Tensor | None, ...], state: tuple[Tensor, ...], gradient: Tensor
) -> list[Tensor | None]:
    """For each input of one chunk, None where none is asked for."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: what one input owes to another is not counted here.
        inputs = [None if x is None else x.view_as(x) for x in (*logits, *state)]
        values = rows.of(tuple(inputs[:4]), tuple(x for x in inputs[4:] if x is not None))
    asked = [x for x in inputs if x is not None and x.requires_grad]
    found = iter(
        torch.autograd.grad(values, asked, gradient, create_graph=again, materialize_grads=True)
    )
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


def _split(columns: tuple[Any, ...], size: int) -> Iterator[tuple[Any, ...]]:
    return zip(*(repeat(None) if x is None else x.split(size) for x in columns), strict=False)


def _state(loss: nn.Module) -> dict[str, Tensor]:
    return dict(loss.named_parameters()) | dict(loss.named_buffers())


def _transformed(*tensors: Tensor) -> bool:
    """Whether `torch.func` or forward mode is at work."""
    if torch._C._are_functorch_transforms_active():
        return True
    return any(unpack_dual(x).tangent is not None for x in tensors)
