"""Generalized Jensen-Shannon divergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from scipy.spatial.distance import jensenshannon
from strategies import Pair, logit_pairs
from torch import Tensor
from torch.testing import assert_close

from msdlosses.functional import js_divergence, kl_divergence, reverse_kl_divergence

LOGITS = torch.zeros(4, 5)
ordinary_pairs = logit_pairs(kinds=("ordinary",), dtypes=(torch.float64,))


def test_agrees_with_scipy() -> None:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    p, q = (logits.softmax(-1).numpy() for logits in (teacher, student))
    values = js_divergence(student, teacher)
    assert_close(values, torch.from_numpy(jensenshannon(p, q, axis=1) ** 2))


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.9])
@given(pair=logit_pairs(kinds=("ordinary", "confident", "huge"), dtypes=(torch.float32,)))
def test_is_bounded_by_the_entropy_of_beta(beta: float, pair: Pair) -> None:
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (js_divergence(*pair, beta=beta) <= entropy + 1e-6).all()


@pytest.mark.parametrize(("end", "expected"), [(0.0, kl_divergence), (1.0, reverse_kl_divergence)])
@given(pair=ordinary_pairs)
def test_ends_are_kl_divergences(end: float, expected: Callable[..., Tensor], pair: Pair) -> None:
    assert torch.equal(js_divergence(*pair, beta=end), expected(*pair))


@pytest.mark.parametrize(("end", "near"), [(0.0, 1e-9), (1.0, 1 - 1e-9)])
@given(pair=ordinary_pairs)
def test_approaches_the_ends(end: float, near: float, pair: Pair) -> None:
    """Continuously if normalized; otherwise in proportion to the distance from the end."""
    limit = js_divergence(*pair, beta=end)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    assert_close(js_divergence(*pair, beta=near, normalize=True), limit, **tolerance)
    assert_close(js_divergence(*pair, beta=near) / abs(end - near), limit, **tolerance)


def test_swapping_sides_swaps_beta() -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = js_divergence(student, teacher, beta=0.2)
    assert_close(js_divergence(teacher, student, beta=0.8), expected)


def test_rejects_beta_above_1() -> None:
    with pytest.raises(ValueError, match=r"`beta` in \[0, 1\], got 1.5"):
        js_divergence(LOGITS, LOGITS, beta=1.5)


def test_rejects_temperatures_of_another_batch_size() -> None:
    with pytest.raises(ValueError, match=r"`temperature` of shape \(4,\) .* got \(3,\)"):
        js_divergence(LOGITS, LOGITS, temperature=torch.ones(3))
