"""What an `MSDLoss` adds up, and what it divides by: counts, penalties, and positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msd_helpers import ConstantWeighting
from schemes import CLASSES
from sequences import VALID, VIEWS, make_sequences
from strategies import make_views
from torch import Tensor
from torch.testing import assert_close

from msdlosses import KDLoss, MSDLoss, UncertaintyWeighting
from msdlosses.functional import kl_divergence

BATCH = make_sequences()
TOKENS = torch.stack([kl_divergence(BATCH.student[v], BATCH.teacher[v]) for v in VIEWS], dim=-1)
"""The losses of all positions: (N, L, K)."""
WEIGHTS = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))
SAMPLES = VALID.any(1).any(-1).sum()
POSITIONS = VALID.any(-1).sum()

every_average = pytest.mark.parametrize("average", ["sample", "batch"])


def by_hand(weights: Tensor, average: str) -> Tensor:
    """The sum over samples and views, with a loop over every position."""
    total = torch.zeros(())
    for n in range(4):
        for k in range(3):
            losses = [weights[n, p, k] * TOKENS[n, p, k] for p in range(4) if VALID[n, p, k]]
            if losses:
                total += sum(losses) / (len(losses) if average == "sample" else 1)
    return total


@every_average
@pytest.mark.parametrize("shape", [(3,), (4, 3), (4, 4, 3)], ids=["view", "sample", "position"])
def test_loss_agrees_with_a_loop_over_positions(average: str, shape: tuple[int, ...]) -> None:
    weights = WEIGHTS.flatten()[: torch.Size(shape).numel()].reshape(shape)
    per_position = weights.reshape(*(1,) * (3 - len(shape)), *shape)
    if len(shape) == 2:
        per_position = weights.unsqueeze(1)
    expected = by_hand(per_position.expand(4, 4, 3), average)
    losses = {
        reduction: MSDLoss(
            KDLoss(), ConstantWeighting(weights), average=average, reduction=reduction
        )(BATCH.student, BATCH.teacher, valid=VALID)
        for reduction in ("sum", "mean", "none")
    }
    assert_close(losses["sum"], expected)
    assert_close(losses["none"].sum(), expected)
    assert losses["none"].shape == (4,)
    assert_close(losses["mean"], expected / (SAMPLES if average == "sample" else POSITIONS))


@every_average
def test_weights_keep_the_shape_in_which_they_are_returned(average: str) -> None:
    for weights in (WEIGHTS[0, 0], WEIGHTS[:, 0], WEIGHTS):
        msd = MSDLoss(KDLoss(), ConstantWeighting(weights), average=average)
        parts = msd.parts(BATCH.student, BATCH.teacher, valid=VALID)
        assert parts.weights.shape == weights.shape
    assert not parts.weights[~VALID].any()
    assert_close(parts.weights[VALID], WEIGHTS[VALID])


@every_average
def test_nan_weights_of_invalid_positions_do_not_matter(average: str) -> None:
    weights = WEIGHTS.masked_fill(~VALID, float("nan"))
    msd = MSDLoss(KDLoss(), ConstantWeighting(weights), average=average, reduction="sum")
    assert_close(msd(BATCH.student, BATCH.teacher, valid=VALID), by_hand(WEIGHTS, average))


@every_average
@given(split=st.integers(1, 3), ignored=st.integers(0, CLASSES - 1))
def test_parts_of_a_batch_add_up(average: str, split: int, ignored: int) -> None:
    """As in the recipes for several processes and for gradient accumulation."""
    weighting = UncertaintyWeighting(VIEWS)
    torch.nn.init.constant_(weighting.log_variance, 0.5)
    msd = MSDLoss(KDLoss(ignore_index=ignored), weighting, average=average)

    def parts(start: int, stop: int) -> tuple[Tensor, Tensor]:
        student, teacher = (
            {view: x[start:stop] for view, x in side.items()}
            for side in (BATCH.student, BATCH.teacher)
        )
        parts = msd.parts(student, teacher, BATCH.target[start:stop], valid=VALID[start:stop])
        return parts.loss * parts.count, parts.count

    (first, n), (second, m), (whole, count) = parts(0, split), parts(split, 4), parts(0, 4)
    assert n + m == count
    assert_close(first + second, whole)


def test_count_without_masks() -> None:
    counts = [
        MSDLoss(KDLoss(), average=average).parts(BATCH.student, BATCH.teacher).count
        for average in ("sample", "batch")
    ]
    assert [count.item() for count in counts] == [4, 16]


def test_sample_mask_in_a_batch_average_counts_all_positions() -> None:
    valid = torch.tensor([[True, True, True], [True, False, True], [False] * 3, [True] * 3])
    parts = MSDLoss(KDLoss(), average="batch").parts(BATCH.student, BATCH.teacher, valid=valid)
    assert parts.count.item() == 12
    assert_close(parts.loss, TOKENS.sum(1)[valid].sum() / 12)


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
def test_rare_views_do_not_change_the_weights_that_uncertainty_learns(share: float) -> None:
    """The minimum of the weighted terms and penalties is exp(-s) = 1 / (2 L) for every share."""
    batch = make_views("image", "text", samples=8)
    valid = torch.ones(8, 3, dtype=torch.bool)
    valid[:, 1] = torch.arange(8) < 8 * share
    settled = {}
    for reduction in ("mean", "sum"):
        weighting = UncertaintyWeighting(batch.names)
        msd = MSDLoss(KDLoss(), weighting, reduction=reduction)
        optimizer = torch.optim.SGD(weighting.parameters(), 1.0 if reduction == "mean" else 0.125)
        for _ in range(200):
            optimizer.zero_grad()
            msd(batch.student, batch.teacher, valid=valid).backward()
            optimizer.step()
        settled[reduction] = weighting.log_variance.neg().exp().detach()
    terms = MSDLoss(KDLoss()).terms(batch.student, batch.teacher, valid=valid)
    expected = 0.5 / (terms.sum(0) / valid.sum(0).clamp(min=1))
    present = valid.any(0)
    assert_close(settled["mean"][present], expected[present], rtol=1e-3, atol=1e-4)
    assert_close(settled["mean"], settled["sum"])
    assert torch.equal(settled["mean"][~present], torch.ones(3)[~present])


def test_rejects_penalties_of_another_shape() -> None:
    class ScalarPenalty(ConstantWeighting):
        def penalty(self, names: object) -> Tensor:
            return torch.zeros(())

    msd = MSDLoss(KDLoss(), ScalarPenalty(torch.ones(3)))
    with pytest.raises(ValueError, match=r"`penalty` .*one value per view"):
        msd(BATCH.student, BATCH.teacher)
