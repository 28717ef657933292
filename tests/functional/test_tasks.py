"""Task losses: cross entropy of classes and of soft scores."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from msdlosses.functional import cross_entropy, multilabel_cross_entropy

LOGITS = torch.zeros(4, 5)
SCORES = torch.full((4, 5), 0.5)
TARGET = torch.tensor([0, 1, 2, 3])


def test_cross_entropy_agrees_with_torch() -> None:
    logits, target = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
    expected = nn.functional.cross_entropy(logits.mT, target, reduction="none")
    assert_close(cross_entropy(logits, target), expected)
    assert cross_entropy(logits.half(), target).dtype == torch.float32


def test_multilabel_cross_entropy_of_vqa_scores() -> None:
    """As in VQA 2.0: 3129 answers, of which a few have a score above 0."""
    logits = torch.randn(4, 3129, dtype=torch.float64)
    scores = torch.zeros(4, 3129, dtype=torch.float64)
    scores[:, :3] = torch.tensor([1.0, 0.6, 0.3])
    p = logits.sigmoid()
    expected = -(scores * p.log() + (1 - scores) * (1 - p).log()).sum(-1)
    assert_close(multilabel_cross_entropy(logits, scores), expected)
    half = multilabel_cross_entropy(logits.half(), scores.half())
    assert half.dtype == torch.float32
    assert_close(half.double(), expected, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        pytest.param(LOGITS, SCORES, TypeError, "`target`", id="scores"),
        pytest.param(None, TARGET, TypeError, "`logits`", id="no logits"),
        pytest.param(LOGITS, TARGET - 5, IndexError, "`target` in [0, 5)", id="negative class"),
    ],
)
def test_cross_entropy_rejects(
    logits: Tensor, target: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        cross_entropy(logits, target)
    assert caught.type is error


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        pytest.param(LOGITS, SCORES.long(), TypeError, "got int64 (4, 5)", id="integers"),
        pytest.param(LOGITS, 3 * SCORES, ValueError, "in [0, 1]", id="scores above 1"),
        pytest.param(torch.zeros(4, 6), SCORES, ValueError, "(4, 6)", id="classes differ"),
    ],
)
def test_multilabel_cross_entropy_rejects(
    logits: Tensor, target: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        multilabel_cross_entropy(logits, target)
    assert caught.type is error
    assert "`target`" in str(caught.value)
