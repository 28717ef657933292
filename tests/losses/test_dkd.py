"""DKDLoss."""

from __future__ import annotations

import re

import laws
import pytest
import torch
from strategies import INF
from torch.testing import assert_close

from msdlosses import DKDLoss, KDLoss

LOGITS = torch.zeros(4, 5)


def test_two_classes_give_kd() -> None:
    """With a single other class, the second part is 0."""
    student, teacher = torch.randn(2, 5, 2, dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 1, 1])
    assert_close(DKDLoss(2.0)(student, teacher, target), KDLoss(2.0)(student, teacher))


def test_target_may_be_impossible_or_certain_for_the_teacher() -> None:
    student = torch.randn(3, 4)
    teacher = torch.tensor([[0.0, -INF, 0.0, 1.0], [0.0, -INF, -INF, -INF], [9e4, -9e4, 0, 0]])
    target = torch.tensor([1, 0, 1])
    value, gradient = laws.value_and_gradient(
        lambda s, t: DKDLoss(reduction="none")(s, t, target), student, teacher
    )
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("target", "valid", "error", "message"),
    [
        pytest.param(None, None, ValueError, "`target` for DKDLoss, got None", id="missing"),
        pytest.param(
            "y",
            torch.ones(4, dtype=torch.bool),
            TypeError,
            "`target` to be a tensor of class indices, got str",
            id="string with a mask",
        ),
        pytest.param(
            torch.full((4,), -100),
            None,
            IndexError,
            "`target` in [0, 5), got -100. To leave targets out, set the `ignore_index`",
            id="index to ignore",
        ),
    ],
)
def test_rejects_target(
    target: object, valid: torch.Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        DKDLoss()(LOGITS, LOGITS, target, valid=valid)
    assert caught.type is error


def test_rejects_negative_weight() -> None:
    with pytest.raises(ValueError, match=r"`alpha` .* got -1\.0"):
        DKDLoss(alpha=-1.0)
