"""Losses whose gradient is known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from msdlosses._torch import apply_function, is_transformed

Formula = Callable[[Tensor, Tensor], Tensor]
"""Student and teacher -> one value per sample, by operators that autograd differentiates."""
Derivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Student and teacher -> one value per sample, and their derivative by the student's logits.

It changes neither argument, and autograd does not see it.
"""

SMALL = 4096
"""Views of up to this many logits are stacked: calling operators takes longer than running them.

Stacks of larger ones would be slower, because they do not fit into the processor's cache.
"""


@dataclass(frozen=True)
class ClosedForm:
    """A loss whose values and gradient are computed in one pass.

    Autograd would keep several tensors as large as the logits; this keeps only the derivative.
    """

    formula: Formula
    """Computes the loss where no gradient is needed or operators are differentiated one by one."""
    derivative: Derivative
    dim: int
    """The class axis."""
    value_scale: float = 1.0
    """The loss is this times the values of `derivative`, ..."""
    gradient_scale: float = 1.0
    """... and its gradient is this times the derivative."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        if not _need_gradient(student):
            return self.formula(student, teacher)
        return cast(Tensor, apply_function(_Differentiate, self, student, teacher.detach()))

    def of_views(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Return the losses of several views of one shape, stacked along a last axis."""
        if len(students) == 1 or not _need_gradient(*students):
            return torch.stack([self(*pair) for pair in zip(students, teachers, strict=True)], -1)
        teachers = [teacher.detach() for teacher in teachers]
        return cast(Tensor, apply_function(_Differentiate, self, *students, *teachers))


def _need_gradient(*students: Tensor) -> bool:
    """Return whether a backward pass may follow, and nothing else.

    In compiled code all operators are fused. Forward mode and `torch.func` differentiate each.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return all(student.requires_grad for student in students) and not is_transformed(*students)


class _Differentiate(torch.autograd.Function):
    """Takes its first derivative from the closed form, and higher ones from the formula."""

    @staticmethod
    def forward(ctx: Any, form: ClosedForm, *logits: Tensor) -> Tensor:
        values, derivatives = _stacked(form, logits) or _one_by_one(form, logits)
        ctx.form = form
        ctx.save_for_backward(*logits, *derivatives)
        values = values.clamp_(min=0)  # negative values can only come from rounding
        return values if form.value_scale == 1 else values.mul_(form.value_scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved, form = ctx.saved_tensors, ctx.form
        views = len(saved) // 3
        if torch.is_grad_enabled():  # `create_graph`: the result is differentiated again
            of_students = _by_formula(form, _pairs(saved[: 2 * views]), _columns(gradient, views))
        else:
            scaled = gradient if form.gradient_scale == 1 else gradient * form.gradient_scale
            columns = zip(saved, saved[2 * views :], _columns(scaled, views), strict=False)
            of_students = [
                (derivative * column.unsqueeze(form.dim)).to(student.dtype)
                for student, derivative, column in columns
            ]
        return None, *of_students, *[None] * views


def _one_by_one(form: ClosedForm, logits: tuple[Tensor, ...]) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the values of all views, and the derivative of each."""
    results = [form.derivative(student, teacher) for student, teacher in _pairs(logits)]
    columns, derivatives = zip(*results, strict=True)
    return columns[0] if len(columns) == 1 else torch.stack(columns, -1), derivatives


def _stacked(
    form: ClosedForm, logits: tuple[Tensor, ...]
) -> tuple[Tensor, Sequence[Tensor]] | None:
    """Return the same of small views, by one operator for all of them; None if they are large."""
    half = len(logits) // 2
    if half == 1 or form.dim >= 0 or logits[0].numel() > SMALL:
        return None
    values, derivative = form.derivative(torch.stack(logits[:half]), torch.stack(logits[half:]))
    return values.movedim(0, -1), derivative.unbind()


def _by_formula(
    form: ClosedForm, pairs: Sequence[tuple[Tensor, Tensor]], gradients: Sequence[Tensor]
) -> Sequence[Tensor]:
    # Views, so that the gradient stops here and does not go on to the student's parameters.
    students = [student.view_as(student) for student, _ in pairs]
    values = [form.formula(s, teacher) for s, (_, teacher) in zip(students, pairs, strict=True)]
    return torch.autograd.grad(values, students, gradients, create_graph=True)


def _pairs(logits: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair the students' logits, in the first half, with the teachers'."""
    half = len(logits) // 2
    return list(zip(logits[:half], logits[half:], strict=True))


def _columns(gradient: Tensor, views: int) -> Sequence[Tensor]:
    return (gradient,) if views == 1 else gradient.unbind(-1)
