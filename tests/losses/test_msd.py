"""The terms of an `MSDLoss`, and their sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from laws import LOSSES, LossCase
from msd_helpers import gradients, make_msd, require_grad
from schemes import CLASSES, every_weighting, make_weighting
from strategies import ViewBatch, make_views, view_batches
from torch.testing import assert_close

from msdlosses import (
    FixedWeighting,
    KDLoss,
    MSDLoss,
    MSDParts,
    MultiLabelKDLoss,
    SaliencyWeighting,
)
from msdlosses.functional import kl_divergence, multilabel_kl_divergence


def test_terms_are_per_sample_losses_in_the_order_of_the_student() -> None:
    batch = make_views("image", "text")
    student = {view: batch.student[view] for view in ("text", "full", "image")}
    terms = MSDLoss(KDLoss(2.0)).terms(student, batch.teacher)
    expected = [kl_divergence(student[v], batch.teacher[v], temperature=2.0) for v in student]
    assert_close(terms, torch.stack(expected, dim=-1))


def test_parts_add_up_to_the_loss() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(), FixedWeighting(full=1.0, image=0.5, text=0.25))
    parts = msd.parts(batch.student, batch.teacher)
    assert isinstance(parts, MSDParts)
    assert parts.names == ("full", "image", "text")
    assert parts.count.item() == 4
    assert_close(parts.weights, torch.tensor([1.0, 0.5, 0.25]))
    assert_close(parts.terms, msd.terms(batch.student, batch.teacher))
    assert_close(parts.loss, (parts.weights * parts.terms).sum() / 4)
    assert_close(msd(batch.student, batch.teacher), parts.loss)


def test_loss_computed_by_hand() -> None:
    confident, uniform = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    student = {"full": uniform, "text": confident}
    teacher = {"full": confident, "text": uniform}
    full = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    text = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    msd = MSDLoss(KDLoss(), FixedWeighting(full=1.0, text=0.5))
    assert_close(msd(student, teacher), torch.tensor(full + 0.5 * text))


def test_weighting_only_the_full_view_is_plain_kd() -> None:
    batch = make_views("image", "text")
    msd = MSDLoss(KDLoss(2.0), FixedWeighting(full=1, image=0, text=0))
    kd = KDLoss(2.0)(batch.student["full"], batch.teacher["full"])
    assert torch.equal(msd(batch.student, batch.teacher), kd)


def test_criterion_per_view() -> None:
    batch = make_views("image", "text")
    criterion = {"full": KDLoss(4.0), "image": KDLoss(1.0), "text": MultiLabelKDLoss(2.0)}
    terms = MSDLoss(criterion).terms(batch.student, batch.teacher)
    s, t = batch.student, batch.teacher
    expected = [
        kl_divergence(s["full"], t["full"], temperature=4.0),
        kl_divergence(s["image"], t["image"]),
        multilabel_kl_divergence(s["text"], t["text"], temperature=2.0),
    ]
    assert_close(terms, torch.stack(expected, dim=-1))


def test_reduction_of_the_criterion_does_not_matter() -> None:
    batch = make_views("image", "text")
    mean, total = (MSDLoss(KDLoss(reduction=name)) for name in ("mean", "sum"))
    assert torch.equal(mean(batch.student, batch.teacher), total(batch.student, batch.teacher))


@given(batch=view_batches(classes=CLASSES))
def test_sum_is_count_times_mean(batch: ViewBatch) -> None:
    mean, total, unreduced = (
        MSDLoss(KDLoss(), reduction=name).parts(batch.student, batch.teacher, valid=batch.valid)
        for name in ("mean", "sum", "none")
    )
    assert unreduced.loss.shape == (len(batch.valid),)
    assert_close(total.loss, unreduced.loss.sum())
    assert_close(mean.loss * mean.count, total.loss)


def test_additional_teacher_views_are_cues_but_not_terms() -> None:
    batch = make_views("image", "text", "audio")
    assert set(batch.teacher) > set(batch.student)
    assert MSDLoss(KDLoss()).terms(batch.student, batch.teacher).shape == (4, 4)
    msd = MSDLoss(KDLoss(), SaliencyWeighting())
    assert msd(batch.student, batch.teacher).isfinite()


@every_weighting
def test_teacher_gets_no_gradient(scheme: str) -> None:
    batch = make_views("image", "text")
    student, teacher = require_grad(batch.student), require_grad(batch.teacher)
    make_msd(scheme, batch.names)(student, teacher, batch.target).backward()
    assert all(logits.grad is not None for logits in student.values())
    assert all(logits.grad is None for logits in teacher.values())


@every_weighting
@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_every_loss_works_with_every_weighting(case: LossCase, scheme: str) -> None:
    """Test one criterion for all views, and a criterion per view."""
    batch = make_views("image", "text")
    torch.manual_seed(3)
    weighting = make_weighting(scheme, batch.names)
    terms = []
    for criterion in (case.make(), {view: case.make() for view in batch.names}):
        student = require_grad(batch.student)
        parts = MSDLoss(criterion, weighting).parts(student, batch.teacher, batch.target)
        assert all(g.isfinite().all() for g in gradients(parts.loss, student).values())
        terms.append(parts.terms)
    values = [case.make().per_sample(batch.student[v], batch.teacher[v]) for v in batch.names]
    assert_close(terms[0], torch.stack(values, -1))
    assert_close(terms[1], terms[0])


def test_repr_shows_the_options() -> None:
    text = repr(MSDLoss(KDLoss(), FixedWeighting(full=1), reduction="sum"))
    assert "reduction='sum'" in text
    assert "FixedWeighting(full)" in text
