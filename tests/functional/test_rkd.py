"""Relational knowledge distillation (RKD) as a function."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from strategies import generators
from torch import Tensor, nn
from torch.testing import assert_close

from msdlosses.functional import rkd_loss

FEATURES = torch.zeros(4, 5)


@given(rng=generators())
def test_ignores_shift_scale_and_rotation(rng: torch.Generator) -> None:
    features = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64))[0]
    moved = 3 * features @ rotation + 7
    assert_close(rkd_loss(moved, features), torch.zeros(6).double(), rtol=0, atol=1e-12)


def test_values_by_hand() -> None:
    """Three points on a line, and a right angle with legs of length 1."""
    line = torch.tensor([[0.0], [1.0], [2.0]]).double()
    corner = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).double()
    mean_line, mean_corner = 4 / 3, (2 + math.sqrt(2)) / 3
    short = (1 / mean_line - 1 / mean_corner) ** 2 / 2
    long = (2 / mean_line - math.sqrt(2) / mean_corner) ** 2 / 2
    distance = rkd_loss(line, corner, angle=0.0)
    assert_close(distance, torch.tensor([short + long, 2 * short, short + long]).double() / 2)
    ends, middle = (1 - math.sqrt(0.5)) ** 2 / 2, 0.5  # cos 0 - cos 45, cos 180 - cos 90
    angle = rkd_loss(line, corner, distance=0.0)
    assert_close(angle, 2 * torch.tensor([ends, middle, ends]).double())


def test_angles_are_a_mean_over_triples_of_different_samples() -> None:
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    losses = nn.functional.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none")
    triples = [
        losses[j, i, k] for j in range(5) for i in range(5) for k in range(5) if len({i, j, k}) == 3
    ]
    values = rkd_loss(student, teacher, distance=0.0, angle=1.0)
    assert_close(values.mean(), torch.stack(triples).mean())


def cosines(features: Tensor) -> Tensor:
    """Entry (j, i, k) is the cosine of the angle at sample j between samples i and k."""
    edges = nn.functional.normalize(features[None] - features[:, None], dim=-1)
    return torch.einsum("jid,jkd->jik", edges, edges)


def test_rejects_batch_sizes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"`student` and `teacher` .* got \(4, 5\) and \(3, 6\)"):
        rkd_loss(FEATURES, torch.zeros(3, 6))


def test_rejects_weight_that_is_not_a_number() -> None:
    with pytest.raises(TypeError, match="`angle` to be a number, got str"):
        rkd_loss(FEATURES, FEATURES, angle="2")
