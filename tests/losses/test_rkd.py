"""RKDLoss."""

from __future__ import annotations

import pytest
import torch

from msdlosses import RKDLoss


def test_rejects_different_numbers_of_axes() -> None:
    message = r"`student` and `teacher` .* got \(4, 5\) and \(4, 1, 6\)"
    with pytest.raises(ValueError, match=message):
        RKDLoss()(torch.zeros(4, 5), torch.zeros(4, 1, 6))


def test_rejects_weights_that_are_both_zero() -> None:
    with pytest.raises(ValueError, match="`distance`, `angle` above 0"):
        RKDLoss(distance=0.0, angle=0.0)
