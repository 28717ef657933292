"""The teacher's logits and losses that weightings read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategies import make_views
from torch import nn
from torch.nn import functional as F
from weights import compute_weights, msd_call, scipy_cross_entropy

from msdlosses import SaliencyWeighting, TeacherLossWeighting
from msdlosses.functional import kl_divergence

BATCH = make_views("image", "text")


def test_weights_are_detached_from_parameters_of_divergence_and_task_loss() -> None:
    scale = nn.Parameter(torch.ones(()))
    for weighting in (
        SaliencyWeighting(divergence=lambda s, t: scale * kl_divergence(s, t)),
        TeacherLossWeighting(task_loss=lambda x, y: scale * scipy_cross_entropy(x, y)),
    ):
        assert not compute_weights(weighting, BATCH).requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        pytest.param(
            {"target": torch.rand(4, 5)},
            TypeError,
            r"`target` to be a tensor of class indices, got float32 \(4, 5\)",
            id="soft target",
        ),
        pytest.param(
            {"target": "y", "valid": torch.ones(4, 3, dtype=torch.bool)},
            TypeError,
            "`target` to be a tensor of class indices, got str",
            id="string with a mask",
        ),
        pytest.param(
            {"target": BATCH.target[:3]},
            ValueError,
            r"`target` of shape \(4,\), got \(3,\)",
            id="another batch size",
        ),
        pytest.param(
            {"target": BATCH.target + 5},
            IndexError,
            r"`target` in \[0, 5\), got",
            id="class that does not exist",
        ),
    ],
)
def test_rejects_invalid_targets(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    call = msd_call(TeacherLossWeighting(), BATCH, **arguments)
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.type is error


def test_rejects_a_task_loss_that_reduces() -> None:
    call = msd_call(TeacherLossWeighting(task_loss=F.cross_entropy), BATCH)
    with pytest.raises(ValueError, match=r"one value per sample, got float32 \(\).*`task_loss`"):
        call()


def test_task_loss_gets_a_target_of_any_type() -> None:
    """Only a target with the axes of the mask can be filled where it is invalid."""
    target = {"label": BATCH.target}
    weighting = TeacherLossWeighting(
        task_loss=lambda x, y: F.cross_entropy(x, y["label"], reduction="none")
    )
    weights = weighting(
        torch.zeros(4, 3), BATCH.teacher, target, names=BATCH.names, valid=BATCH.valid
    )
    expected = compute_weights(TeacherLossWeighting(), BATCH)
    torch.testing.assert_close(weights, expected)
