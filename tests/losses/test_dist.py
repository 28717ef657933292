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
