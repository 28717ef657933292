"""KDLoss and ReverseKDLoss."""

from __future__ import annotations

import math

import laws
import pytest
import torch
from torch.testing import assert_close

from msdlosses import KDLoss, ReverseKDLoss
from msdlosses.functional import kl_divergence

LOGITS = torch.zeros(4, 5)
NAN = float("nan")


def test_values_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    second = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert_close(KDLoss(reduction="none")(student, teacher), torch.tensor([first, second]))
    assert_close(KDLoss()(student, teacher), torch.tensor((first + second) / 2))


def test_mean_does_not_divide_by_the_number_of_classes() -> None:
    student, teacher = torch.randn(2, 8, 3)
    padding = torch.full((8, 1000), -1e4)  # classes of probability 0
    padded = KDLoss()(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1))
    assert_close(padded, KDLoss()(student, teacher))
    assert_close(padded, kl_divergence(student, teacher).mean())


def test_gradient_does_not_vanish_at_high_temperature() -> None:
    student, teacher = torch.randn(2, 1, 6, dtype=torch.float64)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(KDLoss(1e4)(student, teacher), student)
    difference = (student - teacher).detach()
    assert_close(gradient, (difference - difference.mean()) / 6, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("masked_axes", [1, 2, 3], ids=["samples", "rows", "pixels"])
def test_mask_covers_leading_axes(masked_axes: int) -> None:
    student, teacher = torch.randn(2, 3, 3, 3, 3)  # (N, C, H, W), where all sizes are equal
    mask = torch.rand(3, 3, 3)[(...,) + (0,) * (3 - masked_axes)] < 0.5
    pixels = mask.reshape(mask.shape + (1,) * (3 - masked_axes)).expand(3, 3, 3)
    values = kl_divergence(student, teacher, dim=1)
    corrupted = [logits.masked_fill(~pixels.unsqueeze(1), NAN) for logits in (student, teacher)]
    assert_close(KDLoss(dim=1)(*corrupted, valid=mask), values[pixels].mean())


def test_single_sample_without_batch_axis() -> None:
    student, teacher = torch.randn(2, 5)
    assert_close(KDLoss()(student, teacher), KDLoss()(student[None], teacher[None]))


def test_repr_shows_the_options() -> None:
    assert repr(KDLoss(2.0, dim=1)) == "KDLoss(temperature=2.0, dim=1, reduction='mean')"


def test_standardize_bounds_the_gradient_at_constant_logits() -> None:
    teacher = torch.randn(4, 7)
    _, gradient = laws.value_and_gradient(KDLoss(standardize=True), torch.ones(4, 7), teacher)
    assert gradient.abs().max() < 100


def test_rejects_skew_that_is_not_a_number() -> None:
    with pytest.raises(TypeError, match="`skew` to be a number, got str"):
        KDLoss(skew="0.1")


def test_rejects_logits_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"`student` and `teacher` .* got \(4, 5\) and \(4, 6\)"):
        KDLoss()(LOGITS, torch.zeros(4, 6))


def test_reverse_kd_rejects_logits_on_different_devices() -> None:
    with pytest.raises(ValueError, match=r"`student` and `teacher` on one device.* cpu and meta"):
        ReverseKDLoss()(LOGITS, LOGITS.to("meta"))
