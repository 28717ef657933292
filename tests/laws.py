"""What every loss between a student and a teacher obeys, as shared assertions over a case.

A new loss joins by a line in `LOSSES`; what it does not claim is a flag of its `LossCase`.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from mpmath import exp, fsum, inf, log, mpf, workdps
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from msdlosses import DistillationLoss, KDLoss, MultiLabelKDLoss
from msdlosses.functional import kl_divergence, multilabel_kl_divergence

NAN = float("nan")
DIGITS = 60

Row = Sequence[float]


@dataclass(frozen=True)
class LossCase:
    """A loss and what it claims."""

    name: str
    make: Callable[..., DistillationLoss]
    """Takes `reduction`."""
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    """The same rows as a function."""
    oracle: Callable[[Row, Row], float] | None = None
    """The row of one sample, by code that shares nothing with the library's."""
    divergence: bool = True
    """Never negative, and 0 with zero gradient where student and teacher agree."""
    shift_invariant: bool = True
    """To a constant that is added to all logits of a row."""
    permutation_invariant: bool = True
    """To the order of the classes."""
    rows_independent: bool = True
    """A sample's row does not depend on the other samples: not so for relational losses."""
    missing_classes: bool = True
    """-inf in both stands for a class that does not exist."""

    def __str__(self) -> str:
        return self.name


def softmax_kl(student: Row, teacher: Row, *, temperature: float) -> float:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) in 60 digits."""
    with workdps(DIGITS):
        tau = mpf(temperature)
        p, q = ([exp(mpf(x) / tau) for x in row] for row in (teacher, student))
        p, q = ([x / fsum(row) for x in row] for row in (p, q))
        return float(tau**2 * fsum(_relative_entropy(a, b) for a, b in zip(p, q, strict=True)))


def binary_kl(student: Row, teacher: Row, *, temperature: float) -> float:
    """tau^2 times the sum of the divergences of Bernoulli variables, in 60 digits."""
    with workdps(DIGITS):
        tau = mpf(temperature)
        p, q = (
            [1 / (1 + exp(-sign * mpf(x) / tau)) for x in row for sign in (1, -1)]
            for row in (teacher, student)
        )
        return float(tau**2 * fsum(_relative_entropy(a, b) for a, b in zip(p, q, strict=True)))


def _relative_entropy(p: mpf, q: mpf) -> mpf:
    if p == 0:
        return mpf(0)
    return p * log(p / q) if q else inf


def _kd(temperature: float) -> LossCase:
    options = {"temperature": temperature}
    return LossCase(
        f"kd, tau {temperature:g}",
        partial(KDLoss, **options),
        partial(kl_divergence, **options),
        partial(softmax_kl, **options),
    )


def _multilabel(temperature: float) -> LossCase:
    options = {"temperature": temperature}
    return LossCase(
        f"multi-label kd, tau {temperature:g}",
        partial(MultiLabelKDLoss, **options),
        partial(multilabel_kl_divergence, **options),
        partial(binary_kl, **options),
        shift_invariant=False,
    )


LOSSES = [_kd(0.5), _kd(1.0), _kd(4.0), _multilabel(1.0), _multilabel(10.0)]


def value_and_gradient(
    loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, **options: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss, summed if it is unreduced, and its gradient for the student."""
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher, **options)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


def zero_at_equality(case: LossCase, logits: Tensor) -> None:
    value, gradient = value_and_gradient(case.make(reduction="none"), logits, logits.clone())
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


def never_negative(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    assert (case.make().rows(student, teacher) >= -1e-7).all()


def near_equal_rows_are_not_negative(case: LossCase, classes: int) -> None:
    teacher = torch.randn(100_000, classes)
    apart = 10 ** torch.empty(len(teacher), 1).uniform_(-7, -1)
    never_negative(case, teacher + apart * torch.randn_like(teacher), teacher)


def shift_invariant(case: LossCase, student: Tensor, teacher: Tensor, rng: torch.Generator) -> None:
    shifts = 1e3 * torch.randn((2, *student.shape[:-1], 1), generator=rng, dtype=student.dtype)
    rows = case.make().rows
    assert_close(
        rows(student + shifts[0], teacher + shifts[1]), rows(student, teacher), rtol=0, atol=1e-9
    )


def permutation_invariant(
    case: LossCase, student: Tensor, teacher: Tensor, rng: torch.Generator
) -> None:
    order = torch.randperm(student.shape[-1], generator=rng)
    rows = case.make().rows
    assert_close(rows(student[..., order], teacher[..., order]), rows(student, teacher))


def rows_independent(case: LossCase, student: Tensor, teacher: Tensor, others: Tensor) -> None:
    rows = case.make().rows
    spoilt = [logits.masked_fill(_last(others), NAN) for logits in (student, teacher)]
    assert_close(rows(*spoilt)[~others], rows(student, teacher)[~others])


def batch_permutation_permutes_rows(
    case: LossCase, student: Tensor, teacher: Tensor, rng: torch.Generator
) -> None:
    order = torch.randperm(len(student), generator=rng)
    rows = case.make().rows
    assert_close(rows(student[order], teacher[order]), rows(student, teacher)[order])


def positions_are_samples(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    rows = case.make().rows
    flat = rows(student.flatten(0, -2), teacher.flatten(0, -2))
    assert_close(rows(student, teacher), flat.reshape(student.shape[:-1]))


def invalid_is_left_out(
    case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor, fill: float
) -> None:
    """Whatever the logits of what is invalid: the same value and gradient, there 0."""
    spoilt = [logits.masked_fill(~_last(valid), fill) for logits in (student, teacher)]
    for reduction in ("mean", "sum"):
        loss = case.make(reduction=reduction)
        value, gradient = value_and_gradient(loss, *spoilt, valid=valid)
        expected, expected_gradient = value_and_gradient(loss, student[valid], teacher[valid])
        assert_close(value, expected)
        assert_close(gradient[valid], expected_gradient)
        assert torch.equal(gradient[~valid], torch.zeros_like(gradient[~valid]))
    rows = case.make(reduction="none")(*spoilt, valid=valid)
    assert torch.equal(rows[~valid], torch.zeros_like(rows[~valid]))


def sum_is_count_times_mean(
    case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor
) -> None:
    mean, total, rows = (case.make(reduction=name) for name in ("mean", "sum", "none"))
    for options, count in (({}, valid.numel()), ({"valid": valid}, int(valid.sum()))):
        expected = total(student, teacher, **options)
        assert_close(mean(student, teacher, **options) * count, expected)
        assert_close(rows(student, teacher, **options).sum(), expected)


def nothing_valid_is_a_joined_zero(
    case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor | None
) -> None:
    for reduction in ("mean", "sum"):
        student = student.detach().requires_grad_()
        value = case.make(reduction=reduction)(student, teacher, valid=valid)
        assert value.requires_grad
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def agrees_with_oracle(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    assert case.oracle is not None
    pairs = zip(student.flatten(0, -2).tolist(), teacher.flatten(0, -2).tolist(), strict=True)
    expected = torch.tensor([case.oracle(s, t) for s, t in pairs], dtype=torch.float64)
    rows = case.make().rows(student, teacher)
    # Near 0 a row is a difference of numbers of size 1, and has their absolute accuracy.
    assert_close(rows, expected.reshape(rows.shape), rtol=1e-10, atol=1e-13)


def half_is_computed_in_float32(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    rows = case.make().rows
    value = rows(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, rows(student.float(), teacher.float()))


def finite(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """The value and its first two derivatives."""
    student = student.requires_grad_()
    value = case.make(reduction="none")(student, teacher)
    (slope,) = torch.autograd.grad(value.sum(), student, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), student)
    assert all(result.isfinite().all() for result in (value, slope, bend))


def missing_classes_count_nothing(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """-inf in both is the same as a row without these classes."""
    rows = case.make(reduction="none")
    value, gradient = value_and_gradient(rows, student, teacher)
    for n, exists in enumerate(teacher.isfinite()):
        kept = [logits[n, exists].unsqueeze(0) for logits in (student, teacher)]
        expected, expected_gradient = value_and_gradient(rows, *kept)
        assert_close(value[n : n + 1], expected)
        assert_close(gradient[n : n + 1, exists], expected_gradient)
        assert torch.equal(gradient[n, ~exists], torch.zeros_like(gradient[n, ~exists]))


def teacher_gets_no_gradient(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    teacher = teacher.requires_grad_()
    loss = case.make()
    assert not loss(student, teacher).requires_grad
    student = student.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def module_equals_function(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    assert case.function is not None
    rows = case.function(student, teacher)
    assert torch.equal(case.make(reduction="none")(student, teacher), rows)
    assert torch.equal(case.make(reduction="sum")(student, teacher), rows.sum())


def derivatives_are_right(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """By differences: first and second order, backward and forward mode, one and many."""
    student = student.requires_grad_()
    loss = case.make(reduction="none")
    every_way = {"check_forward_ad": True, "check_batched_grad": True}
    assert gradcheck(loss, (student, teacher), **every_way)
    assert gradgradcheck(loss, (student, teacher))


def forward_mode_equals_backward(
    case: LossCase, student: Tensor, teacher: Tensor, tangent: Tensor
) -> None:
    loss = case.make()
    value, gradient = value_and_gradient(loss, student, teacher)
    primal, slope = torch.func.jvp(lambda s: loss(s, teacher), (student,), (tangent,))
    assert_close(primal, value)
    assert_close(slope, (gradient * tangent).sum())


def vmap_equals_a_loop(case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor) -> None:
    def loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return case.make()(student, teacher, valid=valid)

    batches = list(zip(student, teacher, valid, strict=True))
    for mapped in (loss, torch.func.grad(loss)):
        expected = torch.stack([mapped(*batch) for batch in batches])
        assert_close(torch.func.vmap(mapped)(student, teacher, valid), expected)


def compiled_equals_eager(case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor) -> None:
    loss = case.make()
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for options in ({}, {"valid": valid}):
        actual = value_and_gradient(compiled, student, teacher, **options)
        assert_close(actual, value_and_gradient(loss, student, teacher, **options))


def survives_copies(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """A deep copy, a pickle, and a new loss that takes the old one's state."""
    loss = case.make()
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    loaded = case.make()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for twin in (loaded, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(student, teacher), loss(student, teacher))


def _last(valid: Tensor) -> Tensor:
    """A mask of rows as one of logits."""
    return valid.unsqueeze(-1)
