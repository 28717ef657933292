"""Decoupled knowledge distillation as a function."""

from __future__ import annotations

import re

import laws
import pytest
import torch
from hypothesis import given
from strategies import INF, Pair, logit_pairs
from torch import Tensor
from torch.testing import assert_close

from msdlosses.functional import dkd_loss, kl_divergence

LOGITS = torch.zeros(4, 5)
TARGET = torch.tensor([0, 1, 2, 3])


@given(pair=logit_pairs(kinds=("ordinary", "confident"), dtypes=(torch.float64,)))
def test_weighting_the_other_classes_by_their_probability_gives_kl(pair: Pair) -> None:
    target = laws.pick_target(*pair)
    target_part = dkd_loss(*pair, target, temperature=2.0, alpha=1.0, beta=0.0)
    other_part = dkd_loss(*pair, target, temperature=2.0, alpha=0.0, beta=1.0)
    p = (pair[1] / 2.0).softmax(-1)
    others = (p.sum(-1) - p.gather(-1, target.unsqueeze(-1)).squeeze(-1)).clamp(min=0)
    expected = kl_divergence(*pair, temperature=2.0)
    assert_close(target_part + others * other_part, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_target_may_have_any_integer_dtype(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    target = torch.tensor([1, 3, 0])
    expected = dkd_loss(student, teacher, target)
    assert torch.equal(dkd_loss(student, teacher, target.to(dtype)), expected)


def test_part_of_weight_zero_is_dropped() -> None:
    """Multiplying by 0 would give NaN where the part is infinite."""
    student, teacher = torch.tensor([[-INF, 0.0, 0.0]]), torch.zeros(1, 3)
    target = torch.tensor([0])
    assert dkd_loss(student, teacher, target).item() == INF
    assert dkd_loss(student, teacher, target, alpha=0.0).item() == 0


# Errors


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        pytest.param([0, 1, 2, 3], TypeError, "got list", id="list"),
        pytest.param(LOGITS, TypeError, "got float32 (4, 5)", id="scores"),
        pytest.param(TARGET > 0, TypeError, "got bool (4,)", id="boolean"),
        pytest.param(TARGET[:3], ValueError, "shape (4,), got (3,)", id="batch size differs"),
        pytest.param(TARGET + 2, IndexError, "[0, 5), got 2 to 5", id="class too large"),
        pytest.param(TARGET.to("meta"), ValueError, "on cpu, got meta", id="another device"),
    ],
)
def test_rejects_target(target: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        dkd_loss(LOGITS, LOGITS, target)
    assert caught.type is error
    assert "`target`" in str(caught.value)


def test_rejects_one_target_per_sequence() -> None:
    with pytest.raises(ValueError, match=r"`target` of shape \(4, 1\), got \(4,\)"):
        dkd_loss(LOGITS[:, None], LOGITS[:, None], TARGET)


def test_rejects_weights_that_are_both_zero() -> None:
    with pytest.raises(ValueError, match="`alpha`, `beta` above 0"):
        dkd_loss(LOGITS, LOGITS, TARGET, alpha=0.0, beta=0.0)
