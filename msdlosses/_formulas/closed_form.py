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
    """Takes the gradient of the loss from the closed form."""

    @staticmethod
    def forward(ctx: Any, form: ClosedForm, *logits: Tensor) -> Tensor:
        values, derivatives = _stacked(form, logits) or _one_by_one(form, logits)
        ctx.form = form
        ctx.save_for_backward(*logits, *derivatives)
        values = values.clamp_(min=0)  # negative values can only come from rounding
        return values if form.value_scale == 1 else values.mul_(form.value_scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        form, saved = ctx.form, ctx.saved_tensors
        views = len(saved) // 3
        logits, derivatives = saved[: 2 * views], saved[2 * views :]
        if not torch.is_grad_enabled():
            of_students = _multiply(form, gradient, logits, derivatives)
        elif is_transformed(gradient):
            of_students = _by_formula(form, gradient, logits)
        else:  # `create_graph`: the result may be differentiated again
            of_students = apply_function(_DifferentiateAgain, form, derivatives, gradient, *logits)
        return None, *of_students, *[None] * views


class _DifferentiateAgain(torch.autograd.Function):
    """Returns the same gradient, bit by bit, and takes higher derivatives from the formula."""

    @staticmethod
    def forward(
        ctx: Any,
        form: ClosedForm,
        derivatives: tuple[Tensor, ...],
        gradient: Tensor,
        *logits: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.form = form
        ctx.save_for_backward(gradient, *logits)
        return _multiply(form, gradient, logits, derivatives)

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that derivatives stop here and do not go on to the student's parameters.
            gradient, *logits = (x.view_as(x) for x in ctx.saved_tensors)
            inputs = [gradient, *logits[: len(of_results)]]
            wanted = [x for x in inputs if x.requires_grad]
            results = _by_formula(ctx.form, gradient, tuple(logits))
        found = iter(torch.autograd.grad(results, wanted, of_results, create_graph=create_graph))
        of_inputs = [next(found) if x.requires_grad else None for x in inputs]
        return None, None, *of_inputs, *[None] * len(of_results)


def _multiply(
    form: ClosedForm,
    gradient: Tensor,
    logits: tuple[Tensor, ...],
    derivatives: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Return the gradient of each student's logits."""
    scaled = gradient if form.gradient_scale == 1 else gradient * form.gradient_scale
    columns = zip(logits, derivatives, _columns(scaled, len(derivatives)), strict=False)
    return tuple([(d * g.unsqueeze(form.dim)).to(student.dtype) for student, d, g in columns])


def _by_formula(
    form: ClosedForm, gradient: Tensor, logits: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the same gradient, with a graph."""
    pairs = [(student.view_as(student), teacher) for student, teacher in _pairs(logits)]
    values = [form.formula(*pair) for pair in pairs]
    columns = _columns(gradient, len(pairs))
    return torch.autograd.grad(values, [s for s, _ in pairs], columns, create_graph=True)


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


def _pairs(logits: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair the students' logits, in the first half, with the teachers'."""
    half = len(logits) // 2
    return list(zip(logits[:half], logits[half:], strict=True))


def _columns(gradient: Tensor, views: int) -> Sequence[Tensor]:
    return (gradient,) if views == 1 else gradient.unbind(-1)
