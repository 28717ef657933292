"""Errors of `MSDLoss`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from msd_helpers import ConstantWeighting
from strategies import make_views
from torch import Tensor

from msdlosses import DKDLoss, KDLoss, MSDLoss, RKDLoss, SaliencyWeighting
from msdlosses.functional import kl_divergence

Call = Callable[[], object]
Errors = dict[str, tuple[Call, type[Exception], str]]
"""A call, the type of its error, and a pattern of the message."""

BATCH = make_views("image", "text")
STUDENT, TEACHER = BATCH.student, BATCH.teacher
LOGITS = STUDENT["full"]  # (4, 5)
WIDER = torch.zeros(4, 6)
POSITIONS = LOGITS[:, None]
MASK = torch.ones(4, 3, dtype=torch.bool)
MSD = MSDLoss(KDLoss())


def parametrize(errors: Errors) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("call", "error", "message"), list(errors.values()), ids=list(errors)
    )


def assert_raises(call: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error


def without(logits: Mapping[str, Tensor], view: str) -> dict[str, Tensor]:
    return {name: values for name, values in logits.items() if name != view}


def call_with_weights(weights: Any) -> Call:
    return lambda: MSDLoss(KDLoss(), ConstantWeighting(weights))(STUDENT, TEACHER)


OPTIONS: Errors = {
    "criterion that is a function": (
        lambda: MSDLoss(kl_divergence),
        TypeError,
        "`criterion` to be a DistillationLoss.* got function",
    ),
    "criterion of a view that is a string": (
        lambda: MSDLoss({"full": "kd"}),
        TypeError,
        r"`criterion\['full'\]` to be a DistillationLoss.* got str",
    ),
    "no criteria": (lambda: MSDLoss({}), ValueError, "`criterion` .*views.* got"),
    "no criterion for a view": (
        lambda: MSDLoss({"full": KDLoss(), "text": KDLoss()})(STUDENT, TEACHER),
        KeyError,
        "`criterion` .*`image`, got `full`, `text`",
    ),
    "weighting that is a class": (
        lambda: MSDLoss(KDLoss(), SaliencyWeighting),
        TypeError,
        "`weighting` to be a Weighting, got ABCMeta",
    ),
    "reduction": (
        lambda: MSDLoss(KDLoss(), reduction="batchmean"),
        ValueError,
        "`reduction` to be one of `mean`, `sum`, `none`, got 'batchmean'",
    ),
    "average": (
        lambda: MSDLoss(KDLoss(), average="positions"),
        ValueError,
        "`average` to be one of `sample`, `batch`, got 'positions'",
    ),
}


@parametrize(OPTIONS)
def test_rejects_options(call: Call, error: type[Exception], message: str) -> None:
    assert_raises(call, error, message)


VIEWS: Errors = {
    "student that is a tensor": (
        lambda: MSD(LOGITS, TEACHER),
        TypeError,
        r"`student` to be a mapping of views to logits, got float32 \(4, 5\)",
    ),
    "student without views": (
        lambda: MSD({}, TEACHER),
        ValueError,
        "`student` .*views to logits, got",
    ),
    "view without logits": (
        lambda: MSD(STUDENT, TEACHER | {"text": None}),
        TypeError,
        r"`teacher\['text'\]` to be a floating-point tensor, got NoneType",
    ),
    "no batch axis": (
        lambda: MSD({"full": LOGITS[0]}, {"full": LOGITS[0]}),
        ValueError,
        r"`student\['full'\]` .*\(N, \.\.\., C\), got \(5,\)",
    ),
    "teacher without a view of the student": (
        lambda: MSD(STUDENT, without(TEACHER, "text")),
        KeyError,
        "`teacher` to hold .*`text`, got `full`, `image`",
    ),
    "different classes": (
        lambda: MSD(STUDENT, TEACHER | {"text": WIDER}),
        ValueError,
        r"`student\['text'\]` and `teacher\['text'\]` of one shape .*got \(4, 5\) and \(4, 6\)",
    ),
    "different batch sizes": (
        lambda: MSD(STUDENT | {"text": LOGITS[:3]}, TEACHER | {"text": LOGITS[:3]}),
        ValueError,
        "`student` views of one batch size, got {'full': 4, 'image': 4, 'text': 3}",
    ),
    "features with different batch sizes": (
        lambda: MSDLoss(RKDLoss())(STUDENT, TEACHER | {"text": WIDER[:3]}),
        ValueError,
        r"`student\['text'\]` and `teacher\['text'\]` of one shape .*got \(4, 5\) and \(3, 6\)",
    ),
    "different devices": (
        lambda: MSD(*[{"full": LOGITS, "text": LOGITS.to("meta")}] * 2),
        ValueError,
        "`student` views on one device, got .*cpu.*meta",
    ),
    "average over positions that one view lacks": (
        lambda: MSDLoss(KDLoss(), average="batch")(
            STUDENT | {"text": POSITIONS}, TEACHER | {"text": POSITIONS}
        ),
        ValueError,
        r"`student` views .*average='batch'.*'image': \(4,\), 'text': \(4, ",
    ),
}


@parametrize(VIEWS)
def test_rejects_views(call: Call, error: type[Exception], message: str) -> None:
    assert_raises(call, error, message)


MASKS: Errors = {
    "numbers": (
        lambda: MSD(STUDENT, TEACHER, valid=MASK.float()),
        TypeError,
        r"`valid` to be a boolean tensor, got float32 \(4, 3\)",
    ),
    "no axis of views": (
        lambda: MSD(STUDENT, TEACHER, valid=MASK[:, 0]),
        ValueError,
        r"`valid` of shape \(N, 3\), .*`full`, `image`, `text`, got \(4,\)",
    ),
    "fewer views": (
        lambda: MSD(STUDENT, TEACHER, valid=MASK[:, :2]),
        ValueError,
        r"`valid` of shape \(N, 3\), .*`full`, `image`, `text`, got \(4, 2\)",
    ),
    "another batch size": (
        lambda: MSD(STUDENT, TEACHER, valid=MASK[:3]),
        ValueError,
        r"`valid` of shape \(4,\).* got \(3,\)",
    ),
}


@parametrize(MASKS)
def test_rejects_masks(call: Call, error: type[Exception], message: str) -> None:
    assert_raises(call, error, message)


TARGETS: Errors = {
    "criterion without its target": (
        lambda: MSDLoss(DKDLoss())(STUDENT, TEACHER),
        ValueError,
        "`target` for DKDLoss, got None",
    ),
    "soft target with ignore_index": (
        lambda: MSDLoss(KDLoss(ignore_index=-100))(STUDENT, TEACHER, torch.rand(4, 5)),
        TypeError,
        r"`target` to be a tensor of class indices, got float32 \(4, 5\)",
    ),
}


@parametrize(TARGETS)
def test_rejects_targets(call: Call, error: type[Exception], message: str) -> None:
    assert_raises(call, error, message)


WEIGHTS: Errors = {
    "list": (call_with_weights([1.0, 1.0, 1.0]), TypeError, "weighting.* tensor, got list"),
    "one weight per sample": (
        call_with_weights(torch.ones(4)),
        ValueError,
        r"`weighting` .*\(3,\), \(4, 3\), .*position, got \(4,\)",
    ),
    "fewer views": (
        call_with_weights(torch.ones(4, 2)),
        ValueError,
        r"`weighting` .*\(3,\), \(4, 3\), .*position, got \(4, 2\)",
    ),
    "another device": (
        call_with_weights(torch.ones(3, device="meta")),
        ValueError,
        "`weighting` .*on cpu, got meta",
    ),
}


@parametrize(WEIGHTS)
def test_rejects_weights(call: Call, error: type[Exception], message: str) -> None:
    assert_raises(call, error, message)
