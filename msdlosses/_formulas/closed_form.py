"""Losses whose gradient is known in closed form.

Autograd would keep several tensors as large as the logits. A closed form computes the values and
their derivative in one pass, and only the derivative is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from msdlosses._torch import apply_function, is_transformed

Formula = Callable[[Tensor, Tensor], Tensor]
"""Student and teacher -> one value per sample, by operators that autograd differentiates."""
ClosedForm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Student and teacher -> the same values, and their derivative by the student's logits.

It changes neither argument. Autograd does not see it.
"""


def in_closed_form(
    formula: Formula,
    closed_form: ClosedForm,
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int,
    factor: float = 1.0,
) -> Tensor:
    """Evaluate a formula whose derivative is `factor` times that of its closed form.

    The formula itself is evaluated where no derivative is needed, in compiled code, which fuses its
    operators, and in forward mode or under `torch.func`, which differentiate each operator.
    """
    constant = not (student.requires_grad and torch.is_grad_enabled())
    if constant or torch.compiler.is_compiling() or is_transformed(student):
        return formula(student, teacher)
    inputs = (student, teacher.detach(), formula, closed_form, dim, factor)
    return cast(Tensor, apply_function(_ClosedForm, *inputs))


class _ClosedForm(torch.autograd.Function):
    """The first derivative in closed form, and higher ones by the formula."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        formula: Formula,
        closed_form: ClosedForm,
        dim: int,
        factor: float,
    ) -> Tensor:
        values, derivative = closed_form(student, teacher)
        ctx.save_for_backward(student, teacher, derivative)
        ctx.formula, ctx.dim, ctx.factor = formula, dim, factor
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, derivative = ctx.saved_tensors
        if torch.is_grad_enabled():  # by `create_graph`: this result is differentiated again
            of_student = _by_formula(ctx.formula, student, teacher, gradient)
        else:
            scaled = gradient if ctx.factor == 1 else gradient * ctx.factor
            of_student = (derivative * scaled.unsqueeze(ctx.dim)).to(student.dtype)
        return of_student, None, None, None, None, None


def _by_formula(formula: Formula, student: Tensor, teacher: Tensor, gradient: Tensor) -> Tensor:
    # A view, so that the derivative stops here and does not go on to the student's parameters.
    student = student.view_as(student)
    values = formula(student, teacher)
    (of_student,) = torch.autograd.grad(values, student, gradient, create_graph=True)
    return of_student
