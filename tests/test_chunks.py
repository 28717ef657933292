"""Rows a few at a time: the values and derivatives of all at once, in the memory of a few."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from laws import LOSSES, LossCase
from torch import Tensor, nn
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from msdlosses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    FixedWeighting,
    JSDLoss,
    KDLoss,
    MSDLoss,
    SPLoss,
)

F64 = torch.double
NAN = float("nan")
CASES = [
    case for case in LOSSES if not case.make().relational and case.name not in ("hint", "rkd", "sp")
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_size = pytest.mark.parametrize("size", [1, 3, 7, 50])


def logits(*shape: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, *shape, dtype=dtype)
    return student.requires_grad_(), teacher


def both(make: Callable[..., DistillationLoss], size: int) -> list[DistillationLoss]:
    """All rows at once, and a few."""
    return [make(reduction="none", rows_at_once=rows) for rows in (None, size)]


# Equal to all rows at once


@every_case
@every_size
@pytest.mark.parametrize("shape", [(7, 5), (2, 4, 5), (0, 5), (5,)], ids=str)
def test_values_and_gradients_are_those_of_all_rows(
    case: LossCase, size: int, shape: tuple[int, ...]
) -> None:
    student, teacher = logits(*shape)
    expected, rows = (loss(student, teacher) for loss in both(case.make, size))
    assert_close(rows, expected, rtol=1e-12, atol=1e-14)
    upstream = torch.randn_like(rows)
    assert_close(grad(rows, student, upstream), grad(expected, student, upstream))


@every_case
@pytest.mark.parametrize("of_sample", [True, False])
def test_what_is_not_valid_is_left_out(case: LossCase, of_sample: bool) -> None:
    student, teacher = logits(3, 4, 5)
    valid = torch.tensor([True, False, True])
    if not of_sample:
        valid = valid.unsqueeze(1) & (torch.arange(4) < 2)
    with torch.no_grad():
        student[1], teacher[1] = NAN, NAN
    expected, rows = (loss(student, teacher, valid=valid) for loss in both(case.make, 3))
    assert_close(rows, expected, rtol=1e-12, atol=1e-14)
    found = grad(rows.sum(), student)[0]
    assert_close(found, grad(expected.sum(), student)[0])
    assert found.isfinite().all()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_targets_go_along_with_their_rows(size: int) -> None:
    student, teacher = logits(2, 4, 5)
    target = torch.randint(5, (2, 4))
    target[0, 1] = -100
    losses = (DKDLoss(2.0, ignore_index=-100, rows_at_once=rows) for rows in (None, size))
    assert_close(*(loss(student, teacher, target) for loss in losses))


def test_a_target_of_other_axes_is_as_good_or_bad_as_without() -> None:
    student, teacher = logits(4, 3, 5)
    target = torch.randint(5, (4,))
    losses = (KDLoss(rows_at_once=rows) for rows in (None, 2))
    assert_close(*(loss(student, teacher, target) for loss in losses))
    with pytest.raises(ValueError, match=r"`target` of shape \(4, 3\), got \(4,\)"):
        DKDLoss(rows_at_once=4)(student, teacher, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    student, teacher = logits(7, 5, dtype=dtype)
    expected, rows = (loss(student, teacher) for loss in both(KDLoss, 2))
    assert_close(rows, expected)
    assert_close(*(grad(x.sum(), student) for x in (rows, expected)))


def test_a_loss_of_views() -> None:
    student = {view: logits(6, 5)[0] for view in ("full", "text")}
    teacher = {view: logits(6, 5)[1] for view in student}
    valid = torch.rand(6, 2) < 0.6
    msds = (
        MSDLoss(KDLoss(2.0, rows_at_once=r), FixedWeighting(full=1.0, text=0.5)) for r in (None, 4)
    )
    losses = [msd(student, teacher, valid=valid) for msd in msds]
    assert_close(*losses)
    found = [grad(loss, list(student.values())) for loss in losses]
    assert_close(*found)


def test_neither_side_asks_for_more_than_it_needs() -> None:
    student, teacher = logits(4, 5)
    loss = KDLoss(rows_at_once=2)
    assert not loss(student.detach(), teacher).requires_grad
    teacher.requires_grad_()
    assert grad(loss(student, teacher), (student, teacher), allow_unused=True)[1] is None


# Derivatives of every kind


@every_case
def test_gradients_are_right_to_second_order(case: LossCase) -> None:
    loss = case.make(reduction="none", rows_at_once=2)
    student, teacher = logits(3, 4)
    assert gradcheck(lambda s: loss(s, teacher), student, check_forward_ad=True)
    assert gradcheck(lambda s: loss(s, teacher), student, check_batched_grad=True)
    assert gradgradcheck(lambda s: loss(s, teacher), student)


def test_a_learned_temperature_to_second_order() -> None:
    kd = KDLoss(2.0, learn_temperature=True, reduction="none", rows_at_once=2).double()
    student, teacher = logits(5, 4)

    def rows(student: Tensor, log_tau: Tensor) -> Tensor:
        return functional_call(kd, {"log_temperature": log_tau}, (student, teacher))

    inputs = (student, torch.tensor(0.7, dtype=F64, requires_grad=True))
    assert gradcheck(rows, inputs, check_forward_ad=True)
    assert gradgradcheck(rows, inputs)
    # Logits that depend on tau themselves: its own part is counted once.
    assert gradgradcheck(lambda log_tau: rows(student.detach() * log_tau, log_tau), inputs[1:])


def test_a_learned_temperature_learns_though_the_student_does_not() -> None:
    student, teacher = torch.randn(2, 5, 4)
    losses = [KDLoss(2.0, learn_temperature=True, rows_at_once=rows) for rows in (None, 2)]
    for loss in losses:
        loss(student, teacher).backward()
    assert_close(*(loss.log_temperature.grad for loss in losses))


def test_dual_numbers_before_and_after_the_loss() -> None:
    """Forward over reverse: tangents of the logits, or of what the rows are multiplied with."""
    student, teacher = logits(5, 4)
    direction, weights = torch.randn_like(student), torch.rand(5, dtype=F64)
    found = []
    for loss in both(KDLoss, 2):
        with forward_ad.dual_level():
            dual: Any = forward_ad.make_dual(student, direction)
            slope = grad((loss(dual, teacher) * weights).sum(), student)[0]
            weighed: Any = forward_ad.make_dual(weights, weights.cos())
            other = grad((loss(student, teacher) * weighed).sum(), student)[0]
            found.append([forward_ad.unpack_dual(x).tangent for x in (slope, other)])
    assert None not in found[0]
    assert_close(*found)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "hessian", "jacobian"])
def test_works_in_torch_func(transform: str) -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=F64)
    found = []
    for loss in both(KDLoss, 2):

        def total(s: Tensor, loss: KDLoss = loss) -> Tensor:
            return loss(s, teacher).sum()

        calls: dict[str, Callable[[], Any]] = {
            "grad": lambda total=total: torch.func.grad(total)(student),
            "vmap": lambda loss=loss: torch.vmap(loss)(student[:, None], teacher[:, None]),
            "jvp": lambda total=total: torch.func.jvp(total, (student,), (student.cos(),)),
            "hessian": lambda total=total: torch.func.hessian(total)(student),
            "jacobian": lambda loss=loss: torch.autograd.functional.jacobian(
                lambda s: loss(s, teacher), student, vectorize=True
            ),
        }
        found.append(calls[transform]())
    assert_close(*found)


@pytest.mark.parametrize("learn", [False, True])
def test_compiles_whole(learn: bool) -> None:
    torch.compiler.reset()
    student, teacher = logits(6, 5)
    loss = KDLoss(2.0, learn_temperature=learn, rows_at_once=2)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [call(student, teacher) for call in (loss, compiled)]
    assert_close(*values)
    assert_close(*(grad(value, student) for value in values))


# What changes before the backward pass


def test_a_temperature_that_is_set_later_belongs_to_the_next_loss() -> None:
    student, teacher = logits(5, 4)
    loss = KDLoss(2.0, rows_at_once=2)
    value = loss(student, teacher)
    loss.temperature = 4.0
    assert_close(grad(value, student), grad(KDLoss(2.0)(student, teacher), student))


def test_parameters_that_are_lent_are_remembered() -> None:
    student, teacher = logits(5, 4)
    loss = KDLoss(2.0, learn_temperature=True, rows_at_once=2).double()
    lent = torch.tensor(1.5, dtype=F64, requires_grad=True)
    value = functional_call(loss, {"log_temperature": lent}, (student, teacher))
    expected = KDLoss(lent.detach().exp())(student, teacher)
    assert_close(grad(value, student, retain_graph=True), grad(expected, student))
    assert grad(value, lent)[0] != 0


def test_a_buffer_that_is_overwritten_is_noticed() -> None:
    student, teacher = logits(5, 4)
    loss = KDLoss(torch.tensor(2.0), rows_at_once=2)
    value = loss(student, teacher)
    loss.temperature = 4.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


class Projected(DistillationLoss):
    """A loss of one's own, with parameters in a module of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.projection = nn.Linear(4, 4)

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return (self.projection(student) - teacher).square().sum(-1)


def test_a_loss_of_ones_own() -> None:
    student, teacher = logits(5, 4, dtype=torch.float)
    loss = Projected(rows_at_once=2)
    inputs = (student, *loss.parameters())
    found = grad(loss(student, teacher), inputs)
    loss.rows_at_once = None
    assert_close(found, grad(loss(student, teacher), inputs))


# Memory

NAMES = ("full", "image", "text")
SAMPLES, CLASSES = 64, 8192
U = 4 * len(NAMES) * SAMPLES * CLASSES  # bytes of the student's logits, all views


def peak(function: Callable[[], object]) -> int:
    """The bytes of tensors that a call holds at once."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def views(*positions: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    student = {name: torch.randn(*positions, CLASSES, requires_grad=True) for name in NAMES}
    return student, {name: torch.randn(*positions, CLASSES) for name in NAMES}


@pytest.mark.parametrize("positions", [(SAMPLES,), (4, SAMPLES // 4)], ids=["rows", "sequences"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(
    "make",
    [partial(KDLoss, 2.0), JSDLoss, partial(KDLoss, 2.0, learn_temperature=True)],
    ids=["kd", "jsd", "learned temperature"],
)
def test_the_peak_is_little_over_the_gradient(
    make: Callable[..., DistillationLoss], masked: bool, positions: tuple[int, ...]
) -> None:
    """The gradient itself is 1 U; all rows at once take 4.25 U for KD, and keep 3.25 U."""
    msd = MSDLoss(make(rows_at_once=2), FixedWeighting(full=1.0, image=0.5, text=0.25))
    student, teacher = views(*positions)
    valid = torch.rand(*positions, 3) < 0.7 if masked else None

    def both_ways() -> object:
        return grad(msd(student, teacher, valid=valid), list(student.values()))

    assert peak(both_ways) <= 1.3 * U


def test_nothing_of_the_size_of_the_logits_is_kept() -> None:
    student, teacher = views(SAMPLES)
    given = {x.untyped_storage().data_ptr() for x in (*student.values(), *teacher.values())}
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept.extend([] if storage.data_ptr() in given else [storage.nbytes()])
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        MSDLoss(KDLoss(2.0, rows_at_once=2))(student, teacher)
    assert sum(kept) < U / 100


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KDLoss(rows_at_once=0), "`rows_at_once` of at least 1, got 0"),
        (lambda: DISTLoss(rows_at_once=2), "no `rows_at_once` for DISTLoss, which compares"),
        (lambda: SPLoss(rows_at_once=2), "no `rows_at_once` for SPLoss, which compares"),
        (lambda: KDLoss(dim=1, rows_at_once=2), "`dim` of -1 with `rows_at_once`, got 1"),
        (lambda: KDLoss(torch.ones(4), rows_at_once=2), "`temperature` of one value with"),
    ],
)
def test_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_size_is_an_integer() -> None:
    with pytest.raises(TypeError, match="`rows_at_once` to be an integer, got"):
        KDLoss(rows_at_once=2.0)


def test_the_repr_tells_it() -> None:
    assert "rows_at_once=2" in repr(KDLoss(rows_at_once=2))
