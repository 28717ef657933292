"""modality_saliency."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from strategies import make_views
from torch import Tensor
from torch.testing import assert_close
from weights import scipy_kl

from msdlosses import DistillationLoss, KDLoss, MultiLabelKDLoss, modality_saliency
from msdlosses.functional import kl_divergence, multilabel_kl_divergence

TEACHER = make_views("image", "text").teacher
FULL = TEACHER["full"]
Divergence = Callable[[Tensor, Tensor], Tensor]


def test_two_modalities_agree_with_scipy() -> None:
    saliency = modality_saliency(TEACHER)
    assert set(saliency) == {"image", "text"}
    assert_close(saliency["image"], scipy_kl(FULL, TEACHER["text"]))
    assert_close(saliency["text"], scipy_kl(FULL, TEACHER["image"]))


def test_three_modalities_agree_with_scipy() -> None:
    teacher = make_views("image", "text", "audio").teacher
    saliency = modality_saliency(teacher)
    assert set(saliency) == {"image", "text", "audio"}
    for modality, values in saliency.items():
        assert_close(values, scipy_kl(teacher["full"], teacher[f"~{modality}"]))


def test_two_modalities_can_be_given_as_complements() -> None:
    complements = {"full": FULL, "~text": TEACHER["image"], "~image": TEACHER["text"]}
    expected = modality_saliency(TEACHER)
    for modality, values in modality_saliency(complements).items():
        assert torch.equal(values, expected[modality])


def test_ignored_modality_has_saliency_0() -> None:
    teacher = TEACHER | {"image": FULL.clone()}  # hiding the text changes nothing
    assert not modality_saliency(teacher)["text"].any()


def test_default_divergence_is_kl() -> None:
    expected = kl_divergence(TEACHER["text"], FULL)
    assert torch.equal(modality_saliency(TEACHER)["image"], expected)
    assert torch.equal(modality_saliency(TEACHER, divergence=KDLoss())["image"], expected)


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    return student.sum(-1) - teacher.sum(-1)


@pytest.mark.parametrize(
    ("divergence", "function"),
    [
        pytest.param(
            MultiLabelKDLoss(2.0), partial(multilabel_kl_divergence, temperature=2.0), id="loss"
        ),
        pytest.param(_difference, _difference, id="function"),
    ],
)
def test_custom_divergence(divergence: DistillationLoss | Divergence, function: Divergence) -> None:
    saliency = modality_saliency(TEACHER, divergence=divergence)
    assert_close(saliency["image"], function(TEACHER["text"], FULL))


def test_sequence_has_one_value_per_position() -> None:
    teacher = make_views("image", "text", positions=(3,)).teacher
    assert modality_saliency(teacher)["text"].shape == (4, 3)


@pytest.mark.parametrize(
    ("teacher", "error", "match"),
    [
        pytest.param(
            FULL,
            TypeError,
            r"`teacher` to be a mapping of views to logits, got float32 \(4, 5\)",
            id="tensor",
        ),
        pytest.param({}, ValueError, "`teacher`.* got an empty one", id="no views"),
        pytest.param(
            {"full": 1, "text": FULL},
            TypeError,
            r"`teacher\['full'\]` to be a floating-point tensor, got int",
            id="number for logits",
        ),
        pytest.param(
            {view: TEACHER[view] for view in ("image", "text")},
            KeyError,
            "`full`.* got `image`, `text`",
            id="no full view",
        ),
        pytest.param(
            TEACHER | {"audio": FULL},
            KeyError,
            "`~image`.* got `full`, `image`, `text`, `audio`",
            id="three modalities without complements",
        ),
    ],
)
def test_rejects_invalid_teacher(teacher: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        modality_saliency(teacher)
    assert caught.type is error


def test_rejects_the_name_of_a_divergence() -> None:
    with pytest.raises(TypeError, match="`divergence` to be callable, got str"):
        modality_saliency(TEACHER, divergence="kl")
