"""Laws of losses between a student and a teacher, and the losses that they are tested with.

To test a new loss, add a `LossCase` to `LOSSES`. If it does not satisfy a law, set a flag of the
case.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from oracles import (
    Batch,
    binary_kl,
    correlations,
    decoupled_kl,
    each,
    jensen_shannon,
    relations,
    reverse_kl,
    similarities,
    softmax_kl,
    squared_distance,
    standardized_kl,
)
from strategies import FINITE, SMOOTH
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from msdlosses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    HintLoss,
    JSDLoss,
    KDLoss,
    LogitMSELoss,
    MultiLabelKDLoss,
    ReverseKDLoss,
    RKDLoss,
    SPLoss,
)
from msdlosses import functional as F

NAN = float("nan")


@dataclass(frozen=True)
class LossCase:
    """A loss, its oracle, and the laws that it satisfies."""

    name: str
    make: Callable[..., DistillationLoss]
    """Takes options of every loss, such as `reduction`."""
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    """The function of the same loss, which returns one value per sample."""
    oracle: Callable[[Batch, Batch], Sequence[float]] | None = None
    """The value of each sample, by code that shares nothing with the library."""
    oracle_kinds: tuple[str, ...] = tuple(FINITE)
    """The kinds of logits for which the formula itself has 10 digits in float64."""
    divergence: bool = True
    """Never negative, and 0 with zero gradient where student and teacher agree."""
    shift_invariant: bool = True
    """A constant added to all logits of a sample does not change the loss."""
    permutation_invariant: bool = True
    """The order of the classes does not matter."""
    samples_independent: bool = True
    """The value of a sample does not depend on other samples. False for relational losses."""
    missing: tuple[str, ...] = ("one_hot", "missing")
    """The kinds of logits with -inf for which it is finite."""
    bounded_gradient: bool = True
    """The gradient does not grow with the logits, so float16 can hold it for logits of 6e4."""
    smooth: tuple[str, ...] = tuple(SMOOTH)
    """The kinds of logits at which it is twice differentiable."""

    def __str__(self) -> str:
        return self.name


# Losses


def pick_target(student: Tensor, teacher: Tensor, dim: int = -1) -> Tensor:
    """Pick a target class that moves with the logits when the classes are permuted."""
    return (teacher.double() + 1e-7 * student.detach().double()).argmax(dim)


class AimedDKDLoss(DKDLoss):
    """DKD with a target picked from the logits, for laws that pass no target."""

    needs_target = False

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        target = pick_target(student, teacher, self.dim)
        return super().per_sample(student, teacher, target, valid=valid)


def aimed_dkd(student: Tensor, teacher: Tensor, **options: float) -> Tensor:
    return F.dkd_loss(student, teacher, pick_target(student, teacher), **options)


def _kd(temperature: float, **options: float) -> LossCase:
    options = {"temperature": temperature} | options
    return LossCase(
        "kd, " + ", ".join(f"{key} {value:g}" for key, value in options.items()),
        partial(KDLoss, **options),
        partial(F.kl_divergence, **options),
        each(softmax_kl, **options),
    )


def _standardized_kd(temperature: float) -> LossCase:
    options = {"temperature": temperature}
    return LossCase(
        f"kd of standardized logits, tau {temperature:g}",
        partial(KDLoss, standardize=True, **options),
        partial(F.kl_divergence, standardize=True, **options),
        each(standardized_kl, **options),
    )


def _reverse(temperature: float, skew: float = 0.0) -> LossCase:
    options = {"temperature": temperature, "skew": skew}
    return LossCase(
        f"reverse kd, tau {temperature:g}, skew {skew:g}",
        partial(ReverseKDLoss, **options),
        partial(F.reverse_kl_divergence, **options),
        each(reverse_kl, **options),
        missing=("one_hot", "missing") if skew else ("missing",),
    )


def _jsd(beta: float, temperature: float = 1.0) -> LossCase:
    options = {"beta": beta, "temperature": temperature}
    ends = {0: softmax_kl, 1: reverse_kl}
    if beta in ends:
        oracle = each(ends[int(beta)], temperature=temperature)
    else:
        oracle = each(jensen_shannon, **options)
    return LossCase(
        f"jsd, beta {beta:g}, tau {temperature:g}",
        partial(JSDLoss, **options),
        partial(F.js_divergence, **options),
        oracle,
        missing=("missing",) if beta == 1 else ("one_hot", "missing"),
    )


def _multilabel(temperature: float) -> LossCase:
    options = {"temperature": temperature}
    return LossCase(
        f"multi-label kd, tau {temperature:g}",
        partial(MultiLabelKDLoss, **options),
        partial(F.multilabel_kl_divergence, **options),
        each(binary_kl, **options),
        shift_invariant=False,
    )


def _dkd(temperature: float, alpha: float, beta: float) -> LossCase:
    options = {"temperature": temperature, "alpha": alpha, "beta": beta}
    return LossCase(
        f"dkd, tau {temperature:g}, alpha {alpha:g}, beta {beta:g}",
        partial(AimedDKDLoss, **options),
        partial(aimed_dkd, **options),
        each(decoupled_kl, **options),
        smooth=("ordinary", "near"),  # at a tie the target would jump
    )


def _dist(temperature: float) -> LossCase:
    options = {"temperature": temperature}
    return LossCase(
        f"dist, tau {temperature:g}",
        partial(DISTLoss, **options),
        partial(F.dist_loss, **options),
        partial(correlations, **options),
        oracle_kinds=("ordinary", "near", "identical"),  # 1 - p loses digits where p is near 1
        samples_independent=False,
        smooth=("ordinary", "near"),
    )


def _vector_loss(name: str, make: Callable[..., DistillationLoss], **claims: Any) -> LossCase:
    return LossCase(name, make, **{"missing": (), "shift_invariant": False, **claims})


FEATURE_LOSSES = [
    _vector_loss(
        "hint",
        HintLoss,
        function=F.hint_loss,
        oracle=each(squared_distance, factor=0.5),
        bounded_gradient=False,
    ),
    _vector_loss(
        "rkd",
        RKDLoss,
        function=F.rkd_loss,
        oracle=partial(relations, distance=1.0, angle=2.0),
        samples_independent=False,
        smooth=("ordinary", "near"),
    ),
    _vector_loss(
        "sp",
        SPLoss,
        function=F.sp_loss,
        oracle=similarities,
        samples_independent=False,
    ),
]

LOSSES = [
    _kd(0.5),
    _kd(1.0),
    _kd(4.0),
    _kd(2.0, skew=0.1),
    _standardized_kd(2.0),
    _reverse(2.0),
    _reverse(1.0, skew=0.1),
    _jsd(0.0),
    _jsd(0.1, 2.0),
    _jsd(0.5),
    _jsd(0.9),
    _jsd(1.0),
    _multilabel(1.0),
    _multilabel(10.0),
    _dkd(1.0, 1.0, 8.0),
    _dkd(4.0, 0.0, 1.0),
    _dist(1.0),
    _dist(4.0),
    _vector_loss(
        "logit mse",
        LogitMSELoss,
        function=F.logit_mse_loss,
        oracle=each(squared_distance, factor=1.0),
        missing=("missing",),
        bounded_gradient=False,
    ),
    *FEATURE_LOSSES,
]


# Laws


def value_and_gradient(
    loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, **options: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss, and the gradient of its sum for the student."""
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher, **options)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


def zero_at_equality(case: LossCase, logits: Tensor) -> None:
    value, gradient = value_and_gradient(case.make(reduction="none"), logits, logits.clone())
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


def never_negative(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    assert (case.make().per_sample(student, teacher) >= -1e-7).all()


def not_negative_near_equality(case: LossCase, classes: int) -> None:
    """Test 100,000 samples, in batches of 8 for relational losses."""
    teacher = torch.randn(12_500, 8, classes)
    distance = 10 ** torch.empty(*teacher.shape[:-1], 1).uniform_(-7, -1)
    student = teacher + distance * torch.randn_like(teacher)
    per_sample = case.make().per_sample
    assert (torch.func.vmap(per_sample)(student, teacher) >= -1e-7).all()
    if case.samples_independent:  # with a gradient, which may be computed in closed form
        assert (per_sample(student.requires_grad_(), teacher) >= -1e-7).all()


def shift_invariant(case: LossCase, student: Tensor, teacher: Tensor, rng: torch.Generator) -> None:
    shifts = 1e3 * torch.randn((2, *student.shape[:-1], 1), generator=rng, dtype=student.dtype)
    per_sample = case.make().per_sample
    shifted = per_sample(student + shifts[0], teacher + shifts[1])
    assert_close(shifted, per_sample(student, teacher), rtol=0, atol=1e-9)


def permutation_invariant(
    case: LossCase, student: Tensor, teacher: Tensor, rng: torch.Generator
) -> None:
    order = torch.randperm(student.shape[-1], generator=rng)
    per_sample = case.make().per_sample
    permuted = per_sample(student[..., order], teacher[..., order])
    assert_close(permuted, per_sample(student, teacher))


def samples_independent(case: LossCase, student: Tensor, teacher: Tensor, others: Tensor) -> None:
    per_sample = case.make().per_sample
    corrupted = [logits.masked_fill(others.unsqueeze(-1), NAN) for logits in (student, teacher)]
    assert_close(per_sample(*corrupted)[~others], per_sample(student, teacher)[~others])


def permuted_batch_permutes_values(
    case: LossCase, student: Tensor, teacher: Tensor, rng: torch.Generator
) -> None:
    order = torch.randperm(len(student), generator=rng)
    per_sample = case.make().per_sample
    assert_close(per_sample(student[order], teacher[order]), per_sample(student, teacher)[order])


def positions_are_samples(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    per_sample = case.make().per_sample
    flat = per_sample(student.flatten(0, -2), teacher.flatten(0, -2))
    assert_close(per_sample(student, teacher), flat.reshape(student.shape[:-1]))


def invalid_logits_do_not_matter(
    case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor, fill: float
) -> None:
    """The value and gradient are those of the valid samples. Invalid ones get 0."""
    corrupted = [logits.masked_fill(~valid.unsqueeze(-1), fill) for logits in (student, teacher)]
    for reduction in ("mean", "sum"):
        loss = case.make(reduction=reduction)
        value, gradient = value_and_gradient(loss, *corrupted, valid=valid)
        expected, expected_gradient = value_and_gradient(loss, student[valid], teacher[valid])
        assert_close(value, expected)
        assert_close(gradient[valid], expected_gradient)
        assert torch.equal(gradient[~valid], torch.zeros_like(gradient[~valid]))
    values = case.make(reduction="none")(*corrupted, valid=valid)
    assert torch.equal(values[~valid], torch.zeros_like(values[~valid]))


def sum_is_count_times_mean(
    case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor
) -> None:
    mean, total, unreduced = (case.make(reduction=name) for name in ("mean", "sum", "none"))
    for options, count in (({}, valid.numel()), ({"valid": valid}, int(valid.sum()))):
        expected = total(student, teacher, **options)
        assert_close(mean(student, teacher, **options) * count, expected)
        assert_close(unreduced(student, teacher, **options).sum(), expected)


def zero_without_valid_samples(
    case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor | None
) -> None:
    """The loss is a 0 that is connected to the student's graph, with zero gradient."""
    for reduction in ("mean", "sum"):
        student = student.detach().requires_grad_()
        value = case.make(reduction=reduction)(student, teacher, valid=valid)
        assert value.requires_grad
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def agrees_with_oracle(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    assert case.oracle is not None
    expected = case.oracle(*(logits.flatten(0, -2).tolist() for logits in (student, teacher)))
    values = case.make().per_sample(student, teacher)
    # A value near 0 is a difference of numbers near 1, so only its absolute error is small.
    expected_values = torch.tensor(expected, dtype=torch.float64).reshape(values.shape)
    assert_close(values, expected_values, rtol=1e-10, atol=1e-13)


def half_precision_is_computed_in_float32(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    per_sample = case.make().per_sample
    values = per_sample(student, teacher)
    assert values.dtype == torch.float32
    assert torch.equal(values, per_sample(student.float(), teacher.float()))


def finite(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """The values and their first two derivatives are finite."""
    student = student.requires_grad_()
    values = case.make(reduction="none")(student, teacher)
    (first,) = torch.autograd.grad(values.sum(), student, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), student)
    assert all(result.isfinite().all() for result in (values, first, second))


def missing_classes_do_not_matter(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """Logits of -inf in both student and teacher are the same as removed classes."""
    loss = case.make(reduction="none")
    values, gradient = value_and_gradient(loss, student, teacher)
    for n, exists in enumerate(teacher.isfinite()):
        remaining = [logits[n, exists].unsqueeze(0) for logits in (student, teacher)]
        expected, expected_gradient = value_and_gradient(loss, *remaining)
        assert_close(values[n : n + 1], expected)
        assert_close(gradient[n : n + 1, exists], expected_gradient)
        assert torch.equal(gradient[n, ~exists], torch.zeros_like(gradient[n, ~exists]))


def teacher_gets_no_gradient(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    teacher = teacher.requires_grad_()
    loss = case.make()
    assert not loss.eval()(student, teacher).requires_grad
    student = student.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def module_equals_function(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    assert case.function is not None
    values = case.function(student, teacher)
    assert torch.equal(case.make(reduction="none")(student, teacher), values)
    assert torch.equal(case.make(reduction="sum")(student, teacher), values.sum())


def derivatives_match_finite_differences(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """Test first and second order, backward and forward mode, and batches of gradients."""
    student = student.requires_grad_()
    loss = case.make(reduction="none")
    assert gradcheck(loss, (student, teacher), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, (student, teacher))


def gradient_equals_that_of_the_operators(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """`torch.func` differentiates operator by operator; a backward pass may use a closed form."""
    loss = case.make()
    values, gradient = value_and_gradient(loss.per_sample, student, teacher)
    assert_close(values, loss.per_sample(student, teacher), atol=1e-6, rtol=1e-5)
    expected = torch.func.grad(lambda s: loss.per_sample(s, teacher).sum())(student)
    size = max(teacher.nan_to_num(0, 0, 0).abs().max().item(), 1.0) if teacher.numel() else 1.0
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5}[student.dtype]
    assert_close(gradient, expected, rtol=10 * rounding, atol=rounding * size)


def forward_mode_equals_backward_mode(
    case: LossCase, student: Tensor, teacher: Tensor, tangent: Tensor
) -> None:
    loss = case.make()
    value, gradient = value_and_gradient(loss, student, teacher)
    primal, derivative = torch.func.jvp(lambda s: loss(s, teacher), (student,), (tangent,))
    assert_close(primal, value)
    products = gradient * tangent
    # Both are sums in which large summands may cancel.
    rounding = 1e-5 if student.dtype == torch.float32 else 1e-12
    size = max(products.abs().sum().item(), 1.0)
    assert_close(derivative, products.sum(), rtol=0, atol=rounding * size)


def vmap_equals_loop(case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor) -> None:
    def loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        return case.make()(student, teacher, valid=valid)

    batches = list(zip(student, teacher, valid, strict=True))
    for function in (loss, torch.func.grad(loss)):
        expected = torch.stack([function(*batch) for batch in batches])
        assert_close(torch.func.vmap(function)(student, teacher, valid), expected)


def compiled_equals_eager(case: LossCase, student: Tensor, teacher: Tensor, valid: Tensor) -> None:
    loss = case.make()
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for options in ({}, {"valid": valid}):
        actual = value_and_gradient(compiled, student, teacher, **options)
        assert_close(actual, value_and_gradient(loss, student, teacher, **options))


def copies_equal_the_original(case: LossCase, student: Tensor, teacher: Tensor) -> None:
    """Test a deep copy, a pickled copy, and a new loss that loads the state dict."""
    loss = case.make()
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    loaded = case.make()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(student, teacher), loss(student, teacher))
