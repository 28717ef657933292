"""Per-sample losses in chunks of logits, which are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from msdlosses._linear import (
    Head,
    LinearLogits,
    Logits,
    chunk_rows,
    constant,
    shared_axes,
    tensors_of,
)
from msdlosses._masks import unsqueeze_right, zero_invalid
from msdlosses._torch import is_transformed
from msdlosses.losses._rows import Chunks, Gradient, Inputs, Outputs, RowFunction, in_chunks


def can_chunk(student: Logits, target: Tensor | None) -> bool:
    """Return whether the loss can be split: not if the target has other samples."""
    return target is None or student.ndim == 1 or target.shape[:1] == student.shape[:1]


def chunked_per_sample(
    loss: nn.Module,
    student: Logits,
    teacher: Logits,
    target: Tensor | None,
    mask: Tensor | None,
    size: int,
) -> Tensor:
    """Compute a loss for about `size` samples or positions at a time."""
    shape, teacher, state = student.shape[:-1], constant(teacher), _state(loss)
    axes = shared_axes(shape, target)
    chunks: Chunks = _slices(shape[:axes].numel(), chunk_rows(size, shape[axes:]))
    if mask is not None:
        mask = unsqueeze_right(mask, len(shape)).expand(shape)
        tensors = (*tensors_of(student), *tensors_of(teacher), *state.values())
        # On a GPU, the number of valid rows would have to be waited for.
        if mask.device.type == "cpu" and axes == len(shape) and not is_transformed(*tensors):
            chunks, mask = torch.split(mask.flatten().nonzero().squeeze(1), size), None
        else:
            student, teacher = _zero_invalid(student, mask), _zero_invalid(teacher, mask)
    columns = (_rows_of(student), _rows_of(teacher), target, mask)
    rows = [None if x is None else x.reshape(-1, *x.shape[axes:]) for x in columns]
    shared = (*_head_of(student), *_head_of(teacher), *state.values())
    function = _LossOfRows(loss, (student, teacher), tuple(state))
    (values,) = in_chunks(function, chunks, rows, shared)
    return values.reshape(shape)


class _LossOfRows(nn.Module, RowFunction):
    """A loss as a function of all tensors that it depends on.

    The rows are the hidden states or logits of student and teacher, the target, and the mask. The
    student's head, the teacher's, and the parameters and buffers of the loss are shared.
    """

    def __init__(
        self, loss: nn.Module, logits: tuple[Logits, Logits], names: Sequence[str]
    ) -> None:
        super().__init__()
        self.loss: Any = copy(loss)  # its options may change before the backward pass
        self.student, self.teacher = (
            x.head if isinstance(x, LinearLogits) else None for x in logits
        )
        self.names = [f"loss.{name}" for name in names]

    def forward(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        values: Tensor = self.loss._all_at_once(student, teacher, target, mask)
        return values

    def evaluate(self, rows: Inputs, shared: Inputs) -> tuple[Outputs, Outputs]:
        student, teacher, target, mask = rows
        if self.student is not None:
            student = self.student.logits(student, *shared[:2])
        if self.teacher is not None:
            teacher = self.teacher.logits(teacher, *shared[2:4])
        state = dict(zip(self.names, shared[4:], strict=True))
        return [functional_call(self, state, (student, teacher, target, mask))], []

    def gradient(self, wanted: Sequence[bool], rows: int) -> Gradient:
        if self.student is None:
            return Gradient(self, wanted, rows)
        return _GradientOfHead(self, self.student, wanted, rows)


class _GradientOfHead(Gradient):
    """The gradient of a loss of the student's `LinearLogits`.

    Unless it is differentiated again, the gradient of the weight is added into place, and needs no
    temporary as large as the weight.
    """

    def __init__(
        self, function: _LossOfRows, head: Head, wanted: Sequence[bool], rows: int
    ) -> None:
        super().__init__(function, wanted, rows)
        self.head = head
        of_head = rows + 2
        logits_only = (True, *[False] * (of_head - 1))
        self.after_head = Gradient(function, (*logits_only, *wanted[of_head:]), rows)

    def evaluate_into(self, rows: Inputs, shared: Inputs, sums: Outputs) -> Outputs:
        hidden, *others = rows
        weight, bias, *state = shared
        logits = self.head.linear(hidden, weight, bias).requires_grad_()
        (of_logits,), of_state = self.after_head.evaluate((logits, *others), (None, None, *state))
        # 0 times infinity would be NaN, and would reach the weight.
        left_out = unsqueeze_right(others[-1] == 0, of_logits.ndim)
        of_logits = of_logits.masked_fill(left_out, 0.0)
        totals = iter(sums)
        if self.wanted[self.rows]:
            self.head.add_weight_gradient(next(totals), of_logits, hidden)
        if self.wanted[self.rows + 1]:
            self.head.add_bias_gradient(next(totals), of_logits)
        for part in of_state:
            next(totals).add_(part)
        return [self.head.hidden_gradient(of_logits, weight)] if self.wanted[0] else []


def _slices(rows: int, step: int) -> list[slice]:
    """Return slices of some rows, at least one."""
    return [slice(start, start + step) for start in range(0, max(rows, 1), step)]


def _zero_invalid(logits: Logits, mask: Tensor) -> Logits:
    """Set invalid hidden states to 0: 0 * NaN would be NaN in the gradient of the weight."""
    if not isinstance(logits, LinearLogits):
        return logits
    return logits.replace_hidden(zero_invalid(logits.hidden, mask))


def _rows_of(logits: Logits) -> Tensor:
    return logits.hidden if isinstance(logits, LinearLogits) else logits


def _head_of(logits: Logits) -> tuple[Tensor | None, Tensor | None]:
    return (logits.weight, logits.bias) if isinstance(logits, LinearLogits) else (None, None)


def _state(loss: nn.Module) -> dict[str, Tensor]:
    return dict(loss.named_parameters()) | dict(loss.named_buffers())
