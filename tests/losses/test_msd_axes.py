"""What travels with the logits to a weighting: the class axis and the modalities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schemes import CLASSES, SCHEMES, every_scheme, make_weighting
from torch import Tensor
from torch.testing import assert_close

from msdlosses import (
    KDLoss,
    MSDLoss,
    MultiLabelKDLoss,
    SaliencyWeighting,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
    functional,
    modality_saliency,
)
from msdlosses._views import ViewLogits

VIEWS = ("full", "image", "text")


def make_maps() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Make maps (N, C, H, W) of a student and a teacher, and targets (N, H, W)."""
    torch.manual_seed(0)
    shape = (3, CLASSES, 4, 6)
    student, teacher = ({view: torch.randn(shape) for view in VIEWS} for _ in range(2))
    return student, teacher, torch.randint(CLASSES, (3, 4, 6))


def classes_last(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    return {view: x.movedim(1, -1) for view, x in logits.items()}


@every_scheme
@pytest.mark.parametrize("per_view", [False, True], ids=["one criterion", "one per view"])
def test_weights_of_maps_equal_those_of_classes_last(scheme: str, per_view: bool) -> None:
    student, teacher, target = make_maps()

    def parts(dim: int, *logits: dict[str, Tensor]) -> Any:
        torch.manual_seed(0)
        criterion: Any = KDLoss(dim=dim)
        if per_view:
            criterion = {view: KDLoss(dim=dim) for view in VIEWS}
        return MSDLoss(criterion, make_weighting(scheme, VIEWS)).parts(*logits, target)

    maps = parts(1, student, teacher)
    expected = parts(-1, classes_last(student), classes_last(teacher))
    assert_close(maps.weights, expected.weights)
    assert_close(maps.loss, expected.loss)


def test_soft_targets_of_maps() -> None:
    student, teacher, _ = make_maps()
    target = torch.rand(3, CLASSES, 4, 6)
    losses = [
        MSDLoss(
            MultiLabelKDLoss(dim=dim),
            TeacherLossWeighting(task_loss=functional.multilabel_cross_entropy),
        )(*sides)
        for dim, sides in (
            (1, (student, teacher, target)),
            (-1, (classes_last(student), classes_last(teacher), target.movedim(1, -1))),
        )
    ]
    assert_close(*losses)


def test_cue_of_criteria_with_different_axes_is_an_error() -> None:
    student, teacher, _ = make_maps()
    teacher["~image"] = teacher["text"]
    criterion = {view: KDLoss(dim=1 if view == "full" else 2) for view in VIEWS}
    with pytest.raises(ValueError, match=r"criteria with one `dim`.*`~image`"):
        MSDLoss(criterion, SaliencyWeighting())(student, teacher)


@pytest.mark.parametrize(
    "make",
    [
        lambda divergence: SaliencyWeighting(divergence=divergence),
        lambda divergence: WeightNet(VIEWS, num_classes=CLASSES, divergence=divergence),
    ],
)
def test_rejects_divergence_of_another_axis(make: Any) -> None:
    with pytest.raises(ValueError, match="`dim`"):
        make(KDLoss(dim=1))


def test_saliency_is_fitted_to_maps() -> None:
    _, teacher, _ = make_maps()
    fitted = [
        SaliencyWeighting(population=True).fit(teacher, dim=1),
        SaliencyWeighting(population=True).fit(classes_last(teacher)),
    ]
    assert_close(*(dict(weighting.named_buffers()) for weighting in fitted))


# Modalities


def logits_of_three_modalities() -> ViewLogits:
    logits = {view: torch.randn(4, CLASSES) for view in VIEWS}
    return ViewLogits(logits, ("image", "text", "audio"))


def test_text_does_not_stand_for_everything_but_the_image_of_three_modalities() -> None:
    teacher = logits_of_three_modalities()
    with pytest.raises(KeyError, match="~image"):
        modality_saliency(teacher)
    with pytest.raises(KeyError, match="~image"):
        SaliencyWeighting()(torch.zeros(4, 3), teacher, names=VIEWS)
    with pytest.raises(KeyError, match="~image"):
        MSDLoss(KDLoss(), SaliencyWeighting())(dict(teacher), teacher)


def test_views_of_two_modalities_are_each_others_opposites() -> None:
    logits = {view: torch.randn(4, CLASSES) for view in VIEWS}
    known = ViewLogits(logits, ("image", "text"))
    assert_close(modality_saliency(known), modality_saliency(logits))


def test_fit_uses_only_the_views_whose_saliency_is_known() -> None:
    fitted = SaliencyWeighting(population=True).fit(logits_of_three_modalities())
    # Without `~text`, the text is left; without the image, not only the text is.
    assert list(fitted.state_dict()) == ["fitted_full", "fitted_~image", "fitted_~text"]


# Swapped arguments


@pytest.mark.parametrize("loss", [KDLoss(), KDLoss(chunk_size=2), MultiLabelKDLoss()])
def test_rejects_swapped_arguments_in_training(loss: KDLoss) -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    for criterion in (loss, MSDLoss({"full": loss})):
        wrap = (lambda x: x) if criterion is loss else (lambda x: {"full": x})
        with pytest.raises(ValueError, match=r"`student` to require a gradient.* swap"):
            criterion(wrap(teacher), wrap(student))
        with torch.no_grad():
            criterion(wrap(teacher), wrap(student))
        criterion.eval()(wrap(teacher), wrap(student))
        criterion.train()


@every_scheme
def test_teacher_that_requires_a_gradient_is_fine_if_the_student_does(scheme: str) -> None:
    assert isinstance(SCHEMES[scheme].make(VIEWS, CLASSES), Weighting)
    student = {view: torch.randn(4, CLASSES, requires_grad=True) for view in VIEWS}
    teacher = {view: torch.randn(4, CLASSES, requires_grad=True) for view in VIEWS}
    target = torch.zeros(4, dtype=torch.long)
    MSDLoss(KDLoss(), make_weighting(scheme, VIEWS))(student, teacher, target).backward()
    assert all(logits.grad is None for logits in teacher.values())
