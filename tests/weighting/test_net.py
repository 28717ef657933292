"""WeightNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from schemes import CLASSES
from strategies import ViewBatch, generators, make_views, view_batches
from torch.testing import assert_close
from weights import (
    VIEWS,
    binary_cross_entropy,
    compute_terms,
    compute_weights,
    msd_call,
    scipy_cross_entropy,
    scipy_kl,
)

from msdlosses import KDLoss, MSDLoss, MultiLabelKDLoss, WeightNet
from msdlosses.functional import multilabel_kl_divergence

BATCH = make_views("image", "text")


def make_net(names: tuple[str, ...] = VIEWS, **options: Any) -> WeightNet:
    return WeightNet(names, **{"num_classes": CLASSES} | options)


# Cues


def test_cues_agree_with_scipy() -> None:
    terms, teacher = compute_terms(BATCH), BATCH.teacher
    cues = make_net().cues(terms, teacher, BATCH.target)
    uniform = torch.zeros(4, CLASSES)
    for k, view in enumerate(VIEWS):
        loss = scipy_cross_entropy(teacher[view], BATCH.target)
        confidence = scipy_kl(teacher[view], uniform)
        distance = scipy_kl(teacher["full"], teacher[view])
        expected = torch.stack([terms[:, k], loss, confidence, distance], dim=-1)
        assert_close(cues[:, k], torch.log1p(expected / math.log(CLASSES)))


def test_loss_cue_is_0_without_a_target() -> None:
    net, terms = make_net(), compute_terms(BATCH)
    with_target, without = (net.cues(terms, BATCH.teacher, y) for y in (BATCH.target, None))
    assert not without[..., 1].any()
    assert_close(without[..., [0, 2, 3]], with_target[..., [0, 2, 3]])


def test_cues_of_multilabel_targets() -> None:
    net = make_net(divergence=MultiLabelKDLoss(), task_loss=binary_cross_entropy)
    target = torch.rand(4, CLASSES)
    cues = net.cues(compute_terms(BATCH), BATCH.teacher, target)
    t = BATCH.teacher
    expected = [
        binary_cross_entropy(t["text"], target),
        multilabel_kl_divergence(torch.zeros(4, CLASSES), t["text"]),
        multilabel_kl_divergence(t["text"], t["full"]),
    ]
    assert_close(cues[:, 2, 1:], torch.log1p(torch.stack(expected, -1) / math.log(CLASSES)))


# Weights


@given(batch=view_batches(classes=CLASSES, min_batch=1), rng=generators())
def test_normalized_weights_have_mean_1_over_valid_entries(
    batch: ViewBatch, rng: torch.Generator
) -> None:
    net = make_net(batch.names)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    assert_close(compute_weights(net, batch)[batch.valid].mean(), torch.tensor(1.0))
    complete = make_views(*batch.names[1:], samples=3)
    assert_close(compute_weights(net, complete, valid=None).mean(), torch.tensor(1.0))


def test_normalized_weights_are_finite_if_all_weights_underflow() -> None:
    net = make_net()
    net.network[-1].bias.data.fill_(-1e4)
    weights = compute_weights(net, BATCH)
    weights.sum().backward()
    assert weights.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_weights_differ_between_samples() -> None:
    weights = compute_weights(make_net(normalize=False), BATCH)
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)


def test_gradient_of_the_student_treats_weights_as_constant() -> None:
    batch = make_views("image", "text")
    student = {view: logits.requires_grad_() for view, logits in batch.student.items()}
    net = make_net()
    parts = MSDLoss(KDLoss(), net).parts(student, batch.teacher, batch.target)
    loss_at_constant_weights = (parts.weights.detach() * parts.terms).sum() / 4
    actual, expected = (
        torch.autograd.grad(loss, list(student.values()), retain_graph=True)
        for loss in (parts.loss, loss_at_constant_weights)
    )
    assert_close(actual, expected)
    parts.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_under_autocast_are_float32_and_close_to_full_precision(dtype: torch.dtype) -> None:
    teacher = {view: logits.to(dtype) for view, logits in BATCH.teacher.items()}
    net, terms = make_net(), compute_terms(BATCH)
    with torch.autocast("cpu", dtype):
        weights = net(terms, teacher, BATCH.target, names=VIEWS)
    assert weights.dtype == torch.float32
    assert_close(weights, net(terms, teacher, BATCH.target, names=VIEWS), rtol=2e-2, atol=1e-2)


def test_terms_need_no_full_view() -> None:
    """The full view of the teacher is valid where all views of the terms are."""
    second = torch.tensor([1])
    teacher = dict(BATCH.teacher)
    teacher["full"] = teacher["full"].index_fill(0, second, float("nan"))
    teacher["text"] = teacher["text"].index_fill(0, second, float("nan"))
    valid = torch.ones(4, 2, dtype=torch.bool)
    valid[1, 1] = False
    net = make_net(("image", "text"))
    weights = net(torch.rand(4, 2), teacher, BATCH.target, names=net.names, valid=valid)
    weights[valid].sum().backward()
    assert weights.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_repr_shows_the_options() -> None:
    assert f"names={VIEWS}, num_classes=5, normalize=True" in repr(make_net())


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        pytest.param(
            {"names": "full"},
            TypeError,
            "`names` to be a sequence of views, got str",
            id="string for names",
        ),
        pytest.param({"names": ()}, ValueError, "`names`.* got none", id="no names"),
        pytest.param(
            {"names": ("full", "full")},
            ValueError,
            "`names`.* got `full`, `full`",
            id="repeated name",
        ),
        pytest.param(
            {"num_classes": 0},
            ValueError,
            "`num_classes` of at least 1, got 0",
            id="no classes",
        ),
        pytest.param(
            {"num_classes": 5.5},
            TypeError,
            "`num_classes` to be an integer, got float",
            id="float for num_classes",
        ),
        pytest.param(
            {"hidden": 0}, ValueError, "`hidden` of at least 1, got 0", id="no hidden units"
        ),
        pytest.param(
            {"normalize": False, "synchronize": True},
            ValueError,
            "`normalize` with `synchronize`",
            id="synchronize without normalize",
        ),
        pytest.param(
            {"divergence": "kl"},
            TypeError,
            "`divergence` to be callable, got str",
            id="name of a divergence",
        ),
    ],
)
def test_rejects_invalid_arguments(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        make_net(**arguments)
    assert caught.type is error


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(
            msd_call(make_net(("full", "text", "image")), BATCH),
            ValueError,
            "`names` to be `full`, `text`, `image`, got `full`, `image`, `text`",
            id="another order of views",
        ),
        pytest.param(
            msd_call(make_net(num_classes=6), BATCH),
            ValueError,
            r"`teacher\['full'\]`.* got 5",
            id="another number of classes",
        ),
        pytest.param(
            msd_call(
                make_net(("text",)),
                BATCH,
                student={"text": BATCH.student["text"]},
                teacher={"text": BATCH.teacher["text"]},
            ),
            KeyError,
            "`teacher` to hold.*`full`, got `text`",
            id="teacher without a full view",
        ),
        pytest.param(
            msd_call(make_net().to("meta"), BATCH),
            ValueError,
            r"WeightNet on cpu, got meta.* `\.to`",
            id="another device",
        ),
    ],
)
def test_rejects_invalid_calls(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.type is error
