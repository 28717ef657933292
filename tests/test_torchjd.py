"""Any aggregator or scaliser of TorchJD takes the terms of an `MSDLoss`."""

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


def terms_of(student: nn.Module) -> Tensor:
    """One value for each view."""
    logits = {view: student(x) for view, x in BATCH.student.items()}
    return MSDLoss(KDLoss(2.0)).terms(logits, BATCH.teacher).mean(0)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_takes_the_terms(name: str) -> None:
    student = make_student()
    backward(terms_of(student))
    jac_to_grad(student.parameters(), AGGREGATORS[name]())
    gradients = [p.grad for p in student.parameters()]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.25)])
def test_constant_aggregation_is_a_fixed_weighting(weights: tuple[float, ...]) -> None:
    student, other = make_student(), make_student()
    backward(terms_of(student))
    jac_to_grad(student.parameters(), aggregation.Constant(torch.tensor(weights)))
    weighting = FixedWeighting(**dict(zip(BATCH.student, weights, strict=True)))
    logits = {view: other(x) for view, x in BATCH.student.items()}
    MSDLoss(KDLoss(2.0), weighting)(logits, BATCH.teacher).backward()
    for ours, theirs in zip(other.parameters(), student.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", SCALARIZERS)
def test_a_scalarizer_takes_the_terms(name: str) -> None:
    student, scalarizer = make_student(), SCALARIZERS[name]()
    scalarizer(terms_of(student)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_terms_of_samples_that_lack_a_view_still_have_a_jacobian() -> None:
    """A view that no sample has is a row of zeros."""
    student = make_student()
    logits = {view: student(x) for view, x in BATCH.student.items()}
    valid = torch.tensor([[True, True, False]] * 4)
    terms = MSDLoss(KDLoss()).terms(logits, BATCH.teacher, valid=valid).mean(0)
    backward(terms)
    assert all(not p.jac[2].any() and p.jac[0].any() for p in student.parameters())
    jac_to_grad(student.parameters(), aggregation.UPGrad())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
