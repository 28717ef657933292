"""Losses that compute their first derivative in closed form: all derivatives stay exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import laws
import pytest
import torch
from laws import NAN, value_and_gradient
from strategies import INF
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from benchmarks.counters import saved_bytes
from msdlosses import (
    DistillationLoss,
    JSDLoss,
    KDLoss,
    LogitMSELoss,
    MSDLoss,
    MultiLabelKDLoss,
    ReverseKDLoss,
)

Loss = Callable[..., Tensor]
FAMILY: dict[str, Callable[..., DistillationLoss]] = {
    "kd": partial(KDLoss, 2.0),
    "kd without rescaling": partial(KDLoss, 3.0, rescale=False),
    "skewed kd": partial(KDLoss, skew=0.1),
    "reverse kd": partial(ReverseKDLoss, 2.0),
    "skewed reverse kd": partial(ReverseKDLoss, skew=0.3),
    "jsd": partial(JSDLoss, 2.0, beta=0.3),
    "normalized jsd": partial(JSDLoss, normalize=True),
    "jsd, beta 0": partial(JSDLoss, beta=0),
    "jsd, beta 1": partial(JSDLoss, beta=1),
    "multi-label kd": partial(MultiLabelKDLoss, 2.0),
    "logit mse": LogitMSELoss,
}
every_loss = pytest.mark.parametrize("name", FAMILY)


def make_logits(*shape: int) -> tuple[Tensor, Tensor]:
    student, teacher = 2 * torch.randn(2, *shape, dtype=torch.float64)
    return student.requires_grad_(), teacher


def by_operators(loss: Loss) -> Loss:
    """Return the gradient of the sum, which `torch.func` takes operator by operator."""
    return torch.func.grad(lambda *logits: loss(*logits).sum())


# The first derivative


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_equals_that_of_the_operators(name: str, dtype: torch.dtype) -> None:
    loss = FAMILY[name](reduction="none")
    student, teacher = (logits.detach().to(dtype) for logits in make_logits(7, 5))
    values, gradient = value_and_gradient(loss, student, teacher)
    assert_close(values, loss(student, teacher))
    assert gradient.dtype == dtype
    assert_close(gradient, by_operators(loss)(student, teacher))


SPECIAL = {
    "missing in both": ([0.0, 1.0, -INF], [1.0, 0.0, -INF]),
    "ruled out by the student": ([0.0, -INF, 1.0], [1.0, 0.0, 0.0]),
    "ruled out by the teacher": ([0.0, 1.0, 2.0], [1.0, -INF, 0.0]),
    "one-hot teacher": ([0.0, 1.0, 2.0], [-INF, 0.0, -INF]),
    "student at an underflow": ([0.0, -INF, 1.0], [0.0, -2e3, 0.0]),
    "huge": ([6e4, -6e4, 0.0], [-6e4, 6e4, 6e4]),
    "NaN in the student": ([NAN, 0.0, 1.0], [0.0, 1.0, 2.0]),
    "NaN in the teacher": ([0.0, 0.0, 1.0], [NAN, 1.0, 2.0]),
}


@every_loss
@pytest.mark.parametrize("special", SPECIAL)
def test_special_logits_give_what_the_operators_give(name: str, special: str) -> None:
    """The second sample is ordinary, and gets the same in any company."""
    student, teacher = (torch.tensor([row, [0.3, 0.1, 0.9]]) for row in SPECIAL[special])
    loss = FAMILY[name](reduction="none")
    values, gradient = value_and_gradient(loss, student, teacher)
    expected = loss(student, teacher)
    assert_close(values, expected, equal_nan=True)
    of_operators = by_operators(loss)(student, teacher)
    if expected[0].isfinite():
        assert_close(gradient, of_operators)
    assert_close(gradient[1], of_operators[1])


@every_loss
def test_one_tensor_as_large_as_the_logits_is_saved(name: str) -> None:
    """Half-precision logits are not kept in float32 besides."""
    loss = FAMILY[name]()
    for dtype in (torch.float32, torch.float16):
        student, teacher = torch.randn(2, 16, 512, dtype=dtype).unbind()
        student.requires_grad_()
        saved = saved_bytes(partial(loss, student, teacher))
        assert saved <= 1.05 * 4 * student.numel()


@every_loss
def test_nothing_is_saved_without_a_gradient(name: str) -> None:
    student, teacher = make_logits(4, 512)
    loss = FAMILY[name]().eval()
    assert saved_bytes(lambda: loss(student.detach(), teacher)) == 0
    with torch.no_grad():
        assert not loss(student, teacher).requires_grad


@every_loss
@pytest.mark.parametrize("dim", [1, -2])
def test_classes_on_another_axis(name: str, dim: int) -> None:
    student, teacher = make_logits(4, 3, 5)
    values, gradient = value_and_gradient(FAMILY[name](reduction="none"), student, teacher)
    moved = [logits.detach().movedim(-1, 1) for logits in (student, teacher)]
    other = value_and_gradient(FAMILY[name](reduction="none", dim=dim), *moved)
    assert_close(other, (values, gradient.movedim(-1, 1)))


# Higher derivatives, and other ways to take them


@every_loss
def test_hessian(name: str) -> None:
    student, teacher = make_logits(2, 3)
    loss = FAMILY[name]()

    def value(logits: Tensor) -> Tensor:
        return loss(logits, teacher)

    expected = torch.func.hessian(value)(student.detach())
    hessian = torch.autograd.functional.hessian
    assert_close(hessian(value, student), expected)
    assert_close(hessian(value, student, vectorize=True), expected)
    forward = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    assert_close(hessian(value, student, **forward), expected)


@every_loss
def test_gradients_of_gradients_reach_parameters(name: str) -> None:
    """A meta-learner differentiates a step of the student."""
    layer, features = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    loss, teacher = FAMILY[name](), torch.randn(5, 3, dtype=torch.float64)

    def of_parameters(*parameters: Tensor) -> Tensor:
        state = dict(zip(("weight", "bias"), parameters, strict=True))
        return loss(torch.func.functional_call(layer, state, features), teacher)

    parameters = [p.detach().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(of_parameters, parameters)
    assert torch.autograd.gradgradcheck(of_parameters, parameters)


@every_loss
def test_batch_of_gradients(name: str) -> None:
    student, teacher = make_logits(4, 3)
    values = FAMILY[name](reduction="none")(student, teacher)
    options = {"retain_graph": True, "is_grads_batched": True}
    (rows,) = torch.autograd.grad(values, student, torch.eye(4).double(), **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert_close(rows.sum(0), gradient)
    assert_close(rows[0, 0], gradient[0])


@every_loss
def test_dual_numbers(name: str) -> None:
    student, teacher = make_logits(4, 3)
    tangent, loss = torch.randn_like(student), FAMILY[name]()
    with forward_ad.dual_level():
        value = loss(forward_ad.make_dual(student, tangent), teacher)
        derivative = forward_ad.unpack_dual(value).tangent
    _, gradient = value_and_gradient(loss, student, teacher)
    assert_close(derivative, (gradient * tangent).sum())


def test_backward_twice_and_into_a_part_of_the_terms() -> None:
    student = {view: make_logits(4, 3)[0] for view in ("full", "image")}
    teacher = {view: make_logits(4, 3)[1] for view in student}
    terms = MSDLoss(KDLoss(2.0)).terms(student, teacher)
    inputs = list(student.values())
    first = torch.autograd.grad(terms[:, 1].sum(), inputs, retain_graph=True)
    again = torch.autograd.grad(terms[:, 1].sum(), inputs)
    assert_close(first, again)
    assert torch.equal(first[0], torch.zeros_like(first[0]))
    expected = value_and_gradient(KDLoss(2.0, reduction="sum"), student["image"], teacher["image"])
    assert_close(first[1], expected[1])


# Views together


@every_loss
@pytest.mark.parametrize("dim", [-1, 1], ids=["last axis", "axis 1"])
@pytest.mark.parametrize("classes", [3, 2000], ids=["small", "large"])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_views_together_equal_each_by_itself(name: str, classes: int, views: int, dim: int) -> None:
    names = [f"view {n}" for n in range(views)]
    pairs = {view: make_logits(4, classes) for view in names}
    student, teacher = ({v: pair[side] for v, pair in pairs.items()} for side in (0, 1))
    loss = FAMILY[name](dim=dim)
    terms = MSDLoss(loss).terms(student, teacher)
    weights = torch.randn(4, views, dtype=torch.float64)
    gradients = torch.autograd.grad(
        (weights * terms).sum(), list(student.values()), create_graph=True
    )
    for n, view in enumerate(names):
        values = loss.per_sample(*pairs[view])
        assert_close(terms[:, n], values)
        (gradient,) = torch.autograd.grad(
            (weights[:, n] * values).sum(), student[view], create_graph=True
        )
        assert_close(gradients[n], gradient)
        second = [
            torch.autograd.grad(g.square().sum(), student[view], retain_graph=True)
            for g in (gradients[n], gradient)
        ]
        assert_close(second[0], second[1])


def test_a_view_without_gradient_among_others() -> None:
    """The embeddings of one view may be frozen."""
    student = {"full": make_logits(4, 3)[0], "image": make_logits(4, 3)[0].detach()}
    teacher = {view: make_logits(4, 3)[1] for view in student}
    loss = MSDLoss(KDLoss(reduction="sum"), reduction="sum")(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student["full"])
    assert_close(
        gradient, value_and_gradient(KDLoss(reduction="sum"), student["full"], teacher["full"])[1]
    )


# Subclasses


class Doubled(KDLoss):
    def divergence(self, *args: Tensor | None, **options: Tensor | None) -> Tensor:
        return 2 * super().divergence(*args, **options)


class DoubledPerSample(KDLoss):
    def per_sample(self, *args: Tensor | None, valid: Tensor | None = None) -> Tensor:
        return 2 * super().per_sample(*args, valid=valid)


class Mixin:
    def divergence(self, *args: Tensor | None, **options: Tensor | None) -> Tensor:
        return 2 * super().divergence(*args, **options)  # type: ignore[misc]


class DoubledByMixin(Mixin, KDLoss):
    pass


class DoubledAgain(DoubledByMixin):
    pass


@pytest.mark.parametrize("kind", [Doubled, DoubledPerSample, DoubledByMixin, DoubledAgain])
def test_subclass_with_another_divergence_does_not_inherit_the_derivative(
    kind: type[KDLoss],
) -> None:
    student, teacher = make_logits(4, 3)
    value, gradient = value_and_gradient(KDLoss(2.0), student, teacher)
    assert_close(value_and_gradient(kind(2.0), student, teacher), (2 * value, 2 * gradient))
    msd = MSDLoss(kind(2.0))
    both = {"full": student, "image": student}
    assert_close(msd(both, {view: teacher for view in both}), 4 * value)


def test_case_for_each_loss_of_the_family_is_in_the_laws() -> None:
    kinds = {type(case.make()) for case in laws.LOSSES}
    assert {type(make()) for make in FAMILY.values()} <= kinds


def test_tangents_of_the_upstream_gradient() -> None:
    """Forward over reverse, where a graph of the gradient is kept as well."""
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    student.requires_grad_()
    upstream, tangent = torch.randn(2, 4, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(upstream, tangent)
        values = KDLoss(2.0, reduction="none")(student, teacher)
        (gradient,) = torch.autograd.grad(values, student, dual, create_graph=True)
        moved = forward_ad.unpack_dual(gradient).tangent
    values = KDLoss(2.0, reduction="none")(student, teacher)
    assert_close(moved, torch.autograd.grad(values, student, tangent)[0])
