"""Aggregators and scalarizers of TorchJD take the terms of an `MSDLoss`."""

from __future__ import annotations

import pytest
import torch
from strategies import make_views
from torch import Tensor, nn
from torch.testing import assert_close
from torchjd import aggregation, scalarization
from torchjd.autojac import backward, jac_to_grad

from msdlosses import FixedWeighting, KDLoss, MSDLoss

CLASSES = 5
BATCH = make_views("image", "text", classes=CLASSES)
AGGREGATORS = {
    "mean": aggregation.Mean,
    "sum": aggregation.Sum,
    "upgrad": aggregation.UPGrad,
    "mgda": aggregation.MGDA,
    "pcgrad": aggregation.PCGrad,
    "aligned": aggregation.AlignedMTL,
    "dual projection": aggregation.DualProj,
}
SCALARIZERS = {
    "mean": scalarization.Mean,
    "sum": scalarization.Sum,
    "geometric mean": scalarization.GeometricMean,
    "imtl": lambda: scalarization.IMTLL(3),
    "uncertainty": lambda: scalarization.UW(3),
    "dynamic": scalarization.DWA,
}


def make_student() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(CLASSES, CLASSES)


def student_logits(student: nn.Module) -> dict[str, Tensor]:
    return {view: student(inputs) for view, inputs in BATCH.student.items()}


def mean_terms(student: nn.Module) -> Tensor:
    """Return one loss per view."""
    return MSDLoss(KDLoss(2.0)).terms(student_logits(student), BATCH.teacher).mean(0)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators_take_the_terms(name: str) -> None:
    student = make_student()
    backward(mean_terms(student))
    jac_to_grad(student.parameters(), AGGREGATORS[name]())
    gradients = [p.grad for p in student.parameters()]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.25)])
def test_constant_aggregation_equals_fixed_weighting(weights: tuple[float, ...]) -> None:
    aggregated, weighted = make_student(), make_student()
    backward(mean_terms(aggregated))
    jac_to_grad(aggregated.parameters(), aggregation.Constant(torch.tensor(weights)))
    weighting = FixedWeighting(**dict(zip(BATCH.student, weights, strict=True)))
    MSDLoss(KDLoss(2.0), weighting)(student_logits(weighted), BATCH.teacher).backward()
    for actual, expected in zip(weighted.parameters(), aggregated.parameters(), strict=True):
        assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize("name", SCALARIZERS)
def test_scalarizers_take_the_terms(name: str) -> None:
    student, scalarizer = make_student(), SCALARIZERS[name]()
    scalarizer(mean_terms(student)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_view_without_samples_has_a_jacobian_of_zeros() -> None:
    student = make_student()
    valid = torch.tensor([[True, True, False]] * 4)
    terms = MSDLoss(KDLoss()).terms(student_logits(student), BATCH.teacher, valid=valid).mean(0)
    backward(terms)
    assert all(not p.jac[2].any() and p.jac[0].any() for p in student.parameters())
    jac_to_grad(student.parameters(), aggregation.UPGrad())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
