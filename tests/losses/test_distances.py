"""LogitMSELoss and HintLoss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from msdlosses import HintLoss, LogitMSELoss, MSDLoss

NAN = float("nan")
FEATURES = torch.zeros(4, 5)
WIDER = torch.zeros(4, 6)


# LogitMSELoss


def test_logit_mse_is_a_sum_over_classes() -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = 5 * nn.functional.mse_loss(student, teacher)
    assert_close(LogitMSELoss()(student, teacher), expected)


# HintLoss


def test_hint_is_half_the_squared_distance_after_projection() -> None:
    projection = nn.Linear(3, 7)
    student, teacher = torch.randn(5, 3), torch.randn(5, 7)
    expected = 0.5 * (projection(student) - teacher).square().sum(1).mean()
    assert_close(HintLoss(projection)(student, teacher), expected)


def test_projections_are_trained_and_saved_with_msd_loss() -> None:
    msd = MSDLoss({"full": HintLoss(nn.Linear(3, 7)), "text": HintLoss(nn.Linear(2, 7))})
    student = {"full": torch.randn(5, 3), "text": torch.randn(5, 2)}
    teacher = {view: torch.randn(5, 7) for view in student}
    msd(student, teacher).backward()
    assert all(p.grad is not None for p in msd.parameters())
    assert "criterion.text.projection.weight" in msd.state_dict()
    copied = copy.deepcopy(msd)
    assert torch.equal(copied(student, teacher), msd(student, teacher))


def test_feature_maps_are_projected_by_convolutions() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 7, 4, 4)
    projection = nn.Conv2d(3, 7, 1)
    values = HintLoss(projection, dim=1, reduction="none")(student, teacher)
    assert_close(values, 0.5 * (projection(student) - teacher).square().sum(1))


def test_loss_is_float32_if_autocast_projects_in_bfloat16() -> None:
    loss = HintLoss(nn.Linear(3, 7))
    student, teacher = torch.randn(5, 3), torch.randn(5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert_close(value, loss(student, teacher), rtol=2e-2, atol=1e-2)


# Batch statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invalid_samples_do_not_enter_the_statistics_of_a_batch(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(6, 5, dtype=dtype), torch.randn(6, 4)
    valid = torch.tensor([True, False, True, True, False, True])
    masked, packed = (HintLoss(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))) for _ in "ab")
    packed.load_state_dict(masked.state_dict())
    broken = student.masked_fill(~valid[:, None], NAN)
    value = masked(broken, teacher, valid=valid)
    assert_close(value, packed(student[valid], teacher[valid]))
    value.backward()
    assert_close(dict(masked.named_buffers()), dict(packed.named_buffers()))


def test_ignored_targets_do_not_enter_the_statistics_of_a_batch() -> None:
    student, teacher = torch.randn(6, 5, 8), torch.randn(6, 4, 8)
    target = torch.tensor([0, -100, 0, 0, -100, 0])
    projection = nn.Sequential(nn.Conv1d(5, 4, 1), nn.BatchNorm1d(4))
    loss = HintLoss(projection, dim=1, ignore_index=-100, reduction="none")
    values = loss(student, teacher, target)
    expected = HintLoss(projection, dim=1, reduction="none")(
        *(x[target == 0] for x in (student, teacher))
    )
    assert_close(values[target == 0], expected)
    assert not values[target != 0].any()


def test_no_valid_sample_gives_a_zero_that_is_joined_to_the_projection() -> None:
    loss = HintLoss(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    student = torch.randn(6, 5, requires_grad=True)
    value = loss(student, torch.randn(6, 4), valid=torch.zeros(6, dtype=torch.bool))
    assert value.item() == 0
    value.backward()
    for tensor in (student, *loss.parameters()):
        assert tensor.grad is not None
        assert not tensor.grad.any()
    assert loss.projection[1].num_batches_tracked == 0


def test_rejects_masked_positions_with_batch_statistics() -> None:
    loss = HintLoss(nn.Sequential(nn.Conv1d(5, 4, 1), nn.BatchNorm1d(4)), dim=1)
    valid = torch.tensor([[True, False]]).expand(3, 2)
    with pytest.raises(ValueError, match=r"`valid` .*BatchNorm.*Flatten"):
        loss(torch.randn(3, 5, 2), torch.randn(3, 4, 2), valid=valid)
    loss.eval()(torch.randn(3, 5, 2), torch.randn(3, 4, 2), valid=valid)


def test_half_precision_features_are_projected_in_float32() -> None:
    student, teacher = torch.randn(3, 5).bfloat16(), torch.randn(3, 6).bfloat16()
    loss = HintLoss(nn.Linear(5, 6))
    assert_close(loss(student, teacher), loss(student.float(), teacher.float()))


# Errors


def test_rejects_features_of_another_precision_than_the_projection() -> None:
    with pytest.raises(TypeError, match=r"`student` in torch.float32 or half.*got torch.float64"):
        HintLoss(nn.Linear(5, 6))(FEATURES.double(), WIDER.double())


class ReturnsNone(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> None:
        return None


def test_rejects_projection_that_is_not_a_module() -> None:
    with pytest.raises(TypeError, match="`projection` to be a module, got str"):
        HintLoss("linear")


def test_rejects_projection_that_returns_none() -> None:
    with pytest.raises(TypeError, match=r"`student` .* got NoneType"):
        HintLoss(ReturnsNone())(FEATURES, WIDER)


def test_rejects_projection_to_a_wrong_width() -> None:
    with pytest.raises(ValueError, match=r"`student` and `teacher` .* got \(4, 7\) and \(4, 6\)"):
        HintLoss(nn.Linear(5, 7))(FEATURES, WIDER)


@pytest.mark.parametrize("loss", [LogitMSELoss(), HintLoss()], ids=lambda x: type(x).__name__)
def test_rejects_different_widths(loss: LogitMSELoss | HintLoss) -> None:
    with pytest.raises(ValueError, match=r"`student` and `teacher` .* got \(4, 5\) and \(4, 6\)"):
        loss(FEATURES, WIDER)
