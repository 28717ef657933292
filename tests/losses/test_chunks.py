"""`chunk_size`: the values and derivatives of the whole batch, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import LOSSES, LossCase
from torch import Tensor, nn
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.func import functional_call
from torch.testing import assert_close
from user_losses import FunctionLoss

from msdlosses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    FixedWeighting,
    HintLoss,
    KDLoss,
    LogitMSELoss,
    MSDLoss,
    RKDLoss,
    SPLoss,
)

F64 = torch.float64
NAN = float("nan")
CASES = [case for case in LOSSES if not case.make().relational and case.name != "hint"]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def make_logits(*shape: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, *shape, dtype=dtype)
    return student.requires_grad_(), teacher


class ScaledLoss(LogitMSELoss):
    """A loss with a parameter, which scales the student's logits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scale = nn.Parameter(torch.ones(1))

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return super().per_sample(self.scale * student, teacher)


def gradients_of(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def whole_and_chunked(
    make: Callable[..., DistillationLoss], chunk_size: int
) -> list[DistillationLoss]:
    return [make(reduction="none", chunk_size=size) for size in (None, chunk_size)]


# Values and gradients


@every_case
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 50])
@pytest.mark.parametrize("shape", [(7, 5), (2, 4, 5), (0, 5), (5,)], ids=str)
def test_values_and_gradients_equal_the_whole_batch(
    case: LossCase, chunk_size: int, shape: tuple[int, ...]
) -> None:
    student, teacher = make_logits(*shape)
    losses = whole_and_chunked(case.make, chunk_size)
    expected, values = (loss(student, teacher) for loss in losses)
    assert_close(values, expected, rtol=1e-12, atol=1e-14)
    upstream = torch.randn_like(values)
    assert_close(grad(values, student, upstream), grad(expected, student, upstream))


@every_case
@pytest.mark.parametrize("per_sample", [True, False], ids=["samples", "positions"])
def test_invalid_entries_are_left_out(case: LossCase, per_sample: bool) -> None:
    student, teacher = make_logits(3, 4, 5)
    valid = torch.tensor([True, False, True])
    if not per_sample:
        valid = valid.unsqueeze(1) & (torch.arange(4) < 2)
    with torch.no_grad():
        student[1], teacher[1] = NAN, NAN
    losses = whole_and_chunked(case.make, 3)
    expected, values = (loss(student, teacher, valid=valid) for loss in losses)
    assert_close(values, expected, rtol=1e-12, atol=1e-14)
    (gradient,) = grad(values.sum(), student)
    assert_close(gradient, grad(expected.sum(), student)[0])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
def test_targets_are_split_with_the_logits(chunk_size: int) -> None:
    student, teacher = make_logits(2, 4, 5)
    target = torch.randint(5, (2, 4))
    target[0, 1] = -100
    losses = (DKDLoss(2.0, ignore_index=-100, chunk_size=size) for size in (None, chunk_size))
    assert_close(*(loss(student, teacher, target) for loss in losses))


def test_target_without_the_axes_of_the_logits_works_as_without_chunks() -> None:
    student, teacher = make_logits(4, 3, 5)
    target = torch.randint(5, (4,))
    losses = (KDLoss(chunk_size=size) for size in (None, 2))
    assert_close(*(loss(student, teacher, target) for loss in losses))
    with pytest.raises(ValueError, match=r"`target` of shape \(4, 3\), got \(4,\)"):
        DKDLoss(chunk_size=4)(student, teacher, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    student, teacher = make_logits(7, 5, dtype=dtype)
    expected, values = (loss(student, teacher) for loss in whole_and_chunked(KDLoss, 2))
    assert_close(values, expected)
    assert_close(*(grad(x.sum(), student) for x in (values, expected)))


def test_msd_loss_in_chunks_equals_msd_loss() -> None:
    student = {view: make_logits(6, 5)[0] for view in ("full", "text")}
    teacher = {view: make_logits(6, 5)[1] for view in student}
    valid = torch.rand(6, 2) < 0.6
    weighting = FixedWeighting(full=1.0, text=0.5)
    msds = (MSDLoss(KDLoss(2.0, chunk_size=size), weighting) for size in (None, 4))
    losses = [msd(student, teacher, valid=valid) for msd in msds]
    assert_close(*losses)
    assert_close(*(grad(loss, list(student.values())) for loss in losses))


def test_only_the_student_gets_a_gradient() -> None:
    student, teacher = make_logits(4, 5)
    loss = KDLoss(chunk_size=2)
    assert not loss(student.detach(), teacher).requires_grad
    teacher.requires_grad_()
    assert grad(loss(student, teacher), (student, teacher), allow_unused=True)[1] is None


# Higher derivatives and transforms


@every_case
def test_first_and_second_derivatives_match_finite_differences(case: LossCase) -> None:
    loss = case.make(reduction="none", chunk_size=2)
    student, teacher = make_logits(3, 4)
    assert gradcheck(lambda s: loss(s, teacher), student, check_forward_ad=True)
    assert gradcheck(lambda s: loss(s, teacher), student, check_batched_grad=True)
    assert gradgradcheck(lambda s: loss(s, teacher), student)


def test_derivatives_of_a_parameter_match_finite_differences() -> None:
    loss = ScaledLoss(reduction="none", chunk_size=2).double()
    student, teacher = make_logits(5, 4)

    def values(student: Tensor, scale: Tensor) -> Tensor:
        return functional_call(loss, {"scale": scale}, (student, teacher))

    inputs = (student, torch.tensor([0.7], dtype=F64, requires_grad=True))
    assert gradcheck(values, inputs, check_forward_ad=True)
    assert gradgradcheck(values, inputs)
    # If the logits depend on the scale too, its gradient must not be added twice.
    assert gradgradcheck(lambda scale: values(student.detach() * scale, scale), inputs[1:])


def test_temperature_learns_if_the_student_requires_no_gradient() -> None:
    student, teacher = torch.randn(2, 5, 4)
    losses = [KDLoss(2.0, learn_temperature=(1, 8), chunk_size=size) for size in (None, 2)]
    for loss in losses:
        loss(student, teacher).backward()
    assert_close(*(gradients_of(loss) for loss in losses))


def test_forward_over_reverse() -> None:
    """With tangents of the logits, or of the factors that multiply the loss."""
    student, teacher = make_logits(5, 4)
    direction, factors = torch.randn_like(student), torch.rand(5, dtype=F64)
    tangents = []
    for loss in whole_and_chunked(KDLoss, 2):
        with forward_ad.dual_level():
            dual: Any = forward_ad.make_dual(student, direction)
            (of_logits,) = grad((loss(dual, teacher) * factors).sum(), student)
            dual_factors: Any = forward_ad.make_dual(factors, factors.cos())
            (of_factors,) = grad((loss(student, teacher) * dual_factors).sum(), student)
            tangents.append([forward_ad.unpack_dual(x).tangent for x in (of_logits, of_factors)])
    assert None not in tangents[0]
    assert_close(*tangents)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "hessian", "jacobian"])
def test_works_in_torch_func(transform: str) -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=F64)
    results = []
    for loss in whole_and_chunked(KDLoss, 2):

        def total(s: Tensor, loss: DistillationLoss = loss) -> Tensor:
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
        results.append(calls[transform]())
    assert_close(*results)


@pytest.mark.parametrize("learn_temperature", [None, (1, 8)])
def test_compiled_loss_equals_eager(learn_temperature: tuple[float, float] | None) -> None:
    torch.compiler.reset()
    student, teacher = make_logits(6, 5)
    loss = KDLoss(2.0, learn_temperature=learn_temperature, chunk_size=2)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [call(student, teacher) for call in (loss, compiled)]
    assert_close(*values)
    assert_close(*(grad(value, student) for value in values))


# Changes between the forward and the backward pass


def test_temperature_set_before_backward_applies_to_the_next_call() -> None:
    student, teacher = make_logits(5, 4)
    loss = KDLoss(2.0, chunk_size=2)
    value = loss(student, teacher)
    loss.temperature = 4.0
    assert_close(grad(value, student), grad(KDLoss(2.0)(student, teacher), student))


def test_backward_uses_the_parameters_of_functional_call() -> None:
    student, teacher = make_logits(5, 4)
    loss = ScaledLoss(chunk_size=2).double()
    scale = torch.tensor([1.5], dtype=F64, requires_grad=True)
    value = functional_call(loss, {"scale": scale}, (student, teacher))
    expected = LogitMSELoss()(1.5 * student, teacher)
    assert_close(grad(value, student, retain_graph=True), grad(expected, student))
    assert grad(value, scale)[0] != 0


def test_backward_detects_an_overwritten_buffer() -> None:
    student, teacher = make_logits(5, 4)
    loss = KDLoss(torch.tensor(2.0), chunk_size=2)
    value = loss(student, teacher)
    loss.temperature = 4.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


# Losses that users write


class ProjectedLoss(DistillationLoss):
    """A loss with parameters in a submodule."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.projection = nn.Linear(4, 4)

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return (self.projection(student) - teacher).square().sum(-1)


class RelationalLoss(ProjectedLoss):
    relational = True


def test_custom_loss_with_parameters() -> None:
    student, teacher = make_logits(5, 4, dtype=torch.float)
    loss = ProjectedLoss(chunk_size=2)
    inputs = (student, *loss.parameters())
    gradients = grad(loss(student, teacher), inputs)
    loss.chunk_size = None
    assert_close(gradients, grad(loss(student, teacher), inputs))


# Options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KDLoss(chunk_size=0), "`chunk_size` of at least 1, got 0"),
        (lambda: RelationalLoss(chunk_size=2), "no `chunk_size` for a relational loss, got 2"),
        (lambda: KDLoss(dim=1, chunk_size=2), "`dim` to be -1 with `chunk_size`, got 1"),
        (lambda: KDLoss(torch.ones(4), chunk_size=2), "one `temperature` with `chunk_size`"),
    ],
    ids=["zero", "relational", "dim", "several temperatures"],
)
def test_rejects_chunk_size(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rejects_chunk_size_that_is_not_an_integer() -> None:
    with pytest.raises(TypeError, match="`chunk_size` to be an integer, got float"):
        KDLoss(chunk_size=2.0)


@pytest.mark.parametrize("loss", [DISTLoss, HintLoss, RKDLoss, SPLoss])
def test_some_losses_have_no_chunk_size(loss: type[DistillationLoss]) -> None:
    with pytest.raises(TypeError, match=rf"^{loss.__name__}\.__init__.*'chunk_size'"):
        loss(chunk_size=2)


def test_repr_shows_chunk_size() -> None:
    assert "chunk_size=2" in repr(KDLoss(chunk_size=2))


def test_loss_that_does_not_depend_on_the_student() -> None:
    loss = FunctionLoss(lambda s, t, _: t.square().sum(-1), chunk_size=2)
    student, teacher = make_logits(5, 4)
    value = loss(student, teacher)
    assert_close(value, teacher.square().sum(-1).mean())
    assert not grad(value, student)[0].any()
