"""SPLoss."""

from __future__ import annotations

import pytest
import torch

from msdlosses import SPLoss

FEATURES = torch.zeros(4, 5)


def test_rejects_mask_of_another_batch_size() -> None:
    valid = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`valid` of shape \(4,\), got \(3,\)"):
        SPLoss()(FEATURES, torch.zeros(4, 6), valid=valid)


def test_rejects_dim_that_is_not_an_axis() -> None:
    with pytest.raises(IndexError, match=r"`dim` to be an axis of \(4, 5\), got 2"):
        SPLoss(dim=2)(FEATURES, FEATURES)
