"""Behavior that all losses share, beyond the laws of `test_laws.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import laws
import pytest
import torch
from laws import FEATURE_LOSSES, LOSSES, LossCase
from torch import Tensor, nn
from torch.testing import assert_close

import msdlosses
from msdlosses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    HintLoss,
    JSDLoss,
    KDLoss,
    LogitMSELoss,
    MSDLoss,
    ReverseKDLoss,
    RKDLoss,
    SPLoss,
)
from msdlosses import functional as F

NAN = float("nan")
LOGITS = torch.zeros(4, 5)
VALID = torch.ones(4, dtype=torch.bool)
CLASSES = [
    loss
    for loss in (getattr(msdlosses, name) for name in msdlosses.__all__)
    if inspect.isclass(loss) and issubclass(loss, DistillationLoss) and not inspect.isabstract(loss)
]
RELATIONAL = [case for case in LOSSES if case.make().relational]

every_case = pytest.mark.parametrize("case", LOSSES, ids=str)
every_feature_case = pytest.mark.parametrize("case", FEATURE_LOSSES, ids=str)
every_relational_case = pytest.mark.parametrize("case", RELATIONAL, ids=str)


def class_name(value: object) -> str:
    return type(value).__name__


# Shapes and dtypes


@every_case
def test_thirty_thousand_classes(case: LossCase) -> None:
    """Float32 is accurate, equal logits give exactly 0, and the loss does not shrink."""
    student, teacher = torch.randn(2, 3, 30_522, dtype=torch.float64)
    loss = case.make(reduction="none")
    value, gradient = laws.value_and_gradient(loss, student, teacher)
    single, single_gradient = laws.value_and_gradient(loss, student.float(), teacher.float())
    assert_close(single.double(), value, rtol=1e-4, atol=1e-5)
    scale = gradient.abs().max().item()
    assert_close(single_gradient.double(), gradient, rtol=1e-3, atol=1e-3 * scale)
    laws.zero_at_equality(case, teacher.float())


@every_case
def test_autocast_keeps_float32(case: LossCase) -> None:
    student, teacher = torch.randn(2, 6, 5)
    expected = case.make()(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        value = case.make()(student, teacher)
        half = case.make()(student.bfloat16(), teacher.bfloat16())
    assert value.dtype == half.dtype == torch.float32
    assert_close(value, expected)


@every_case
@pytest.mark.parametrize("dim", [1, -3])
def test_classes_may_be_any_axis(case: LossCase, dim: int) -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4)  # (N, C, H, W)
    last = [logits.movedim(1, -1) for logits in (student, teacher)]
    valid = torch.rand(2, 3, 4) < 0.6
    for mask in (None, valid):
        assert_close(
            case.make(dim=dim, reduction="none")(student, teacher, valid=mask),
            case.make(reduction="none")(*last, valid=mask),
        )


@pytest.mark.parametrize("loss", [HintLoss(nn.Linear(3, 7)), RKDLoss(), SPLoss()], ids=class_name)
def test_student_and_teacher_may_differ_in_width(loss: DistillationLoss) -> None:
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 7)
    valid = torch.tensor([True, True, False, True, True])
    for mask in (None, valid):
        value = loss(student, teacher, valid=mask)
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.any()
    msd = MSDLoss(loss)
    views = {"full": student, "text": student}, {"full": teacher, "text": teacher}
    assert_close(msd(*views), 2 * loss(student, teacher))


# Ignored targets


@pytest.mark.parametrize("loss", [KDLoss, DKDLoss, DISTLoss, LogitMSELoss])
@pytest.mark.parametrize("ignore_index", [-100, -1, 2])
def test_ignore_index_masks_positions(
    loss: Callable[..., DistillationLoss], ignore_index: int
) -> None:
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    target = torch.randint(2, (4, 3))
    ignored = torch.rand(4, 3) < 0.4
    student, teacher = logits.masked_fill(ignored.unsqueeze(-1), NAN)
    masked_target = target.masked_fill(ignored, ignore_index)
    expected = loss()(student, teacher, target, valid=~ignored)
    assert expected.isfinite()
    assert_close(loss(ignore_index=ignore_index)(student, teacher, masked_target), expected)

    valid = torch.tensor([True, False, True, True])
    expected = loss()(student, teacher, target, valid=~ignored & valid[:, None])
    value = loss(ignore_index=ignore_index)(student, teacher, masked_target, valid=valid)
    assert_close(value, expected)


def test_ignore_index_masks_whole_sequences() -> None:
    student, teacher = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    target = torch.tensor([1, -1, 2, -1])
    values = KDLoss(ignore_index=-1, reduction="none")(student, teacher, target)
    assert_close(values[[0, 2]], F.kl_divergence(student, teacher)[[0, 2]])
    assert not values[[1, 3]].any()


# Features


@every_feature_case
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_zero_and_repeated_features_are_finite(case: LossCase, side: str) -> None:
    student, teacher = torch.randn(2, 5, 4)
    if side != "teacher":
        student[1], student[3] = 0.0, student[2]
    if side != "student":
        teacher[1], teacher[3] = 0.0, teacher[2]
    laws.finite(case, student, teacher)


@every_feature_case
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_features_of_any_scale_are_finite(case: LossCase, scale: float) -> None:
    student, teacher = scale * torch.randn(2, 5, 4)
    value, gradient = laws.value_and_gradient(case.make(), student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()


# Losses that compare samples


@every_relational_case
@pytest.mark.parametrize("samples", [0, 1, 2])
def test_few_samples_are_finite(case: LossCase, samples: int) -> None:
    student, teacher = torch.randn(2, samples, 4)
    value, gradient = laws.value_and_gradient(case.make(), student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()
    laws.zero_at_equality(case, teacher)


@pytest.mark.parametrize("loss", [RKDLoss(), SPLoss()], ids=class_name)
def test_one_sample_has_loss_zero(loss: DistillationLoss) -> None:
    assert loss(torch.randn(1, 4), torch.randn(1, 4)).item() == 0


@every_relational_case
def test_function_does_not_compare_with_invalid_samples(case: LossCase) -> None:
    assert case.function is not None
    student, teacher = torch.randn(2, 6, 4)
    valid = torch.tensor([True, False, True, True, False, True])
    masked = [x.masked_fill(~valid[:, None], NAN) for x in (student, teacher)]
    values = case.function(*masked, valid=valid)
    assert_close(values[valid], case.function(student[valid], teacher[valid]))


# Representations


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (KDLoss(2.0, skew=0.1), "temperature=2.0, dim=-1, reduction='mean', skew=0.1"),
        (KDLoss(standardize=True, rescale=False), "temperature=1.0, rescale=False, dim=-1, redu"),
        (KDLoss(2.0, learn_temperature=(1, 8)), "LearnedTemperature(bounds=(1.0, 8.0))"),
        (KDLoss(torch.ones(3), ignore_index=-100), "temperature=(3,), dim=-1, ignore_index=-100"),
        (ReverseKDLoss(skew=0.1), "skew=0.1"),
        (JSDLoss(beta=0.3), "beta=0.3, temperature=1.0, dim=-1, reduction='mean'"),
        (JSDLoss(normalize=True), "reduction='mean', normalize=True"),
        (DKDLoss(), "alpha=1.0, beta=8.0, temperature=1.0"),
        (DISTLoss(), "inter=1.0, intra=1.0, temperature=1.0"),
        (LogitMSELoss(dim=1), "dim=1, reduction='mean'"),
        (HintLoss(), "dim=-1, reduction='mean'"),
        (RKDLoss(), "dim=-1, reduction='mean'"),
        (SPLoss(), "dim=-1, reduction='mean'"),
    ],
)
def test_repr_shows_options(loss: DistillationLoss, text: str) -> None:
    assert text in repr(loss)


# Errors


def test_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract class DistillationLoss"):
        DistillationLoss()


@pytest.mark.parametrize("loss", CLASSES)
def test_rejects_unknown_option(loss: type[DistillationLoss]) -> None:
    with pytest.raises(TypeError, match=rf"^{loss.__name__}\.__init__.*'tau'"):
        loss(tau=2.0)


@pytest.mark.parametrize(
    ("loss", "options", "error", "message"),
    [
        (KDLoss, {"dim": "C"}, TypeError, "`dim` to be an integer, got str"),
        (KDLoss, {"reduction": "avg"}, ValueError, "one of `mean`, `sum`, `none`, got 'avg'"),
        (SPLoss, {"reduction": None}, ValueError, "`reduction` to be one of"),
        (KDLoss, {"ignore_index": 0.5}, TypeError, "`ignore_index` to be an integer, got float"),
    ],
)
def test_rejects_options(
    loss: type[DistillationLoss], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        loss(**options)
    assert caught.type is error


def test_rejects_dim_that_is_not_an_axis() -> None:
    with pytest.raises(IndexError, match=r"`dim` to be an axis of \(4, 5\), got -3"):
        KDLoss(dim=-3)(LOGITS, LOGITS, valid=VALID)


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        pytest.param(VALID.float(), TypeError, "got float32 (4,)", id="numbers"),
        pytest.param(VALID[:3], ValueError, "of shape (4,), got (3,)", id="another batch size"),
        pytest.param(LOGITS > 0, ValueError, "of shape (4,), got (4, 5)", id="per class"),
        pytest.param(VALID.to("meta"), ValueError, "on cpu, got meta", id="another device"),
    ],
)
def test_rejects_mask(valid: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        KDLoss()(LOGITS, LOGITS, valid=valid)
    assert caught.type is error
    assert "`valid`" in str(caught.value)


def test_ignore_index_needs_a_target() -> None:
    with pytest.raises(ValueError, match="`target` for KDLoss, got None"):
        KDLoss(ignore_index=-100)(LOGITS, LOGITS)


def test_ignore_index_rejects_scores() -> None:
    views = {"full": LOGITS, "text": LOGITS}
    with pytest.raises(TypeError, match=r"`target` to be .* class indices, got float32 \(4, 5\)"):
        MSDLoss(KDLoss(ignore_index=-100))(views, views, torch.rand(4, 5))


def test_ignore_index_rejects_target_of_another_batch_size() -> None:
    with pytest.raises(ValueError, match=r"`target` of shape \(4,\) .* got \(3,\)"):
        KDLoss(ignore_index=-100)(LOGITS, LOGITS, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("ignore_index", [-100, 156, 255, 1000])
def test_ignore_index_is_compared_as_a_number(dtype: torch.dtype, ignore_index: int) -> None:
    """In uint8, -100 would be 156."""
    target = torch.tensor([0, 1, 100]).to(dtype)
    student, teacher = torch.randn(2, 3, 200)
    losses = KDLoss(ignore_index=ignore_index, reduction="none")(student, teacher, target)
    assert (losses > 0).all()


def test_ignore_index_of_uint8_targets() -> None:
    student, teacher = torch.randn(2, 3, 200)
    target = torch.tensor([156, 3, 156], dtype=torch.uint8)
    losses = KDLoss(ignore_index=156, reduction="none")(student, teacher, target)
    assert (losses > 0).tolist() == [False, True, False]
