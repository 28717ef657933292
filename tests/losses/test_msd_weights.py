"""How an `MSDLoss` uses the weights and the penalty of its weighting."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from msd_helpers import ConstantWeighting, require_grad
from schemes import CLASSES, Names
from strategies import make_views
from torch import Tensor, nn
from torch.testing import assert_close

from msdlosses import KDLoss, MSDLoss, Weighting, WeightNet


def test_weight_of_zero_drops_the_term_but_not_the_sample() -> None:
    batch = make_views("image", "text", samples=2)
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    parts = MSDLoss(KDLoss(), ConstantWeighting(weights)).parts(batch.student, batch.teacher)
    assert parts.count.item() == 2
    assert_close(parts.loss, parts.terms[0].sum() / 2)


@pytest.mark.parametrize("shape", [(4, 3), (3,)], ids=["per sample", "per view"])
def test_learned_weight_of_zero_gets_a_gradient(shape: tuple[int, ...]) -> None:
    batch = make_views("image", "text")
    weights = nn.Parameter(torch.zeros(shape))
    parts = MSDLoss(KDLoss(), ConstantWeighting(weights)).parts(batch.student, batch.teacher)
    assert parts.loss.item() == 0
    (gradient,) = torch.autograd.grad(parts.loss, weights)
    expected = parts.terms / 4
    assert_close(gradient, expected if len(shape) == 2 else expected.sum(0))


class PenalizedWeighting(ConstantWeighting):
    def penalty(self, names: Names) -> Tensor:
        return 10 * self.weights


PRESENT = torch.tensor([[True, True, False]] * 3 + [[True, False, False]])
"""Which views of four samples are valid: 4, 3, and 0."""


@pytest.mark.parametrize(
    ("reduction", "share"),
    [
        ("mean", torch.tensor([1.0, 0.75, 0.0])),
        ("sum", torch.tensor([4.0, 3.0, 0.0])),
    ],
)
def test_penalty_of_a_view_counts_once_per_valid_sample(reduction: str, share: Tensor) -> None:
    batch = make_views("image", "text")
    weights = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    plain, penalized = (
        MSDLoss(KDLoss(), weighting, reduction=reduction)(
            batch.student, batch.teacher, valid=PRESENT
        )
        for weighting in (ConstantWeighting(weights), PenalizedWeighting(weights))
    )
    assert_close(penalized - plain, (10 * weights * share).sum())
    (gradient,) = torch.autograd.grad(penalized - plain, weights)
    assert_close(gradient, 10 * share)


def test_unreduced_penalty_adds_up_to_that_of_the_sum() -> None:
    batch = make_views("image", "text")
    weighting = PenalizedWeighting(torch.tensor([1.0, 2.0, 3.0]))
    unreduced, total = (
        MSDLoss(KDLoss(), weighting, reduction=reduction)(
            batch.student, batch.teacher, valid=PRESENT
        )
        for reduction in ("none", "sum")
    )
    assert unreduced.shape == (4,)
    assert_close(unreduced.sum(), total)


def test_no_penalty_without_valid_samples() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(), PenalizedWeighting(nn.Parameter(torch.ones(3))))
    empty_mask = torch.zeros(4, 3, dtype=torch.bool)
    assert msd(batch.student, batch.teacher, valid=empty_mask).item() == 0


def test_learned_weighting_is_part_of_the_module() -> None:
    network = WeightNet(("full", "text"), num_classes=CLASSES)
    msd = MSDLoss({"full": KDLoss(), "text": KDLoss(2.0)}, network)
    state = nn.ModuleDict({"msd": msd}).state_dict()
    assert "msd.weighting.network.0.weight" in state
    assert msd.to(torch.float64).weighting is network
    assert network.network[0].weight.dtype == torch.float64


class UndetachedWeighting(Weighting):
    """A weighting written by a user who does not detach the teacher's confidence."""

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Names,
        valid: Tensor | None = None,
    ) -> Tensor:
        return torch.stack([teacher[view].softmax(-1).amax(-1) for view in names], dim=-1)


def test_teacher_gets_no_gradient_through_the_weights() -> None:
    batch = make_views("image", "text")
    student, teacher = require_grad(batch.student), require_grad(batch.teacher)
    MSDLoss(KDLoss(), UndetachedWeighting())(student, teacher).backward()
    assert all(logits.grad is None for logits in teacher.values())
