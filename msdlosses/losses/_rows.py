"""Functions of rows, computed and differentiated in chunks, so that only their inputs are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from msdlosses._torch import apply_function, is_batch_of_gradients, is_transformed
from msdlosses.losses._replay import ForwardContext

Inputs = Sequence[Any]
"""Tensors, and None for those that a function does not need."""
Outputs = Sequence[Tensor]
Chunks = Sequence[slice] | Sequence[Tensor]
"""The rows of each chunk: slices of all rows, or indices of some; the others get 0."""


class RowFunction(ABC):
    """A function of rows, which can be split into chunks, and of tensors that the rows share.

    It returns rows, and sums over the rows. Its gradient is such a function as well: the gradients
    of shared tensors are sums. The same code therefore computes derivatives of any order.
    """

    @abstractmethod
    def evaluate(self, rows: Inputs, shared: Inputs) -> tuple[Outputs, Outputs]:
        """Return the rows, and the sums over them."""

    def evaluate_into(self, rows: Inputs, shared: Inputs, sums: Outputs) -> Outputs:
        """Return the rows, and add to the sums in place."""
        outputs, parts = self.evaluate(rows, shared)
        for total, part in zip(sums, parts, strict=True):
            total.add_(part)
        return outputs

    def summed(self, shared: Inputs) -> Outputs:
        """Return the shared tensors whose shapes the sums have."""
        return ()

    def gradient(self, wanted: Sequence[bool], rows: int) -> Gradient:
        """Return the gradient of the inputs that are wanted, of which the first are rows."""
        return Gradient(self, wanted, rows)


class Gradient(RowFunction):
    """The gradient of a function, whose inputs are followed by the gradients of its outputs."""

    def __init__(self, function: RowFunction, wanted: Sequence[bool], rows: int) -> None:
        self.function = function
        self.wanted = wanted
        self.rows = rows

    def evaluate(self, rows: Inputs, shared: Inputs) -> tuple[Outputs, Outputs]:
        create_graph = torch.is_grad_enabled()
        count = len(self.wanted) - self.rows
        with torch.enable_grad():
            # Views of their own, so that a gradient from one input to another is not counted twice.
            inputs: list[Any] = [
                None if x is None else x.view_as(x) for x in (*rows[: self.rows], *shared[:count])
            ]
            outputs, sums = self.function.evaluate(inputs[: self.rows], inputs[self.rows :])
        above = (*rows[self.rows :], *shared[count:])
        wanted = list(compress(inputs, self.wanted))
        gradients = _grad((*outputs, *sums), wanted, above, create_graph)
        of_rows = sum(self.wanted[: self.rows])
        return gradients[:of_rows], gradients[of_rows:]

    def summed(self, shared: Inputs) -> Outputs:
        return list(compress(shared, self.wanted[self.rows :]))


def in_chunks(function: RowFunction, chunks: Chunks, rows: Inputs, shared: Inputs) -> Outputs:
    """Return the rows of a function followed by its sums, computed chunk by chunk."""
    tensors = [x for x in (*rows, *shared) if x is not None]
    if is_transformed(*tensors) or any(map(is_batch_of_gradients, tensors)):
        return _traced(function, chunks, rows, shared)
    outputs: Outputs = apply_function(_Chunked, function, chunks, len(rows), *rows, *shared)
    return outputs


class _Chunked(torch.autograd.Function):
    """Compute each chunk again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, function: RowFunction, chunks: Chunks, rows: int, *inputs: Any
    ) -> tuple[Tensor, ...]:
        ctx.function, ctx.chunks, ctx.rows = function, chunks, rows
        ctx.save_for_backward(*inputs)
        ctx.context = ForwardContext(inputs[0])
        outputs = _accumulated(function, chunks, inputs[:rows], inputs[rows:])
        ctx.context.finish(inputs[0])
        return outputs

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[3:]
        rows, shared = ctx.saved_tensors[: ctx.rows], ctx.saved_tensors[ctx.rows :]
        of_rows = len(above) - len(ctx.function.summed(shared))
        function = ctx.function.gradient(wanted, ctx.rows)
        rows, shared = (*rows, *above[:of_rows]), (*shared, *above[of_rows:])
        with ctx.context.replay():
            gradients = iter(in_chunks(function, ctx.chunks, rows, shared))
        return None, None, None, *(next(gradients) if each else None for each in wanted)


def _accumulated(
    function: RowFunction, chunks: Chunks, rows: Inputs, shared: Inputs
) -> tuple[Tensor, ...]:
    """Write the rows of each chunk into place, and add to the sums."""
    outputs: list[Tensor] = []
    # Sums of many chunks in half precision would be inexact.
    summed = function.summed(shared)
    sums = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float)) for x in summed]
    for chunk in chunks:
        parts = function.evaluate_into(_take(rows, chunk), shared, sums)
        outputs = outputs or [_empty_rows(part, rows, chunk) for part in parts]
        for output, part in zip(outputs, parts, strict=True):
            output[chunk] = part
    return *outputs, *(total.to(x.dtype) for total, x in zip(sums, summed, strict=True))


def _traced(function: RowFunction, chunks: Chunks, rows: Inputs, shared: Inputs) -> Outputs:
    """Compute the same without operations in place, for forward mode and `torch.func`."""
    results = [function.evaluate(_take(rows, chunk), shared) for chunk in chunks]
    outputs = [torch.cat(parts) for parts in zip(*(r for r, _ in results), strict=True)]
    if isinstance(chunks[0], Tensor):
        empty = [_empty_rows(x, rows, chunks[0]) for x in outputs]
        index = torch.cat([chunk for chunk in chunks if isinstance(chunk, Tensor)])
        outputs = [e.index_copy(0, index, x) for e, x in zip(empty, outputs, strict=True)]
    sums = [reduce(torch.add, parts) for parts in zip(*(s for _, s in results), strict=True)]
    return *outputs, *sums


def _grad(outputs: Outputs, inputs: Outputs, above: Outputs, create_graph: bool) -> Outputs:
    """Return the gradient of the inputs, 0 where the outputs do not depend on them."""
    pairs = [pair for pair in zip(outputs, above, strict=True) if pair[0].requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    joined, gradients = zip(*pairs, strict=True)
    return torch.autograd.grad(
        joined, inputs, gradients, create_graph=create_graph, materialize_grads=True
    )


def _take(rows: Inputs, chunk: slice | Tensor) -> Inputs:
    with torch.enable_grad():  # so that chunks of what requires a gradient require one
        return [None if x is None else x[chunk] for x in rows]


def _empty_rows(part: Tensor, rows: Inputs, chunk: slice | Tensor) -> Tensor:
    """Return a tensor for the results of all rows, which is 0 if only some are computed."""
    shape = (len(rows[0]), *part.shape[1:])
    return part.new_empty(shape) if isinstance(chunk, slice) else part.new_zeros(shape)
