"""Weightings and `MSDLoss` of `LinearLogits`: the values of the same logits as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from linear import CLASSES, OPTIONS, Model, make_models
from schemes import every_weighting, make_weighting
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

from msdlosses import (
    DKDLoss,
    KDLoss,
    LinearLogits,
    MSDLoss,
    MultiLabelKDLoss,
    SaliencyWeighting,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
    modality_saliency,
)
from msdlosses.functional import kl_divergence, multilabel_cross_entropy

VIEWS = ("full", "image", "text")
NAN = float("nan")
exact = partial(assert_close, rtol=1e-10, atol=1e-12)
Models = Mapping[str, Model]


def make_views(*positions: int, **options: Any) -> tuple[Models, Models]:
    pairs = {view: make_models(*positions, **options) for view in VIEWS}
    return {v: s for v, (s, _) in pairs.items()}, {v: t for v, (_, t) in pairs.items()}


def linear(models: Models) -> dict[str, LinearLogits]:
    return {view: model.linear() for view, model in models.items()}


def plain(models: Models) -> dict[str, Tensor]:
    return {view: model.plain() for view, model in models.items()}


def tensors_of(models: Models) -> list[Tensor]:
    return [tensor for model in models.values() for tensor in model.tensors]


def make_valid(*positions: int) -> Tensor:
    valid = torch.rand(*positions, 3) < 0.7
    valid[0] = False
    return valid


# MSDLoss


@every_weighting
@pytest.mark.parametrize("average", ["sample", "batch"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("positions", [(4,), (3, 4)], ids=str)
def test_msd_loss_with_each_weighting(
    scheme: str, average: str, masked: bool, positions: tuple[int, ...]
) -> None:
    student, teacher = make_views(*positions, options=OPTIONS["capped"])
    weighting = make_weighting(scheme, VIEWS, CLASSES)
    weighting = None if weighting is None else weighting.double()
    target = torch.randint(CLASSES, positions)
    msd = MSDLoss(KDLoss(2.0, chunk_size=3), weighting, average=average)
    valid = make_valid(*positions) if masked else None
    parts = msd.parts(linear(student), linear(teacher), target, valid=valid)
    expected = msd.parts(plain(student), plain(teacher), target, valid=valid)
    exact((parts.loss, parts.terms), (expected.loss, expected.terms))
    exact(parts.weights, expected.weights)
    inputs = [*tensors_of(student), *msd.parameters()]
    exact(grad(parts.loss, inputs), grad(expected.loss, inputs))


@pytest.mark.parametrize(
    "weighting",
    [SaliencyWeighting(per_position=True), TeacherLossWeighting(per_position=True)],
    ids=lambda weighting: type(weighting).__name__,
)
def test_weights_per_position(weighting: Weighting) -> None:
    student, teacher = make_views(3, 4)
    target, valid = torch.randint(CLASSES, (3, 4)), make_valid(3, 4)
    msd = MSDLoss(KDLoss(chunk_size=5), weighting)
    parts = msd.parts(linear(student), linear(teacher), target, valid=valid)
    expected = msd.parts(plain(student), plain(teacher), target, valid=valid)
    assert parts.weights.shape == (3, 4, 3)
    exact((parts.loss, parts.weights), (expected.loss, expected.weights))
    exact(grad(parts.loss, tensors_of(student)), grad(expected.loss, tensors_of(student)))


def test_invalid_hidden_states_do_not_matter() -> None:
    student, teacher = make_views(3, 4)
    valid, target = make_valid(3, 4), torch.randint(CLASSES, (3, 4))
    target[~valid.any(-1)] = -100
    for weighting in (SaliencyWeighting(), TeacherLossWeighting(), WeightNet(VIEWS, num_classes=5)):
        msd = MSDLoss(KDLoss(2.0, ignore_index=-100), weighting.double())
        losses = []
        for fill in (0.0, NAN):
            for models in (student, teacher):
                for view, mask in zip(VIEWS, valid.unbind(-1), strict=True):
                    with torch.no_grad():
                        models[view].hidden[~mask] = fill
            losses.append(msd(linear(student), linear(teacher), target, valid=valid))
        exact(*losses)
        gradients = grad(losses[1], tensors_of(student))
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_views_may_differ_in_kind_and_criterion() -> None:
    student, teacher = make_views(4)
    target = torch.randint(CLASSES, (4,))
    criteria = {"full": DKDLoss(chunk_size=2), "image": KDLoss(2.0), "text": MultiLabelKDLoss()}
    msd = MSDLoss(criteria, SaliencyWeighting())
    mixed = plain(teacher) | {"text": teacher["text"].linear()}
    loss = msd(linear(student), mixed | {"~image": teacher["text"].linear()}, target)
    exact(loss, msd(plain(student), plain(teacher), target))


def test_terms_of_weight_zero_are_left_out() -> None:
    student, teacher = make_views(2)
    with torch.no_grad():
        student["text"].hidden[0] = 1e308  # the logits overflow

    class Half(Weighting):
        def forward(self, terms: Tensor, *args: Any, **options: Any) -> Tensor:
            return terms.isfinite().to(terms.dtype)

    loss = MSDLoss(KDLoss(), Half())(linear(student), linear(teacher))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in grad(loss, tensors_of(student)))


# Weightings by themselves


def test_task_loss_gets_plain_logits_of_one_chunk() -> None:
    _, teacher = make_views(3, 4)
    scores = torch.rand(3, 4, CLASSES)
    shapes: set[tuple[int, ...]] = set()

    def task_loss(logits: Tensor, target: Tensor) -> Tensor:
        shapes.add(tuple(logits.shape))
        return multilabel_cross_entropy(logits, target)

    terms = {"names": VIEWS, "terms": torch.zeros(3, 3), "target": scores}
    logits = linear(teacher)
    for view in VIEWS:
        logits[view].chunk_size = 8
    weights = TeacherLossWeighting(0.1, task_loss=task_loss)(teacher=logits, **terms)
    assert shapes == {(8, CLASSES), (4, CLASSES)}
    expected = TeacherLossWeighting(0.1, task_loss=multilabel_cross_entropy)
    assert_close(weights, expected(teacher=plain(teacher), **terms))


def test_chunks_have_the_size_of_the_criterion() -> None:
    sizes: list[int] = []

    class Recorded(Weighting):
        def forward(self, terms: Tensor, teacher: Any, *args: Any, **options: Any) -> Tensor:
            sizes.extend(logits.chunk_size for logits in teacher.values())
            return torch.ones_like(terms)

    student, teacher = make_views(2)
    MSDLoss(KDLoss(chunk_size=7), Recorded())(linear(student), linear(teacher))
    assert sizes == [7, 7, 7]
    MSDLoss(KDLoss(), Recorded())(linear(student), linear(teacher))
    assert sizes[3:] == [512, 512, 512]
    assert teacher["full"].linear().chunk_size == 512


@pytest.mark.parametrize("sequence_target", [True, False])
def test_target_without_positions(sequence_target: bool) -> None:
    """The loss is then called with whole sequences."""
    _, teacher = make_views(3, 4)

    def task_loss(logits: Tensor, target: Tensor) -> Tensor:
        return logits.sum((1, 2)) * target if sequence_target else logits.sum(-1) + target[:, None]

    weighting, target = TeacherLossWeighting(0.1, task_loss=task_loss), torch.arange(3)
    of = [weighting(torch.zeros(3, 3), f(teacher), target, names=VIEWS) for f in (linear, plain)]
    assert_close(*of)


@pytest.mark.parametrize(
    "divergence",
    [None, MultiLabelKDLoss(2.0), MultiLabelKDLoss(2.0, chunk_size=3), kl_divergence],
    ids=["default", "loss", "chunked loss", "function"],
)
def test_saliency_equals_that_of_tensors(divergence: Any) -> None:
    _, teacher = make_views(3, 4, options=OPTIONS["padded"])
    values = modality_saliency(linear(teacher), divergence=divergence)
    exact(values, modality_saliency(plain(teacher), divergence=divergence))
    net = WeightNet(VIEWS, num_classes=CLASSES, divergence=divergence).double()
    cues = [net.cues(torch.rand(3, 3).double() * 0, f(teacher)) for f in (linear, plain)]
    exact(*cues)


def test_views_of_different_classes_are_refused() -> None:
    _, teacher = make_views(3)
    views = linear(teacher)
    views["text"] = views["text"].materialize()[:, :4]
    with pytest.raises(ValueError, match=r"\(3, 5\) on cpu, got \(3, 4\) on cpu"):
        modality_saliency(views)
    with pytest.raises(ValueError, match="7 classes in `teacher"):
        WeightNet(VIEWS, num_classes=7).cues(torch.zeros(3, 3), linear(teacher))


def test_population_weights_are_fitted_to_linear_logits() -> None:
    _, teacher = make_views(3, 4)
    valid = make_valid(3, 4)
    fits: list[Callable[[Models], Any]] = [linear, plain]
    fitted = [SaliencyWeighting(population=True).fit(f(teacher), valid=valid) for f in fits]
    assert_close(
        *({k: fitting.state_dict()[k] for k in fitting.state_dict()} for fitting in fitted)
    )
