"""TeacherLossWeighting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schemes import CLASSES
from strategies import make_views
from torch.nn import functional as F
from torch.testing import assert_close
from weights import VIEWS, binary_cross_entropy, compute_weights, msd_call, scipy_cross_entropy

from msdlosses import TeacherLossWeighting

BATCH = make_views("image", "text")


def test_weights_agree_with_scipy() -> None:
    weights = compute_weights(TeacherLossWeighting(alpha=0.5), BATCH)
    losses = [scipy_cross_entropy(BATCH.teacher[view], BATCH.target) for view in VIEWS]
    assert_close(weights, torch.exp(-0.5 * torch.stack(losses, dim=-1)))


def test_weight_is_small_if_the_teacher_is_wrong() -> None:
    teacher = {"full": torch.tensor([[9.0, 0.0]]), "text": torch.tensor([[0.0, 9.0]])}
    weights = TeacherLossWeighting()(
        torch.zeros(1, 2), teacher, torch.tensor([0]), names=tuple(teacher)
    )
    assert weights[0, 0] > 0.99
    assert weights[0, 1] < 0.01


def test_weights_of_a_sequence_use_the_mean_over_positions() -> None:
    batch = make_views("image", "text", positions=(3,))
    weights = TeacherLossWeighting()(torch.zeros(4, 3), batch.teacher, batch.target, names=VIEWS)
    losses = [F.cross_entropy(batch.teacher["image"][n], batch.target[n]) for n in range(4)]
    assert_close(weights[:, 1], torch.exp(-torch.stack(losses)))


def test_weights_of_multilabel_targets() -> None:
    target = torch.rand(4, CLASSES)
    weighting = TeacherLossWeighting(0.1, task_loss=binary_cross_entropy)
    weights = weighting(torch.zeros(4, 3), BATCH.teacher, target, names=VIEWS)
    p = torch.sigmoid(BATCH.teacher["text"])
    loss = -(target * p.log() + (1 - target) * (1 - p).log()).sum(-1)
    assert_close(weights[:, 2], torch.exp(-0.1 * loss))


def test_repr_shows_the_options() -> None:
    assert repr(TeacherLossWeighting(2.0)) == "TeacherLossWeighting(alpha=2.0)"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        pytest.param({"alpha": "1"}, TypeError, "`alpha` to be a number, got str", id="string"),
        pytest.param({"alpha": float("nan")}, ValueError, "`alpha`.* got nan", id="NaN"),
        pytest.param(
            {"task_loss": "bce"},
            TypeError,
            "`task_loss` to be callable, got str",
            id="name of a task loss",
        ),
    ],
)
def test_rejects_invalid_arguments(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        TeacherLossWeighting(**arguments)
    assert caught.type is error


def test_requires_a_target() -> None:
    call = msd_call(TeacherLossWeighting(), BATCH, target=None)
    with pytest.raises(ValueError, match="`target` for TeacherLossWeighting, got None"):
        call()
