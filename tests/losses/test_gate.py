"""Terms whose weight is set to 0 are left out, whatever they are."""

from __future__ import annotations

import pytest
import torch
from msd_helpers import ConstantWeighting, require_grad
from torch import Tensor, nn
from torch.autograd import grad
from torch.testing import assert_close

from msdlosses import FixedWeighting, KDLoss, MSDLoss, ReverseKDLoss, SPLoss, TeacherLossWeighting

INF, NAN = float("inf"), float("nan")
VIEWS = ("full", "text")


def make_views(broken: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    student = {"full": torch.randn(4, 3), "text": broken}
    return require_grad(student), {view: torch.randn(4, 3) for view in VIEWS}


def with_bad_rows(value: float) -> Tensor:
    logits = torch.randn(4, 3)
    logits[:2] = value
    return logits


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("criterion", [KDLoss(2.0), KDLoss(2.0, chunk_size=2), SPLoss()])
def test_a_view_of_weight_zero_may_be_nan(value: float, criterion: nn.Module) -> None:
    student, teacher = make_views(with_bad_rows(value))
    loss = MSDLoss(criterion, FixedWeighting(full=1.0, text=0.0))(student, teacher)
    expected = MSDLoss(criterion)({"full": student["full"]}, teacher)
    assert_close(loss, expected)
    gradients = grad(loss, list(student.values()))
    assert_close(gradients[0], grad(expected, student["full"])[0])
    assert torch.equal(gradients[1], torch.zeros(4, 3))


def test_a_sample_of_weight_zero_may_be_infinite() -> None:
    """The reverse divergence is infinite where the teacher rules out a class."""
    student, teacher = make_views(torch.randn(4, 3))
    teacher["text"][0, 1] = -INF
    weights = torch.ones(4, 2)
    weights[0, 1] = 0.0
    msd = MSDLoss(ReverseKDLoss(), ConstantWeighting(weights))
    loss = msd(student, teacher)
    assert loss.isfinite()
    gradients = grad(loss, list(student.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[1][0].any()
    assert gradients[1][1:].all()


def test_a_position_of_weight_zero_may_be_nan() -> None:
    logits = torch.randn(4, 5, 3)
    logits[1, 2] = NAN
    student = require_grad({"full": torch.randn(4, 5, 3), "text": logits})
    teacher = {view: torch.randn(4, 5, 3) for view in VIEWS}
    weights = torch.ones(4, 5, 2)
    weights[1, 2, 1] = 0.0
    for average in ("sample", "batch"):
        loss = MSDLoss(KDLoss(), ConstantWeighting(weights), average=average)(student, teacher)
        assert loss.isfinite()
        (gradient,) = grad(loss, student["text"])
        assert gradient.isfinite().all()
        assert not gradient[1, 2].any()


def test_a_teacher_that_rules_out_the_target_has_weight_zero() -> None:
    student, teacher = make_views(torch.randn(4, 3))
    teacher["text"][0] = torch.tensor([-INF, 0.0, 0.0])
    msd = MSDLoss(ReverseKDLoss(), TeacherLossWeighting())
    loss = msd(student, teacher, torch.zeros(4, dtype=torch.long))
    gradients = grad(loss, list(student.values()))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_second_derivatives_leave_the_term_out() -> None:
    student, teacher = make_views(with_bad_rows(NAN))
    loss = MSDLoss(KDLoss(), FixedWeighting(full=1.0, text=0.0))(student, teacher)
    gradients = grad(loss, list(student.values()), create_graph=True)
    total = sum(gradient.square().sum() for gradient in gradients)
    second = grad(total, list(student.values()), allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in second)


def test_a_learned_weight_of_zero_gets_a_gradient() -> None:
    student, teacher = make_views(torch.randn(4, 3))
    weights = torch.zeros(4, 2, requires_grad=True)
    parts = MSDLoss(KDLoss(), ConstantWeighting(weights)).parts(student, teacher)
    assert parts.loss.item() == 0
    assert_close(grad(parts.loss, weights)[0], parts.terms.detach() / 4)
