"""KL divergence of multi-label predictions."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from msdlosses.functional import kl_divergence, multilabel_kl_divergence

LOGITS = torch.zeros(4, 5)


def test_is_a_sum_over_labels() -> None:
    student, teacher = torch.randn(2, 4, 23, dtype=torch.float64)
    per_label = [
        multilabel_kl_divergence(student[:, c : c + 1], teacher[:, c : c + 1]) for c in range(23)
    ]
    assert_close(multilabel_kl_divergence(student, teacher), torch.stack(per_label).sum(0))


def test_one_label_equals_kl_divergence_of_two_classes() -> None:
    student, teacher = torch.randn(2, 4, 1, dtype=torch.float64)
    two_classes = [torch.cat([x, torch.zeros_like(x)], -1) for x in (student, teacher)]
    expected = kl_divergence(*two_classes, temperature=3.0)
    assert_close(multilabel_kl_divergence(student, teacher, temperature=3.0), expected)


def test_rejects_integer_logits() -> None:
    with pytest.raises(TypeError, match=r"`teacher` .* got int64 \(4, 5\)"):
        multilabel_kl_divergence(LOGITS, LOGITS.long())


def test_rejects_boolean_temperature() -> None:
    with pytest.raises(TypeError, match="`temperature` to be a number, got bool"):
        multilabel_kl_divergence(LOGITS, LOGITS, temperature=True)
