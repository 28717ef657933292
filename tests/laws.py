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
from typing import Any

import numpy as np
import torch
from mpmath import exp, fsum, inf, log, mpf, sqrt, workdps
from scipy.spatial.distance import cdist
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
DIGITS = 60

Row = Sequence[float]
Rows = Sequence[Row]


@dataclass(frozen=True)
class LossCase:
    """A loss and what it claims."""

    name: str
    make: Callable[..., DistillationLoss]
    """Takes `reduction`."""
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    """The same rows as a function."""
    oracle: Callable[[Rows, Rows], Sequence[float]] | None = None
    """The rows of a batch, by code that shares nothing with the library's."""
    oracle_kinds: tuple[str, ...] = tuple(FINITE)
    """The logits for which the formula itself has 10 digits in float64."""
    divergence: bool = True
    """Never negative, and 0 with zero gradient where student and teacher agree."""
    shift_invariant: bool = True
    """To a constant that is added to all logits of a row."""
    permutation_invariant: bool = True
    """To the order of the classes."""
    rows_independent: bool = True
    """A sample's row does not depend on the other samples: not so for relational losses."""
    missing: tuple[str, ...] = ("one_hot", "missing")
    """The logits with -inf for which it is finite: in both, a class that does not exist."""
    bounded_gradient: bool = True
    """It does not grow with the logits, so that at +-6e4 it has a place in half precision."""
    smooth: tuple[str, ...] = tuple(SMOOTH)
    """The logits at which it can be differentiated twice."""

    def __str__(self) -> str:
        return self.name


# --- oracles, in 60 digits or in NumPy


def each(oracle: Callable[..., float], **options: float) -> Callable[[Rows, Rows], list[float]]:
    """An oracle of one row, for every row of a batch."""

    def rows(student: Rows, teacher: Rows) -> list[float]:
        with workdps(DIGITS):
            pairs = zip(student, teacher, strict=True)
            return [float(oracle(s, t, **options)) for s, t in pairs]

    return rows


def softmax(row: Sequence[mpf], temperature: float = 1.0) -> list[mpf]:
    powers = [exp(mpf(x) / mpf(temperature)) for x in row]
    return [x / fsum(powers) for x in powers]


def relative_entropy(p: Sequence[mpf], q: Sequence[mpf]) -> mpf:
    return fsum(_relative_entropy(a, b) for a, b in zip(p, q, strict=True))


def _relative_entropy(p: mpf, q: mpf) -> mpf:
    if p == 0:
        return mpf(0)
    return p * log(p / q) if q else inf


def mixture(p: Sequence[mpf], q: Sequence[mpf], share: float) -> list[mpf]:
    return [mpf(share) * a + (1 - mpf(share)) * b for a, b in zip(p, q, strict=True)]


def softmax_kl(student: Row, teacher: Row, *, temperature: float, skew: float = 0.0) -> mpf:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return mpf(temperature) ** 2 * relative_entropy(p, mixture(p, q, skew))


def reverse_kl(student: Row, teacher: Row, *, temperature: float, skew: float = 0.0) -> mpf:
    return softmax_kl(teacher, student, temperature=temperature, skew=skew)


def standardized_kl(student: Row, teacher: Row, *, temperature: float) -> mpf:
    return softmax_kl(standardized(student), standardized(teacher), temperature=temperature)


def standardized(row: Row) -> list[mpf]:
    there = [mpf(x) for x in row if x > -inf]
    mean = fsum(there) / len(there)
    deviation = sqrt(fsum((x - mean) ** 2 for x in there) / len(there))
    return [(mpf(x) - mean) / max(deviation, mpf("0.01")) for x in row]


def jensen_shannon(student: Row, teacher: Row, *, beta: float, temperature: float) -> mpf:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    m = mixture(p, q, beta)
    parts = mpf(beta) * relative_entropy(p, m), (1 - mpf(beta)) * relative_entropy(q, m)
    return mpf(temperature) ** 2 * fsum(parts)


def binary_kl(student: Row, teacher: Row, *, temperature: float) -> mpf:
    tau = mpf(temperature)
    p, q = (
        [1 / (1 + exp(-sign * mpf(x) / tau)) for x in row for sign in (1, -1)]
        for row in (teacher, student)
    )
    return tau**2 * relative_entropy(p, q)


def decoupled_kl(
    student: Row, teacher: Row, *, temperature: float, alpha: float, beta: float
) -> mpf:
    target = max(range(len(student)), key=lambda c: teacher[c] + 1e-7 * student[c])
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    others = [c for c in range(len(student)) if c != target]
    rest = [fsum(row[c] for c in others) for row in (p, q)]
    of_target = relative_entropy([p[target], rest[0]], [q[target], rest[1]])
    of_others = mpf(0)
    if all(rest):
        parts = ([row[c] / total for c in others] for row, total in zip((p, q), rest, strict=True))
        of_others = relative_entropy(*parts)
    return mpf(temperature) ** 2 * (alpha * of_target + beta * of_others)


def squared_distance(student: Row, teacher: Row, *, factor: float) -> mpf:
    there = [(s, t) for s, t in zip(student, teacher, strict=True) if not s == t == -inf]
    return factor * fsum((mpf(s) - mpf(t)) ** 2 for s, t in there)


def correlations(student: Rows, teacher: Rows, *, temperature: float) -> list[float]:
    """1 - Pearson's rho; half the squared length of what is left where one has no direction."""
    with workdps(DIGITS):
        p, q = ([softmax(row, temperature) for row in rows] for rows in (teacher, student))
        share = mpf(len(p)) / max(len(p[0]) if p else 1, 1)
        inter = [halves(q[n], p[n]) for n in range(len(p))]
        across = ([*zip(*rows, strict=True)] for rows in (q, p))
        intra = [halves(*sides) for sides in zip(*across, strict=True)]
        tau = mpf(temperature) ** 2
        return [
            float(tau * (fsum(inter[n]) + share * fsum(column[n] for column in intra)))
            for n in range(len(p))
        ]


def halves(student: Row, teacher: Row) -> list[mpf]:
    a, b = direction(student), direction(teacher)
    return [(x - y) ** 2 / 2 for x, y in zip(a, b, strict=True)]


def direction(row: Row) -> list[mpf]:
    mean = fsum(row) / len(row)
    length = sqrt(fsum((x - mean) ** 2 for x in row))
    size = sqrt(fsum(x**2 for x in row))
    constant = length <= max(16 * 2.3e-16 * size, mpf("1e-76"))
    return [mpf(0) if constant else (x - mean) / length for x in row]


def relations(student: Rows, teacher: Rows, *, distance: float, angle: float) -> list[float]:
    q, p = (np.array(rows, dtype=np.longdouble) for rows in (student, teacher))
    count, total = len(q), np.zeros(len(q))
    if count > 1:
        apart = huber(relative_distances(q) - relative_distances(p))
        total += distance * (apart.sum(1) - np.diag(apart)) / (count - 1)
    if count > 2:
        for n in range(count):
            apart = huber(cosines_at(q, n) - cosines_at(p, n))
            total[n] += angle * (apart.sum() - np.trace(apart)) / ((count - 1) * (count - 2))
    return total.tolist()


def huber(x: np.ndarray) -> np.ndarray:
    return np.where(abs(x) < 1, x**2 / 2, abs(x) - 0.5)


def relative_distances(x: np.ndarray) -> np.ndarray:
    apart = cdist(x.astype(float), x.astype(float))
    apart[apart <= 16 * 2.3e-16 * abs(x).max()] = 0
    mean = apart.sum() / (len(x) * (len(x) - 1))
    return apart / mean if mean else apart


def cosines_at(x: np.ndarray, n: int) -> np.ndarray:
    """Between the directions from sample n to all others."""
    edges = np.delete(x - x[n], n, 0)
    lengths = np.linalg.norm(edges.astype(float), axis=1)
    some = lengths > 16 * 2.3e-16 * abs(x).max()
    units = np.where(some[:, None], edges / np.where(some, lengths, 1)[:, None], 0)
    return units @ units.T


def similarities(student: Rows, teacher: Rows) -> list[float]:
    if not len(student):
        return []
    q, p = (np.array(rows, dtype=np.longdouble) for rows in (student, teacher))
    unit = [g / np.sqrt((g**2).sum(1, keepdims=True)) for g in (q @ q.T, p @ p.T)]
    return ((unit[0] - unit[1]) ** 2).mean(1).tolist()


# --- the losses


def pick_target(student: Tensor, teacher: Tensor, dim: int = -1) -> Tensor:
    """A class that follows the logits when their order changes."""
    return (teacher.double() + 1e-7 * student.detach().double()).argmax(dim)


class AimedDKDLoss(DKDLoss):
    """DKD of which the target follows from the logits, for laws that know no target."""

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        target = pick_target(student, teacher, self.dim)
        return super().rows(student, teacher, target, valid=valid)


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
        f"kd of standardised logits, tau {temperature:g}",
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
        smooth=("ordinary", "near"),  # in a tie the target itself would jump
    )


def _dist(temperature: float) -> LossCase:
    options = {"temperature": temperature}
    return LossCase(
        f"dist, tau {temperature:g}",
        partial(DISTLoss, **options),
        partial(F.dist_loss, **options),
        partial(correlations, **options),
        oracle_kinds=("ordinary", "near", "identical"),  # 1 - p loses digits where p is sure
        rows_independent=False,
        smooth=("ordinary", "near"),
    )


def _features(name: str, loss: Callable[..., DistillationLoss], **claims: Any) -> LossCase:
    return LossCase(name, loss, missing=claims.pop("missing", ()), shift_invariant=False, **claims)


FEATURE_LOSSES = [
    _features(
        "hint",
        HintLoss,
        function=F.hint_loss,
        oracle=each(squared_distance, factor=0.5),
        bounded_gradient=False,
    ),
    _features(
        "rkd",
        RKDLoss,
        function=F.rkd_loss,
        oracle=partial(relations, distance=1.0, angle=2.0),
        rows_independent=False,
        smooth=("ordinary", "near"),
    ),
    _features(
        "sp",
        SPLoss,
        function=F.sp_loss,
        oracle=similarities,
        rows_independent=False,
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
    _features(
        "logit mse",
        LogitMSELoss,
        function=F.logit_mse_loss,
        oracle=each(squared_distance, factor=1.0),
        missing=("missing",),
        bounded_gradient=False,
    ),
    *FEATURE_LOSSES,
]


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
    """100,000 of them, for relational losses in batches of 8."""
    teacher = torch.randn(12_500, 8, classes)
    apart = 10 ** torch.empty(*teacher.shape[:-1], 1).uniform_(-7, -1)
    student = teacher + apart * torch.randn_like(teacher)
    assert (torch.func.vmap(case.make().rows)(student, teacher) >= -1e-7).all()


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
    expected = case.oracle(*(x.flatten(0, -2).tolist() for x in (student, teacher)))
    rows = case.make().rows(student, teacher)
    # Near 0 a row is a difference of numbers of size 1, and has their absolute accuracy.
    wanted = torch.tensor(expected, dtype=torch.float64).reshape(rows.shape)
    assert_close(rows, wanted, rtol=1e-10, atol=1e-13)


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
    parts = gradient * tangent
    # Both are sums in which large parts may cancel.
    rounding = 1e-5 if student.dtype == torch.float32 else 1e-12
    size = max(parts.abs().sum().item(), 1.0)
    assert_close(slope, parts.sum(), rtol=0, atol=rounding * size)


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
