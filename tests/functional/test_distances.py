"""Squared distances of logits and of features."""

from __future__ import annotations

import pytest
import torch

from msdlosses.functional import hint_loss, logit_mse_loss

LOGITS = torch.zeros(4, 5)


def test_logit_mse_rejects_integers() -> None:
    with pytest.raises(TypeError, match=r"`student` .* got int64 \(4, 5\)"):
        logit_mse_loss(LOGITS.long(), LOGITS)


def test_hint_rejects_features_of_different_widths() -> None:
    with pytest.raises(ValueError, match=r"`student` and `teacher` .* got \(4, 5\) and \(4, 6\)"):
        hint_loss(LOGITS, torch.zeros(4, 6))
