"""`MSDLoss` with missing modalities, and with masked positions of sequences and images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from msd_helpers import gradients, make_msd, require_grad
from schemes import CLASSES, every_weighting
from strategies import ViewBatch, make_views, view_batches
from torch.testing import assert_close

from msdlosses import KDLoss, MSDLoss
from msdlosses.functional import kl_divergence

NAN = float("nan")


def test_invalid_views_of_a_sample_are_left_out() -> None:
    batch = make_views("image", "text")
    valid = torch.tensor([[True, True, True], [False, True, False], [False] * 3, [True] * 3])
    parts = MSDLoss(KDLoss()).parts(batch.student, batch.teacher, valid=valid)
    terms = MSDLoss(KDLoss()).terms(batch.student, batch.teacher)
    assert parts.count.item() == 3
    assert torch.equal(parts.terms, terms * valid)
    assert torch.equal(parts.weights, valid.float())
    assert_close(parts.loss, terms[valid].sum() / 3)


@every_weighting
@given(batch=view_batches(classes=CLASSES))
def test_nan_of_missing_modalities_does_not_matter(scheme: str, batch: ViewBatch) -> None:
    """The loss, and the gradients of student and weighting, are as for any other logits there."""
    msd = make_msd(scheme, batch.names)
    learned = dict(msd.named_parameters())
    student = require_grad(batch.student)
    filled_student = require_grad({v: x.nan_to_num(1.0) for v, x in batch.student.items()})
    filled_teacher = {v: x.nan_to_num(-1.0) for v, x in batch.teacher.items()}

    loss = msd(student, batch.teacher, batch.target, valid=batch.valid)
    expected_loss = msd(filled_student, filled_teacher, batch.target, valid=batch.valid)
    assert loss.isfinite()
    assert_close(loss, expected_loss)
    actual = gradients(loss, student | learned)
    expected = gradients(expected_loss, filled_student | learned)
    for name, gradient in actual.items():
        assert gradient.isfinite().all()
        assert_close(gradient, expected[name])
    for view, valid in zip(batch.names, batch.valid.unbind(-1), strict=True):
        assert not actual[view][~valid].any()


@every_weighting
@pytest.mark.parametrize("samples", [0, 1, 4])
def test_empty_mask_gives_zero_with_gradient(scheme: str, samples: int) -> None:
    batch = make_views("image", "text", samples=samples)
    nan = {view: torch.full_like(logits, NAN) for view, logits in batch.student.items()}
    student, valid = require_grad(nan), torch.zeros(samples, 3, dtype=torch.bool)
    msd = make_msd(scheme, batch.names)
    loss = msd(student, nan, batch.target, valid=valid)
    assert loss.item() == 0
    for gradient in gradients(loss, student | dict(msd.named_parameters())).values():
        assert torch.equal(gradient, torch.zeros_like(gradient))


@every_weighting
def test_empty_batch_gives_zero_with_gradient(scheme: str) -> None:
    batch = make_views("image", "text", samples=0)
    student = require_grad(batch.student)
    msd = make_msd(scheme, batch.names)
    loss = msd(student, batch.teacher, batch.target)
    assert loss.item() == 0
    for gradient in gradients(loss, student | dict(msd.named_parameters())).values():
        assert torch.equal(gradient, torch.zeros_like(gradient))


# Sequences and images


@every_weighting
@given(batch=view_batches(classes=CLASSES, sequences=True, min_batch=1))
def test_term_of_a_sequence_is_the_mean_over_its_positions(scheme: str, batch: ViewBatch) -> None:
    msd = make_msd(scheme, batch.names)
    parts = msd.parts(batch.student, batch.teacher, batch.target, valid=batch.valid)
    assert parts.loss.isfinite()
    for n, k in batch.valid.nonzero().tolist():
        view = batch.names[k]
        values = kl_divergence(batch.student[view][n], batch.teacher[view][n], temperature=2.0)
        assert_close(parts.terms[n, k], values.mean())


def test_masked_positions_are_left_out_of_the_mean() -> None:
    batch = make_views("image", "text", positions=(3,))
    valid = torch.rand(4, 3, 3) < 0.6
    valid[0] = False  # no valid position in any view
    valid[1] = torch.tensor([True, False, False])  # only the full view is valid
    student = {
        view: logits.masked_fill(~valid[..., k, None], NAN)
        for k, (view, logits) in enumerate(batch.student.items())
    }
    parts = MSDLoss(KDLoss()).parts(student, batch.teacher, valid=valid)
    for n in range(4):
        for k, view in enumerate(batch.names):
            values = kl_divergence(batch.student[view][n], batch.teacher[view][n])[valid[n, :, k]]
            assert_close(parts.terms[n, k], values.sum() / max(len(values), 1))
    assert parts.count.item() == 3
    assert_close(parts.loss, parts.terms.sum() / 3)


def test_images_with_classes_on_axis_1_equal_classes_on_the_last_axis() -> None:
    batch = make_views("image", "text", positions=(2, 3))
    classes_first = [
        {view: logits.movedim(-1, 1) for view, logits in side.items()}
        for side in (batch.student, batch.teacher)
    ]
    for valid in (None, torch.rand(4, 3) < 0.5, torch.rand(4, 2, 3, 3) < 0.5):
        expected = MSDLoss(KDLoss())(batch.student, batch.teacher, valid=valid)
        assert_close(MSDLoss(KDLoss(dim=1))(*classes_first, valid=valid), expected)


def test_sequences_of_length_0_have_loss_0() -> None:
    batch = make_views("image", "text", positions=(0,))
    assert MSDLoss(KDLoss())(batch.student, batch.teacher).item() == 0
