"""Distillation by correlation (DIST) as a function."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from msdlosses.functional import dist_loss

LOGITS = torch.zeros(4, 5)


def test_inter_is_zero_for_probabilities_equal_up_to_shift_and_scale() -> None:
    p = torch.rand(4, 5).double().softmax(-1)
    q = 0.5 * p + 0.1  # sums to 1 for each sample
    values = dist_loss(q.log(), p.log(), intra=0.0)
    assert_close(values, torch.zeros(4).double(), atol=1e-12, rtol=0)


def test_rejects_weights_that_are_both_zero() -> None:
    with pytest.raises(ValueError, match="`inter`, `intra` above 0"):
        dist_loss(LOGITS, LOGITS, inter=0, intra=0)


def test_rejects_mask_of_numbers() -> None:
    with pytest.raises(TypeError, match=r"`valid` to be a boolean tensor, got float32 \(4,\)"):
        dist_loss(LOGITS, LOGITS, valid=torch.ones(4))
