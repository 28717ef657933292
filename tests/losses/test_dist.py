"""DISTLoss."""

from __future__ import annotations

import laws
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch.testing import assert_close

from msdlosses import DISTLoss


def test_agrees_with_the_correlation_of_scipy() -> None:
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    q, p = (x.softmax(-1).numpy() for x in (student, teacher))
    inter = np.mean([1 - pearsonr(q[n], p[n])[0] for n in range(6)])
    intra = np.mean([1 - pearsonr(q[:, c], p[:, c])[0] for c in range(5)])
    loss = DISTLoss(inter=2.0, intra=3.0)(student, teacher)
    assert_close(loss.item(), 2 * inter + 3 * intra)


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (4, 1)])
def test_is_finite_for_one_sample_or_class(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *shape)
    value, gradient = laws.value_and_gradient(DISTLoss(), student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_rejects_weight_that_is_nan() -> None:
    with pytest.raises(ValueError, match=r"`intra` .* got nan"):
        DISTLoss(intra=float("nan"))


@pytest.mark.parametrize("offset", [-20.0, -60.0, -85.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_of_tiny_probability_count(offset: float, dtype: torch.dtype) -> None:
    """The correlation across samples does not depend on the scale of a class."""
    rare = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], dtype=dtype) + offset
    logits = torch.cat([torch.zeros(3, 1, dtype=dtype), rare], 1)
    student, teacher = logits[:, [0, 2, 1]].requires_grad_(), logits
    loss = DISTLoss(inter=0.0, reduction="none")
    values = loss(student, teacher)
    q, p = (x.detach().double().softmax(-1).numpy() for x in (student, teacher))
    expected = sum(1 - pearsonr(q[:, c], p[:, c]).statistic for c in (1, 2))
    # A class of constant probability, the first, has no correlation.
    assert_close(values.sum().item(), 3 * expected / 3, rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.isfinite().all()
    assert gradient[:2, 1:].abs().min() > 1e-3
