"""TensorDict as a mapping from views to logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schemes import CLASSES, every_weighting, make_weighting
from strategies import make_views
from torch.testing import assert_close

from msdlosses import KDLoss, MSDLoss, SaliencyWeighting, modality_saliency

tensordict = pytest.importorskip("tensordict")

pytestmark = pytest.mark.clients

BATCH = make_views("image", "text")


def pack(logits: dict[str, Any]) -> Any:
    return tensordict.TensorDict(logits, batch_size=[4])


@every_weighting
@pytest.mark.parametrize("average", ["sample", "batch"])
def test_losses_equal_those_of_a_dict(scheme: str, average: str) -> None:
    torch.manual_seed(0)
    msd = MSDLoss(KDLoss(2.0), make_weighting(scheme, BATCH.names, CLASSES), average=average)
    packed = msd.parts(pack(BATCH.student), pack(BATCH.teacher), BATCH.target)
    assert packed.names == BATCH.names
    torch.manual_seed(0)
    msd = MSDLoss(KDLoss(2.0), make_weighting(scheme, BATCH.names, CLASSES), average=average)
    assert_close(packed.loss, msd(BATCH.student, BATCH.teacher, BATCH.target))


def test_saliency_equals_that_of_a_dict() -> None:
    assert_close(modality_saliency(pack(BATCH.teacher)), modality_saliency(BATCH.teacher))
    terms, names = torch.zeros(4, 3), BATCH.names
    weights = [
        SaliencyWeighting()(terms, t, names=names) for t in (BATCH.teacher, pack(BATCH.teacher))
    ]
    assert_close(*weights)
    fitted = [
        SaliencyWeighting(population=True).fit(t) for t in (BATCH.teacher, pack(BATCH.teacher))
    ]
    assert_close(*(weighting.state_dict() for weighting in fitted))


def test_missing_views_are_named() -> None:
    student = pack(BATCH.student)
    teacher = pack({view: BATCH.teacher[view] for view in ("full", "image")})
    with pytest.raises(KeyError, match="`teacher` to hold `text`, got `full`, `image`"):
        MSDLoss(KDLoss())(student, teacher)
