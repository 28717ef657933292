"""User code that `mypy --strict` accepts, with the types that the package returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

from msdlosses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    DynamicWeightAverage,
    Fill,
    FixedWeighting,
    HintLoss,
    JSDLoss,
    KDLoss,
    LearnedFill,
    LogitMSELoss,
    MeanFill,
    MetaLearner,
    MetaStep,
    ModalityDropout,
    ModalityViews,
    MSDLoss,
    MSDParts,
    MultiLabelKDLoss,
    ReverseKDLoss,
    RKDLoss,
    SaliencyWeighting,
    Shuffle,
    SPLoss,
    TeacherCache,
    TeacherLossWeighting,
    UncertaintyWeighting,
    Weighting,
    WeightNet,
    functional,
    modality_saliency,
)
from msdlosses.meta import meta_gradient

Batch = Mapping[str, Any]


class Student(nn.Module):
    """A linear layer for each modality."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(4, 3)
        self.text = nn.Linear(2, 3)

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        return self.head(**self.towers(pixels, words))

    def towers(self, pixels: Tensor, words: Tensor) -> dict[str, Tensor]:
        return {"image": self.image(pixels), "text": self.text(words)}

    def head(self, image: Tensor, text: Tensor) -> Tensor:
        return image + text


class AbsoluteLoss(DistillationLoss):
    """A custom loss."""

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return (student - teacher.detach()).abs().sum(self.dim)


class HalfWeighting(Weighting):
    """A custom weighting."""

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return torch.full_like(terms, 0.5)


def negate_pixels(batch: Batch) -> Batch:
    """A custom masker."""
    return {**batch, "pixels": -batch["pixels"]}


def make_batch() -> Batch:
    return {"pixels": torch.rand(6, 4), "words": torch.rand(6, 2), "index": torch.arange(6)}


def make_views() -> ModalityViews:
    return ModalityViews(image=Fill(pixels=0.0), text=Fill(words=0.0), ignore=("index",))


def make_logits() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    student, teacher = ({view: torch.randn(6, 3) for view in make_views().names} for _ in range(2))
    return student, teacher, torch.randint(3, (6,))


def test_masking() -> None:
    batch, student = make_batch(), Student()
    views = make_views()
    assert_type(views.names, tuple[str, ...])
    assert_type(views(student, batch), dict[str, Any])
    assert_type(views.late_fusion(student.towers, student.head, batch), dict[str, Any])
    present = dict.fromkeys(views.modalities, torch.ones(6, dtype=torch.bool))
    assert_type(views.valid(present), Tensor)
    mean = MeanFill("pixels").fit([batch])
    assert_type(mean, MeanFill)
    for masker in (mean, LearnedFill(pixels=(4,)), Shuffle("pixels"), negate_pixels):
        assert_type(masker(batch), Mapping[str, Any])
        assert ModalityViews(image=masker, text=Fill(words=0.0)).names == views.names
    assert_type(ModalityDropout(views, p=0.5)(batch), Mapping[str, Any])


def test_losses() -> None:
    student, teacher, target = torch.randn(6, 3), torch.randn(6, 3), torch.randint(3, (6,))
    losses: list[DistillationLoss] = [
        KDLoss(2.0, standardize=True),
        ReverseKDLoss(skew=0.1),
        JSDLoss(2.0, beta=0.5, reduction="sum"),
        DKDLoss(alpha=1.0, beta=2.0),
        DISTLoss(inter=1.0),
        LogitMSELoss(dim=-1),
        MultiLabelKDLoss(torch.tensor(2.0), ignore_index=-100),
        HintLoss(),
        RKDLoss(),
        SPLoss(),
        AbsoluteLoss(reduction="none"),
    ]
    for loss in losses:
        assert_type(loss(student, teacher, target), Tensor)
        assert_type(loss.per_sample(student, teacher, target), Tensor)


def test_functions() -> None:
    student, teacher, target = torch.randn(6, 3), torch.randn(6, 3), torch.randint(3, (6,))
    assert_type(functional.kl_divergence(student, teacher, temperature=2.0), Tensor)
    assert_type(functional.dkd_loss(student, teacher, target), Tensor)
    assert_type(functional.cross_entropy(student, target), Tensor)
    views = {"full": teacher, "image": student, "text": teacher}
    assert_type(modality_saliency(views), dict[str, Tensor])


def test_msd() -> None:
    student, teacher, target = make_logits()
    msd = MSDLoss({view: KDLoss() for view in student}, reduction="mean")
    assert_type(msd(student, teacher), Tensor)
    assert_type(msd.terms(student, teacher), Tensor)
    parts = msd.parts(student, teacher, target)
    assert_type(parts, MSDParts)
    assert_type(parts.weights, Tensor)
    assert_type(parts.names, tuple[str, ...])


def test_weightings() -> None:
    student, teacher, target = make_logits()
    names = make_views().names
    weightings: list[Weighting] = [
        FixedWeighting(full=1.0, image=0.5, text=0.25),
        SaliencyWeighting(population=True, divergence=KDLoss()).fit(teacher),
        TeacherLossWeighting(alpha=1.0, task_loss=functional.cross_entropy),
        UncertaintyWeighting(names),
        DynamicWeightAverage(names),
        WeightNet(names, num_classes=3),
        HalfWeighting(),
    ]
    for weighting in weightings:
        terms = MSDLoss(KDLoss(), weighting).terms(student, teacher, target)
        assert_type(weighting(terms, teacher, target, names=names), Tensor)
        assert_type(weighting.penalty(names), Tensor | float)


def test_learned_weights() -> None:
    student, batch, (_, teacher, target) = Student(), make_batch(), make_logits()
    views = make_views()
    weights = WeightNet(views.names, num_classes=3)
    msd = MSDLoss(KDLoss(), weights)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    learner = MetaLearner(student, optimizer, weights, torch.optim.Adam(weights.parameters()))

    def inner(model: Callable[..., Tensor]) -> Tensor:
        return msd(views(model, batch), teacher, target)

    def outer(model: Callable[..., Tensor]) -> Tensor:
        return nn.functional.cross_entropy(views(model, batch)["full"], target)

    step = learner.step(inner, outer)
    assert_type(step, MetaStep)
    assert_type(step.inner, Tensor)
    assert_type(step.outer, Tensor | None)
    assert_type(step.engine, str | None)
    assert_type(learner.gradient(inner, outer), tuple[Tensor, ...])
    assert_type(meta_gradient(inner, outer, student, optimizer, weights), tuple[Tensor, ...])


def test_cache(tmp_path: Path) -> None:
    views, teacher = make_views(), Student()
    cache = TeacherCache.build(teacher, views, [make_batch()], tmp_path, fingerprint="1")
    assert_type(cache, TeacherCache)
    assert_type(cache[torch.tensor([0, 3])], dict[str, Any])
    assert_type(TeacherCache.open(tmp_path).names, tuple[str, ...])
