"""Wrong calls: the type of each error, and that it says what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from strategies import make_views
from torch import Tensor, nn
from torch.nn import functional as F

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
    LogitMSELoss,
    ModalityViews,
    MSDLoss,
    MultiLabelKDLoss,
    ReverseKDLoss,
    RKDLoss,
    SaliencyWeighting,
    SPLoss,
    TeacherLossWeighting,
    UncertaintyWeighting,
    Weighting,
    WeightNet,
    modality_saliency,
)
from msdlosses.functional import (
    cross_entropy,
    dist_loss,
    dkd_loss,
    hint_loss,
    js_divergence,
    kl_divergence,
    logit_mse_loss,
    multilabel_cross_entropy,
    multilabel_kl_divergence,
    reverse_kl_divergence,
    rkd_loss,
    sp_loss,
)

Call = Callable[[], Any]

NAMES = ("full", "image", "text")
BATCH = make_views("image", "text")
S, T, Y = BATCH.student, BATCH.teacher, BATCH.target
X = S["full"]  # (4, 5)
META = X.to("meta")  # another device
SAMPLES = torch.ones(4, dtype=torch.bool)
GRID = torch.ones(4, 3, dtype=torch.bool)
MSD = MSDLoss(KDLoss())


NAN = float("nan")
TAUS = torch.ones(4)
SOFT = torch.rand(4, 5)
WORDS = {"text": X[:, None]}


class Silent(nn.Module):
    """A module that returns nothing."""

    def forward(self, *others: Any, **options: Any) -> None:
        return None


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
    "teacher loss: text for a target": (
        weigh(TeacherLossWeighting(), target="y", valid=GRID),
        TypeError,
        "`target` to be a tensor of class indices, got str.",
    ),
    "dkd: text for a target, under a mask": (
        lambda: DKDLoss()(X, X, "y", valid=SAMPLES),
        TypeError,
        "`target` to be a tensor of class indices, got str.",
    ),
    "teacher loss: target of another batch": (
        weigh(TeacherLossWeighting(), target=Y[:3]),
        ValueError,
        "`target` of shape (4,), got (3,).",
    ),
    "teacher loss: target beyond": (
        weigh(TeacherLossWeighting(), target=Y + 5),
        IndexError,
        "`target` in [0, 5), got",
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
    "weight net: a mean over processes of nothing": (
        lambda: WeightNet(NAMES, num_classes=5, normalize=False, synchronize=True),
        ValueError,
        "Expected `normalize` with `synchronize`, got `synchronize` alone.",
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
    # temperature: tensors
    "temperature: nan": (
        lambda: kl_divergence(X, X, temperature=NAN),
        ValueError,
        "`temperature` to be finite above 0, got nan.",
    ),
    "temperature: none": (
        lambda: reverse_kl_divergence(X, X, temperature=None),
        TypeError,
        "`temperature` to be a number, got NoneType.",
    ),
    "temperature: integers": (
        lambda: kl_divergence(X, X, temperature=torch.tensor(2)),
        TypeError,
        "`temperature` to be a floating-point tensor, got int64 ().",
    ),
    "temperature: for another batch": (
        lambda: js_divergence(X, X, temperature=TAUS[:3]),
        ValueError,
        "`temperature` of one value, or of the first axes of the rows, (4,), got (3,).",
    ),
    "temperature: for each class": (
        lambda: kl_divergence(X, X, temperature=torch.ones(4, 5)),
        ValueError,
        "the first axes of the rows, (4,), got (4, 5).",
    ),
    "temperature: 0 for a sample": (
        lambda: kl_divergence(X, X, temperature=torch.tensor([1.0, 0.0, 2.0, 1.0])),
        ValueError,
        "`temperature` to be finite above 0, got 0 to 2.",
    ),
    "temperature: nan for a sample": (
        lambda: KDLoss(torch.tensor([1.0, NAN]))(X, X),
        ValueError,
        "`temperature` to be finite above 0, got nan.",
    ),
    "temperature: elsewhere": (
        lambda: kl_divergence(X, X, temperature=TAUS.to("meta")),
        ValueError,
        "`temperature` on cpu, got meta.",
    ),
    "temperature: a parameter": (
        lambda: KDLoss(nn.Parameter(torch.tensor(2.0))),
        TypeError,
        "got one that is learned, which would not stay above 0: set `learn_temperature`.",
    ),
    "temperature: learned from 0": (
        lambda: JSDLoss(temperature=0.0, learn_temperature=True),
        ValueError,
        "`temperature` to be finite above 0, got 0.0.",
    ),
    "temperature: a tensor of 0": (
        lambda: MultiLabelKDLoss(torch.tensor(0.0)),
        ValueError,
        "`temperature` to be finite above 0, got 0.",
    ),
    # the other functions of predictions
    "skew: 1": (lambda: kl_divergence(X, X, skew=1.0), ValueError, "`skew` below 1"),
    "skew: negative": (
        lambda: reverse_kl_divergence(X, X, skew=-0.1),
        ValueError,
        "`skew` in [0, 1], got -0.1.",
    ),
    "skew: text": (lambda: KDLoss(skew="0.1"), TypeError, "`skew` to be a number, got str."),
    "beta: beyond": (
        lambda: js_divergence(X, X, beta=1.5),
        ValueError,
        "`beta` in [0, 1], got 1.5.",
    ),
    "beta: nan": (lambda: JSDLoss(NAN), ValueError, "`beta` to be finite, got nan."),
    "beta: none": (lambda: JSDLoss(None), TypeError, "`beta` to be a number, got NoneType."),
    "no classes": (
        lambda: kl_divergence(torch.zeros(4, 0), torch.zeros(4, 0)),
        ValueError,
        "`student` of at least one class, got (4, 0).",
    ),
    "dkd: no target": (
        lambda: DKDLoss()(X, X),
        ValueError,
        "a `target` for DKDLoss, got None.",
    ),
    "dkd: no tensor": (
        lambda: dkd_loss(X, X, [0, 1, 2, 3]),
        TypeError,
        "`target` to be a tensor of class indices, got list.",
    ),
    "dkd: soft target": (
        lambda: dkd_loss(X, X, SOFT),
        TypeError,
        "`target` to be a tensor of class indices, got float32 (4, 5).",
    ),
    "dkd: mask for a target": (
        lambda: dkd_loss(X, X, SAMPLES),
        TypeError,
        "`target` to be a tensor of class indices, got bool (4,).",
    ),
    "dkd: target of another batch": (
        lambda: dkd_loss(X, X, Y[:3]),
        ValueError,
        "`target` of shape (4,), got (3,).",
    ),
    "dkd: target per sample of a sequence": (
        lambda: dkd_loss(X[:, None], X[:, None], Y),
        ValueError,
        "`target` of shape (4, 1), got (4,).",
    ),
    "dkd: target beyond": (
        lambda: dkd_loss(X, X, torch.tensor([0, 1, 2, 5])),
        IndexError,
        "`target` in [0, 5), got 0 to 5.",
    ),
    "dkd: target to ignore": (
        lambda: DKDLoss()(X, X, torch.full((4,), -100)),
        IndexError,
        "`target` in [0, 5), got -100. Name an index that is to be left out as `ignore_index`",
    ),
    "dkd: target elsewhere": (
        lambda: dkd_loss(X, X, Y.to("meta")),
        ValueError,
        "`target` on cpu, got meta.",
    ),
    "dkd: negative weight": (
        lambda: DKDLoss(alpha=-1.0),
        ValueError,
        "`alpha` to be finite and 0 or more, got -1.0.",
    ),
    "dkd: no weight": (
        lambda: dkd_loss(X, X, Y, alpha=0.0, beta=0.0),
        ValueError,
        "`alpha` or `beta` above 0, got 0 and 0.",
    ),
    "dist: weight": (
        lambda: DISTLoss(intra=NAN),
        ValueError,
        "`intra` to be finite and 0 or more, got nan.",
    ),
    "dist: no weight": (
        lambda: dist_loss(X, X, inter=0, intra=0),
        ValueError,
        "`inter` or `intra` above 0, got 0 and 0.",
    ),
    "dist: mask of numbers": (
        lambda: dist_loss(X, X, valid=TAUS),
        TypeError,
        "`valid` to be a boolean tensor, got float32 (4,).",
    ),
    "logit mse: integers": (lambda: logit_mse_loss(X.long(), X), TypeError, NOT_FLOAT),
    "logit mse: shapes": (lambda: LogitMSELoss()(X, WIDER), ValueError, SHAPES),
    "reverse kd: devices": (
        lambda: ReverseKDLoss()(X, META),
        ValueError,
        "`student` and `teacher` on one device, got cpu and meta.",
    ),
    "cross entropy: soft target": (
        lambda: cross_entropy(X, SOFT),
        TypeError,
        "`target` to be a tensor of class indices, got float32 (4, 5).",
    ),
    "cross entropy: no logits": (
        lambda: cross_entropy(None, Y),
        TypeError,
        "`logits` to be a floating-point tensor, got NoneType.",
    ),
    "cross entropy: target beyond": (
        lambda: cross_entropy(X, Y - 5),
        IndexError,
        "`target` in [0, 5), got",
    ),
    "soft scores: integers": (
        lambda: multilabel_cross_entropy(X, torch.ones(4, 5, dtype=torch.long)),
        TypeError,
        "`target` to be a floating-point tensor, got int64 (4, 5).",
    ),
    "soft scores: beyond": (
        lambda: multilabel_cross_entropy(X, 3 * SOFT.clamp(min=0.5)),
        ValueError,
        "`target` in [0, 1], got scores beyond.",
    ),
    "soft scores: classes": (
        lambda: multilabel_cross_entropy(WIDER, SOFT),
        ValueError,
        "`target` as `logits`, float32 (4, 6) on cpu, got float32 (4, 5) on cpu.",
    ),
    # features
    "hint: projection": (
        lambda: HintLoss("linear"),
        TypeError,
        "`projection` to be a module, got str.",
    ),
    "hint: widths": (lambda: HintLoss()(X, WIDER), ValueError, SHAPES),
    "hint: widths of a function": (lambda: hint_loss(X, WIDER), ValueError, SHAPES),
    "hint: projected to another width": (
        lambda: HintLoss(nn.Linear(5, 7))(X, WIDER),
        ValueError,
        "of one shape (..., C), got (4, 7) and (4, 6).",
    ),
    "hint: projected to nothing": (
        lambda: HintLoss(Silent())(X, WIDER),
        TypeError,
        "`student` to be a floating-point tensor, got NoneType.",
    ),
    "rkd: batches": (
        lambda: rkd_loss(X, WIDER[:3]),
        ValueError,
        "`student` and `teacher` of one shape but for the width, got (4, 5) and (3, 6).",
    ),
    "rkd: axes": (
        lambda: RKDLoss()(X, WIDER[:, None]),
        ValueError,
        "of one shape but for the width, got (4, 5) and (4, 1, 6).",
    ),
    "rkd: no weight": (
        lambda: RKDLoss(distance=0.0, angle=0.0),
        ValueError,
        "`distance` or `angle` above 0, got 0 and 0.",
    ),
    "rkd: weight": (
        lambda: rkd_loss(X, X, angle="2"),
        TypeError,
        "`angle` to be a number, got str.",
    ),
    "sp: integers": (lambda: sp_loss(X.long(), X), TypeError, NOT_FLOAT),
    "sp: mask of another batch": (
        lambda: SPLoss()(X, WIDER, valid=SAMPLES[:3]),
        ValueError,
        "`valid` of the shape (4,), or of its first axes, got (3,).",
    ),
    "sp: dim": (lambda: SPLoss(dim=2)(X, X), IndexError, "axis of (4, 5), got 2."),
    # options of every loss
    "loss: dim": (lambda: KDLoss(dim="C"), TypeError, "`dim` to be an integer, got str."),
    "loss: no reduction": (
        lambda: SPLoss(reduction=None),
        ValueError,
        "`reduction` to be one of `mean`, `sum`, `none`, got None.",
    ),
    "loss: option": (lambda: KDLoss(tau=2.0), TypeError, "tau"),
    "ignore: part of a class": (
        lambda: KDLoss(ignore_index=0.5),
        TypeError,
        "`ignore_index` to be an integer, got float.",
    ),
    "ignore: no target": (
        lambda: KDLoss(ignore_index=-100)(X, X),
        ValueError,
        "a `target` for KDLoss, got None.",
    ),
    "ignore: soft target": (
        lambda: MSDLoss(KDLoss(ignore_index=-100))(S, T, SOFT),
        TypeError,
        "`target` to be a tensor of class indices, got float32 (4, 5).",
    ),
    "ignore: target of another batch": (
        lambda: KDLoss(ignore_index=-100)(X, X, Y[:3]),
        ValueError,
        "`target` of shape (4,), got (3,).",
    ),
    "msd: dkd without a target": (
        lambda: MSDLoss(DKDLoss())(S, T),
        ValueError,
        "a `target` for DKDLoss, got None.",
    ),
    "msd: average": (
        lambda: MSDLoss(KDLoss(), average="positions"),
        ValueError,
        "`average` to be one of `sample`, `batch`, got 'positions'.",
    ),
    "msd: average over positions that one view lacks": (
        lambda: MSDLoss(KDLoss(), average="batch")(
            S | {"text": X[:, None]}, T | {"text": X[:, None]}
        ),
        ValueError,
        "views that all have positions, or none, to average over the batch's, got axes",
    ),
    "temperature: a tensor for a number": (
        lambda: setattr(KDLoss(2.0), "temperature", torch.tensor(2.0)),
        TypeError,
        "`temperature` to be a number, got float32 ().",
    ),
    "temperature: set to 0": (
        lambda: setattr(KDLoss(2.0), "temperature", 0.0),
        ValueError,
        "`temperature` to be finite above 0, got 0.0.",
    ),
    "msd: features of another batch": (
        lambda: MSDLoss(RKDLoss())(S, T | {"text": WIDER[:3]}),
        ValueError,
        "`student['text']` and `teacher['text']` of one shape but for the width",
    ),
    "views: a model that returns nothing": (
        lambda: ModalityViews(image=Fill(pixels=0.0), text=Fill(words=0.0))(
            Silent(), {"pixels": X, "words": X}
        ),
        TypeError,
        "the model to return a tensor, or logits by attribute or key, got NoneType.",
    ),
    # the other weightings
    "saliency: divergence of a report": (
        lambda: modality_saliency(T, divergence="kl"),
        TypeError,
        "`divergence` to be callable, got str.",
    ),
    "saliency: fitted under a mask of numbers": (
        lambda: SaliencyWeighting().fit(T, valid=GRID.float()),
        TypeError,
        "`valid` to be a boolean tensor, got float32 (4, 3).",
    ),
    "saliency: fitted under a mask of other views": (
        lambda: SaliencyWeighting().fit(T, valid=GRID[:, :2]),
        ValueError,
        "`valid` of shape (N, 3), one column for each of `full`, `image`, `text`, got (4, 2).",
    ),
    "saliency: one mask for many batches": (
        lambda: SaliencyWeighting().fit([T, T], valid=GRID),
        TypeError,
        "`valid` to be a mask for each batch, got bool (4, 3).",
    ),
    "saliency: too few masks": (
        lambda: SaliencyWeighting().fit([T, T], valid=[GRID]),
        TypeError,
        "`valid` to be a boolean tensor, got NoneType.",
    ),
    "saliency: too many masks": (
        lambda: SaliencyWeighting().fit([T], valid=[GRID, GRID]),
        ValueError,
        "one mask in `valid` for each batch, got more.",
    ),
    "saliency: nothing valid to fit to": (
        lambda: SaliencyWeighting().fit(T, valid=~GRID),
        ValueError,
        "samples to fit SaliencyWeighting to, got none.",
    ),
    "uncertainty: one name": (
        lambda: UncertaintyWeighting("full"),
        TypeError,
        "`names` to be a sequence of views, got str.",
    ),
    "uncertainty: no names": (
        lambda: UncertaintyWeighting(()),
        ValueError,
        "`names` to hold at least one view, got none.",
    ),
    "uncertainty: a name twice": (
        lambda: UncertaintyWeighting(("full", "text", "full")),
        ValueError,
        "`names` to name each view once, got `full`, `text`, `full`.",
    ),
    "uncertainty: other views": (
        weigh(UncertaintyWeighting(("full", "text"))),
        KeyError,
        "a weight for each of `full`, `image`, `text`, got `full`, `text`.",
    ),
    "dynamic: a number of views": (
        lambda: DynamicWeightAverage(3),
        TypeError,
        "`names` to be a sequence of views, got int.",
    ),
    "dynamic: temperature": (
        lambda: DynamicWeightAverage(NAMES, temperature=0),
        ValueError,
        "`temperature` to be finite above 0, got 0.",
    ),
    "dynamic: other views": (
        weigh(DynamicWeightAverage((*NAMES, "audio"))),
        KeyError,
        "a weight for each of",
    ),
    "teacher loss: alpha is nan": (
        lambda: TeacherLossWeighting(NAN),
        ValueError,
        "`alpha` to be finite above 0, got nan.",
    ),
    "weight net: a name twice": (
        lambda: WeightNet(("full", "full"), num_classes=5),
        ValueError,
        "`names` to name each view once",
    ),
    "weight net: divergence": (
        lambda: WeightNet(NAMES, num_classes=5, divergence=None),
        TypeError,
        "`divergence` to be callable, got NoneType.",
    ),
    "a weighting without weights": (Weighting, TypeError, "abstract"),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_a_wrong_call_is_told(call: Call, kind: type[Exception], message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        call()
    assert caught.type is kind


def test_values_are_not_looked_at_while_a_graph_is_compiled_or_mapped() -> None:
    """There is no one value to look at; eager code is told, a graph stays whole."""
    wrong = torch.tensor([1.0, 0.0, 1.0, 1.0])
    rows = torch.func.vmap(lambda tau: kl_divergence(X[0], X[0], temperature=tau))(wrong)
    assert rows[[0, 2, 3]].isfinite().all()
    torch.compiler.reset()
    compiled = torch.compile(kl_divergence, fullgraph=True, backend="eager")
    assert compiled(X, X, temperature=wrong)[[0, 2, 3]].isfinite().all()
