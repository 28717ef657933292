"""Similarity-preserving distillation (SP) as a function."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from strategies import generators
from torch import nn
from torch.testing import assert_close

from msdlosses.functional import sp_loss


@given(rng=generators())
def test_ignores_scale_and_rotation(rng: torch.Generator) -> None:
    features = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64))[0]
    moved = 3 * features @ rotation
    assert_close(sp_loss(moved, features), torch.zeros(6).double(), rtol=0, atol=1e-12)


def test_values_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0], [0.0]])
    even = 1 / math.sqrt(2)
    first = ((1 - even) ** 2 + even**2) / 2
    assert_close(sp_loss(student, teacher), torch.tensor([first, (even**2 + even**2) / 2]))


def test_mean_over_samples_is_the_formula_of_the_paper() -> None:
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    grams = [x @ x.T for x in (student, teacher)]
    q, p = (nn.functional.normalize(gram, dim=1) for gram in grams)
    assert_close(sp_loss(student, teacher).mean(), (q - p).square().sum() / 25)


def test_rejects_integer_features() -> None:
    with pytest.raises(TypeError, match=r"`student` .* got int64 \(4, 5\)"):
        sp_loss(torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 5))
