"""Chunks run again in the backward pass: with the random numbers and autocast of the first time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F
from torch.testing import assert_close
from user_losses import FunctionLoss

from benchmarks.counters import peak_bytes
from msdlosses import DistillationLoss, KDLoss, LogitMSELoss


def dropout_loss(**options: Any) -> DistillationLoss:
    """Return a loss that drops logits of the student at random."""
    return FunctionLoss(lambda s, t, _: (F.dropout(s, 0.5) - t).square().sum(-1), **options)


class ProjectedLoss(DistillationLoss):
    """Compares the student's logits after a layer, whose precision autocast chooses."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.layer = nn.Linear(5, 5)

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return (self.layer(student).float() - teacher).square().sum(-1)


@pytest.mark.parametrize("higher_order", [False, True])
def test_backward_drops_the_same_logits_as_forward(higher_order: bool) -> None:
    student = torch.randn(7, 5, requires_grad=True)
    # Each dropped logit contributes 0 to the loss, and each other one its square.
    value = dropout_loss(chunk_size=2, reduction="sum")(student, torch.zeros(7, 5))
    (gradient,) = grad(value, student, create_graph=higher_order)
    kept = gradient != 0
    assert 0 < kept.sum() < kept.numel()
    assert_close((2 * student)[kept].square().sum(), value)
    assert_close(gradient[kept], 8 * student[kept])


def test_backward_does_not_change_the_random_state() -> None:
    student = torch.randn(7, 5, requires_grad=True)
    value = dropout_loss(chunk_size=2)(student, torch.zeros(7, 5))
    before = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_backward_uses_the_autocast_of_forward() -> None:
    torch.manual_seed(0)
    whole, chunked = ProjectedLoss(), ProjectedLoss(chunk_size=2)
    chunked.load_state_dict(whole.state_dict())
    student, teacher = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    results = []
    for loss in (whole, chunked):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(student, teacher)
        results.append((value, *grad(value, [student, loss.layer.weight])))
    assert_close(results[1][:2], results[0][:2])
    # The gradient of the weight is rounded to bfloat16 in each chunk.
    assert_close(results[1][2], results[0][2], rtol=0.02, atol=0.02)


def test_autocast_of_the_backward_pass_does_not_matter() -> None:
    student, teacher = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    loss = ProjectedLoss(chunk_size=2)
    expected = grad(loss(student, teacher), student)
    value = loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(grad(value, student), expected, rtol=0, atol=0)


# Targets with fewer axes than the logits


@pytest.mark.parametrize("target_shape", [(4,), (4, 6), (4, 6, 5)])
def test_chunks_with_a_target_of_any_leading_axes(target_shape: tuple[int, ...]) -> None:
    rows: list[int] = []

    def function(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        rows.append(student[..., 0].numel())
        scale = target.reshape(*target.shape, *(1,) * (student.ndim - target.ndim))
        return (scale * (student - teacher)).square().sum(-1)

    student, teacher = torch.randn(4, 6, 5, requires_grad=True), torch.randn(4, 6, 5)
    target = torch.rand(target_shape)
    expected = FunctionLoss(function)(student, teacher, target)
    rows.clear()
    value = FunctionLoss(function, chunk_size=7)(student, teacher, target)
    assert max(rows) <= 7
    assert_close(value, expected)
    assert_close(grad(value, student), grad(expected, student))


def test_gradients_of_parameters_are_added_up_in_place() -> None:
    """A parameter as large as the logits costs one gradient, not one for each chunk."""

    class LargeLoss(LogitMSELoss):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.scale = nn.Parameter(torch.ones(64, 4096))

        def per_sample(
            self,
            student: Tensor,
            teacher: Tensor,
            target: Tensor | None = None,
            *,
            valid: Tensor | None = None,
        ) -> Tensor:
            return super().per_sample(student * self.scale.mean(0), teacher)

    student, teacher = torch.randn(64, 4096, requires_grad=True), torch.randn(64, 4096)
    peaks = []
    for size in (32, 1):
        loss = LargeLoss(chunk_size=size)
        peaks.append(peak_bytes(lambda loss=loss: loss(student, teacher).backward()))
    assert peaks[1] <= 1.1 * peaks[0]


def test_inference_mode_teacher() -> None:
    with torch.inference_mode():
        teacher, target = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    student = torch.randn(4, 5, requires_grad=True)
    for options in ({"chunk_size": 2}, {"learn_temperature": (1, 8)}, {"ignore_index": 1}):
        loss = KDLoss(2.0, **options)(student, teacher, target)
        assert_close(loss.detach(), KDLoss(2.0)(student.detach(), teacher.clone()))
        loss.backward()
