"""Wrong calls: the type of each error, and that it says what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from strategies import make_views
from torch import Tensor
from torch.nn import functional as F

from msdlosses import (
    DistillationLoss,
    FixedWeighting,
    KDLoss,
    MSDLoss,
    SaliencyWeighting,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
    modality_saliency,
)
from msdlosses.functional import kl_divergence, multilabel_kl_divergence

Call = Callable[[], Any]

NAMES = ("full", "image", "text")
BATCH = make_views("image", "text")
S, T, Y = BATCH.student, BATCH.teacher, BATCH.target
X = S["full"]  # (4, 5)
META = X.to("meta")  # another device
SAMPLES = torch.ones(4, dtype=torch.bool)
GRID = torch.ones(4, 3, dtype=torch.bool)
MSD = MSDLoss(KDLoss())


class Given(Weighting):
    """Weights that are handed in."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, terms: Tensor, *others: Any, **options: Any) -> Any:
        return self.weights


def weigh(weighting: Weighting, **options: Any) -> Call:
    """A call of an `MSDLoss` with this weighting."""
    arguments = {"student": S, "teacher": T, "target": Y} | options
    return lambda: MSDLoss(KDLoss(), weighting)(**arguments)


def without(logits: Mapping[str, Tensor], *views: str) -> dict[str, Tensor]:
    return {view: values for view, values in logits.items() if view not in views}


SHAPES = "`student` and `teacher` of one shape (..., C), got (4, 5) and (4, 6)."
WIDER = torch.zeros(4, 6)
NOT_FLOAT = "`student` to be a floating-point tensor, got int64 (4, 5)."

ERRORS: dict[str, tuple[Call, type[Exception], str]] = {
    # functional
    "logits: list": (
        lambda: kl_divergence([[1.0, 2.0]], X),
        TypeError,
        "`student` to be a floating-point tensor, got list.",
    ),
    "logits: integers": (lambda: kl_divergence(X.long(), X), TypeError, NOT_FLOAT),
    "logits: integers, multi-label": (
        lambda: multilabel_kl_divergence(X, X.long()),
        TypeError,
        "`teacher` to be a floating-point tensor, got int64 (4, 5).",
    ),
    "logits: shapes": (lambda: kl_divergence(X, WIDER), ValueError, SHAPES),
    "logits: shapes that broadcast": (
        lambda: kl_divergence(X, X[:1]),
        ValueError,
        "got (4, 5) and (1, 5).",
    ),
    "logits: scalars": (lambda: kl_divergence(X.sum(), X.sum()), ValueError, "got () and ()."),
    "logits: devices": (
        lambda: kl_divergence(X, META),
        ValueError,
        "`student` and `teacher` on one device, got cpu and meta.",
    ),
    "temperature: text": (
        lambda: kl_divergence(X, X, temperature="2"),
        TypeError,
        "`temperature` to be a number, got str.",
    ),
    "temperature: bool": (
        lambda: multilabel_kl_divergence(X, X, temperature=True),
        TypeError,
        "`temperature` to be a number, got bool.",
    ),
    "temperature: zero": (
        lambda: kl_divergence(X, X, temperature=0),
        ValueError,
        "`temperature` to be finite above 0, got 0.",
    ),
    "temperature: positional": (lambda: kl_divergence(X, X, 2.0), TypeError, "positional"),
    "dim: text": (
        lambda: kl_divergence(X, X, dim="C"),
        TypeError,
        "`dim` to be an integer, got str.",
    ),
    "dim: beyond": (
        lambda: kl_divergence(X, X, dim=2),
        IndexError,
        "`dim` to be an axis of (4, 5), got 2.",
    ),
    "saliency: a tensor": (
        lambda: modality_saliency(X),
        TypeError,
        "`teacher` to be a mapping of views to logits, got float32 (4, 5).",
    ),
    "saliency: no views": (
        lambda: modality_saliency({}),
        ValueError,
        "`teacher` to hold at least one view, got none.",
    ),
    "saliency: no logits": (
        lambda: modality_saliency({"full": 1, "text": X}),
        TypeError,
        "`teacher['full']` to be a floating-point tensor, got int.",
    ),
    "saliency: no whole": (
        lambda: modality_saliency(without(T, "full")),
        KeyError,
        "the view `full`, which the saliency of `image` needs, got `image`, `text`.",
    ),
    "saliency: three modalities": (
        lambda: modality_saliency(T | {"audio": X}),
        KeyError,
        "the view `~image`, which the saliency of `image` needs, got `full`, `image`, `text`, `au",
    ),
    # KDLoss
    "kd: temperature": (
        lambda: KDLoss(-1.0),
        ValueError,
        "`temperature` to be finite above 0, got -1.0.",
    ),
    "kd: infinite temperature": (lambda: KDLoss(float("inf")), ValueError, "above 0, got inf."),
    "kd: reduction": (
        lambda: KDLoss(reduction="avg"),
        ValueError,
        "`reduction` to be one of `mean`, `sum`, `none`, got 'avg'.",
    ),
    "kd: shapes": (lambda: KDLoss()(X, WIDER), ValueError, SHAPES),
    "kd: dim": (lambda: KDLoss(dim=-3)(X, X, valid=SAMPLES), IndexError, "axis of (4, 5), got -3."),
    "kd: mask of numbers": (
        lambda: KDLoss()(X, X, valid=SAMPLES.float()),
        TypeError,
        "`valid` to be a boolean tensor, got float32 (4,).",
    ),
    "kd: mask of another batch": (
        lambda: KDLoss()(X, X, valid=SAMPLES[:3]),
        ValueError,
        "`valid` of the shape (4,), or of its first axes, got (3,).",
    ),
    "kd: mask of classes": (
        lambda: KDLoss()(X, X, valid=X > 0),
        ValueError,
        "`valid` of the shape (4,), or of its first axes, got (4, 5).",
    ),
    "kd: mask elsewhere": (
        lambda: KDLoss()(X, X, valid=SAMPLES.to("meta")),
        ValueError,
        "`valid` on cpu, got meta.",
    ),
    "a loss without rows": (DistillationLoss, TypeError, "abstract"),
    # MSDLoss
    "msd: criterion": (
        lambda: MSDLoss(kl_divergence),
        TypeError,
        "`criterion` to be a DistillationLoss or a mapping of views to such, got function.",
    ),
    "msd: criterion of a view": (
        lambda: MSDLoss({"full": "kd"}),
        TypeError,
        "`criterion` to be a DistillationLoss or a mapping of views to such, got str.",
    ),
    "msd: no criteria": (
        lambda: MSDLoss({}),
        ValueError,
        "`criterion` to name at least one view, got none.",
    ),
    "msd: criterion lacks a view": (
        lambda: MSDLoss({"full": KDLoss(), "text": KDLoss()})(S, T),
        KeyError,
        "`criterion` to name the view `image`, got `full`, `text`.",
    ),
    "msd: weighting": (
        lambda: MSDLoss(KDLoss(), SaliencyWeighting),
        TypeError,
        "`weighting` to be a Weighting, got ABCMeta.",
    ),
    "msd: reduction": (
        lambda: MSDLoss(KDLoss(), reduction="batchmean"),
        ValueError,
        "`reduction` to be one of `mean`, `sum`, `none`, got 'batchmean'.",
    ),
    "msd: student": (
        lambda: MSD(X, T),
        TypeError,
        "`student` to be a mapping of views to logits, got float32 (4, 5).",
    ),
    "msd: no views": (
        lambda: MSD({}, T),
        ValueError,
        "`student` to hold at least one view, got none.",
    ),
    "msd: no logits": (
        lambda: MSD(S, T | {"text": None}),
        TypeError,
        "`teacher['text']` to be a floating-point tensor, got NoneType.",
    ),
    "msd: no batch": (
        lambda: MSD({"full": X[0]}, {"full": X[0]}),
        ValueError,
        "`student['full']` of shape (N, ..., C), got (5,).",
    ),
    "msd: teacher lacks a view": (
        lambda: MSD(S, without(T, "text")),
        KeyError,
        "`teacher` to hold the student's view `text`, got `full`, `image`.",
    ),
    "msd: classes": (
        lambda: MSD(S, T | {"text": WIDER}),
        ValueError,
        "`student['text']` and `teacher['text']` of one shape (..., C), got (4, 5) and (4, 6).",
    ),
    "msd: batches": (
        lambda: MSD(S | {"text": X[:3]}, T | {"text": X[:3]}),
        ValueError,
        "`student` views of one batch, got lengths {'full': 4, 'image': 4, 'text': 3}.",
    ),
    "msd: devices of views": (
        lambda: MSD({"full": X, "text": META}, {"full": X, "text": META}),
        ValueError,
        "`student` views on one device, got",
    ),
    "msd: mask of numbers": (
        lambda: MSD(S, T, valid=GRID.float()),
        TypeError,
        "`valid` to be a boolean tensor, got float32 (4, 3).",
    ),
    "msd: mask without views": (
        lambda: MSD(S, T, valid=SAMPLES),
        ValueError,
        "`valid` of shape (N, 3), one column for each of `full`, `image`, `text`, got (4,).",
    ),
    "msd: mask of other views": (
        lambda: MSD(S, T, valid=GRID[:, :2]),
        ValueError,
        "`valid` of shape (N, 3), one column for each of `full`, `image`, `text`, got (4, 2).",
    ),
    "msd: mask of another batch": (
        lambda: MSD(S, T, valid=GRID[:3]),
        ValueError,
        "`valid` of the shape (4,), or of its first axes, got (3,).",
    ),
    # weightings
    "weights: no tensor": (
        weigh(Given([1.0, 1.0, 1.0])),
        TypeError,
        "`weighting` to give a tensor, got list.",
    ),
    "weights: one per sample": (
        weigh(Given(torch.ones(4))),
        ValueError,
        "`weighting` to give weights of shape (4, 3) or (3,), got (4,).",
    ),
    "weights: other views": (weigh(Given(torch.ones(4, 2))), ValueError, "(3,), got (4, 2)."),
    "weights: device": (
        weigh(Given(torch.ones(3, device="meta"))),
        ValueError,
        "`weighting` to give weights on cpu, got meta",
    ),
    "fixed: none": (FixedWeighting, ValueError, "at least one view, got none."),
    "fixed: negative": (
        lambda: FixedWeighting(full=-1),
        ValueError,
        "`full` to be finite and 0 or more, got -1.",
    ),
    "fixed: not a number": (
        lambda: FixedWeighting(full=float("nan")),
        ValueError,
        "`full` to be finite and 0 or more, got nan.",
    ),
    "fixed: text": (
        lambda: FixedWeighting(full="1"),
        TypeError,
        "`full` to be a number, got str.",
    ),
    "fixed: a view is missing": (
        weigh(FixedWeighting(full=1, text=1)),
        KeyError,
        "a weight for each of `full`, `image`, `text`, got `full`, `text`.",
    ),
    "fixed: a view too many": (
        weigh(FixedWeighting(full=1, image=1, text=1, audio=1)),
        KeyError,
        "a weight for each of `full`, `image`, `text`, got `full`, `image`, `text`, `audio`.",
    ),
    "saliency: alpha": (
        lambda: SaliencyWeighting(0),
        ValueError,
        "`alpha` to be finite above 0, got 0.",
    ),
    "saliency: divergence": (
        lambda: SaliencyWeighting(divergence="kl"),
        TypeError,
        "`divergence` to be callable, got str.",
    ),
    "saliency: three modalities in a loss": (
        lambda: MSDLoss(KDLoss(), SaliencyWeighting())(S | {"audio": X}, T | {"audio": X}),
        KeyError,
        "the view `~image`, which the saliency of `image` needs",
    ),
    "saliency: not fitted": (
        weigh(SaliencyWeighting(population=True)),
        RuntimeError,
        "SaliencyWeighting to be fitted for `full`, got none: call `fit` first",
    ),
    "saliency: fitted to what does not tell": (
        weigh(SaliencyWeighting(population=True).fit(T | {"audio": X})),
        RuntimeError,
        "SaliencyWeighting to be fitted for `image`, got `full`",
    ),
    "saliency: fitted to nothing": (
        lambda: SaliencyWeighting().fit([]),
        ValueError,
        "samples to fit SaliencyWeighting to, got none.",
    ),
    "saliency: fitted to a number": (
        lambda: SaliencyWeighting().fit(3),
        TypeError,
        "`teacher` to be a mapping, or several, got int.",
    ),
    "saliency: fitted to tensors": (
        lambda: SaliencyWeighting().fit([X]),
        TypeError,
        "`teacher` to be a mapping of views to logits, got float32 (4, 5).",
    ),
    "saliency: fitted without the whole": (
        lambda: SaliencyWeighting().fit(without(T, "full")),
        KeyError,
        "`teacher` to hold the view `full`, got `image`, `text`.",
    ),
    "teacher loss: alpha": (
        lambda: TeacherLossWeighting("1"),
        TypeError,
        "`alpha` to be a number, got str.",
    ),
    "teacher loss: no target": (
        weigh(TeacherLossWeighting(), target=None),
        ValueError,
        "`target` for TeacherLossWeighting, got None.",
    ),
    "teacher loss: soft target": (
        weigh(TeacherLossWeighting(), target=torch.rand(4, 5)),
        TypeError,
        "`target` to be a tensor of class indices, got float32 (4, 5).",
    ),
    "teacher loss: target of another batch": (
        weigh(TeacherLossWeighting(), target=Y[:3]),
        ValueError,
        "`target` of shape (4,), got (3,).",
    ),
    "teacher loss: target beyond": (
        weigh(TeacherLossWeighting(), target=Y + 5),
        IndexError,
        "Target",
    ),
    "teacher loss: task loss": (
        lambda: TeacherLossWeighting(task_loss="bce"),
        TypeError,
        "`task_loss` to be callable, got str.",
    ),
    "teacher loss: reduced task loss": (
        weigh(TeacherLossWeighting(task_loss=F.cross_entropy)),
        ValueError,
        "`task_loss` to give one value for each of 4 samples, got float32 ().",
    ),
    "weight net: one name": (
        lambda: WeightNet("full", num_classes=5),
        TypeError,
        "`names` to be a sequence of views, got str.",
    ),
    "weight net: no names": (
        lambda: WeightNet((), num_classes=5),
        ValueError,
        "`names` to hold at least one view, got none.",
    ),
    "weight net: classes": (
        lambda: WeightNet(NAMES, num_classes=0),
        ValueError,
        "`num_classes` of at least 1, got 0.",
    ),
    "weight net: part of a class": (
        lambda: WeightNet(NAMES, num_classes=5.5),
        TypeError,
        "`num_classes` to be an integer, got float.",
    ),
    "weight net: hidden": (
        lambda: WeightNet(NAMES, num_classes=5, hidden=0),
        ValueError,
        "`hidden` of at least 1, got 0.",
    ),
    "weight net: other views": (
        weigh(WeightNet(("full", "text", "image"), num_classes=5)),
        ValueError,
        "`names` to be `full`, `text`, `image`, got `full`, `image`, `text`.",
    ),
    "weight net: other classes": (
        weigh(WeightNet(NAMES, num_classes=6)),
        ValueError,
        "`teacher['full']` of 6 classes, got 5.",
    ),
    "weight net: no whole": (
        lambda: MSDLoss(KDLoss(), WeightNet(("text",), num_classes=5))(
            without(S, "full", "image"), without(T, "full", "image")
        ),
        KeyError,
        "`teacher` to hold the view `full`, got `text`.",
    ),
    "a weighting without weights": (Weighting, TypeError, "abstract"),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_a_wrong_call_is_told(call: Call, kind: type[Exception], message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        call()
    assert caught.type is kind
