"""What each loss of features is, beyond the laws that every loss keeps."""

from __future__ import annotations

import copy
import math

import laws
import pytest
import torch
from hypothesis import given
from laws import FEATURE_LOSSES, LOSSES, LossCase
from strategies import generators
from torch import Tensor, nn
from torch.testing import assert_close

from msdlosses import DistillationLoss, HintLoss, MSDLoss, RKDLoss, SPLoss
from msdlosses import functional as F

RELATIONAL = [case for case in LOSSES if not case.rows_independent]
every_relational = pytest.mark.parametrize("case", RELATIONAL, ids=str)


# Widths


@pytest.mark.parametrize(
    "loss", [HintLoss(nn.Linear(3, 7)), RKDLoss(), SPLoss()], ids=lambda x: type(x).__name__
)
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


def test_hint_is_half_the_squared_distance_of_the_projection() -> None:
    projection = nn.Linear(3, 7)
    student, teacher = torch.randn(5, 3), torch.randn(5, 7)
    expected = 0.5 * (projection(student) - teacher).square().sum(1).mean()
    assert_close(HintLoss(projection)(student, teacher), expected)


def test_a_projection_is_learned_and_saved_with_the_loss() -> None:
    msd = MSDLoss({"full": HintLoss(nn.Linear(3, 7)), "text": HintLoss(nn.Linear(2, 7))})
    student = {"full": torch.randn(5, 3), "text": torch.randn(5, 2)}
    teacher = {view: torch.randn(5, 7) for view in student}
    msd(student, teacher).backward()
    assert all(p.grad is not None for p in msd.parameters())
    assert "criterion.text.projection.weight" in msd.state_dict()
    other = copy.deepcopy(msd)
    assert torch.equal(other(student, teacher), msd(student, teacher))


def test_hints_of_feature_maps_are_projected_by_convolutions() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 7, 4, 4)
    projection = nn.Conv2d(3, 7, 1)
    rows = HintLoss(projection, dim=1, reduction="none")(student, teacher)
    assert_close(rows, 0.5 * (projection(student) - teacher).square().sum(1))


def test_a_projection_under_autocast_gives_a_loss_in_float32() -> None:
    loss = HintLoss(nn.Linear(3, 7))
    student, teacher = torch.randn(5, 3), torch.randn(5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert_close(value, loss(student, teacher), rtol=2e-2, atol=1e-2)


# Relations


@given(rng=generators())
def test_rkd_sees_neither_place_nor_size_nor_turn(rng: torch.Generator) -> None:
    features = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64))[0]
    moved = 3 * features @ turn + 7
    assert_close(F.rkd_loss(moved, features), torch.zeros(6).double(), rtol=0, atol=1e-12)


@given(rng=generators())
def test_sp_sees_neither_size_nor_turn(rng: torch.Generator) -> None:
    features = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64))[0]
    moved = 3 * features @ turn
    assert_close(F.sp_loss(moved, features), torch.zeros(6).double(), rtol=0, atol=1e-12)


def test_rkd_by_hand() -> None:
    """Three points on a line against a right angle with legs of 1."""
    line = torch.tensor([[0.0], [1.0], [2.0]]).double()
    corner = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).double()
    mean_line, mean_corner = 4 / 3, (2 + math.sqrt(2)) / 3
    short = (1 / mean_line - 1 / mean_corner) ** 2 / 2
    long = (2 / mean_line - math.sqrt(2) / mean_corner) ** 2 / 2
    distance = F.rkd_loss(line, corner, angle=0.0)
    assert_close(distance, torch.tensor([short + long, 2 * short, short + long]).double() / 2)
    ends, middle = (1 - math.sqrt(0.5)) ** 2 / 2, 0.5  # cos 0 - cos 45, cos 180 - cos 90
    angle = F.rkd_loss(line, corner, distance=0.0)
    assert_close(angle, 2 * torch.tensor([ends, middle, ends]).double())


def test_sp_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0], [0.0]])
    even = 1 / math.sqrt(2)
    first = ((1 - even) ** 2 + even**2) / 2
    assert_close(F.sp_loss(student, teacher), torch.tensor([first, (even**2 + even**2) / 2]))


@every_relational
@pytest.mark.parametrize("samples", [0, 1, 2])
def test_few_samples_are_finite(case: LossCase, samples: int) -> None:
    student, teacher = torch.randn(2, samples, 4)
    value, gradient = laws.value_and_gradient(case.make(), student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()
    laws.zero_at_equality(case, teacher)


@pytest.mark.parametrize("loss", [RKDLoss(), SPLoss()], ids=lambda x: type(x).__name__)
def test_one_sample_has_no_relations(loss: DistillationLoss) -> None:
    assert loss(torch.randn(1, 4), torch.randn(1, 4)).item() == 0


@pytest.mark.parametrize("case", FEATURE_LOSSES, ids=str)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_zero_and_repeated_features_are_finite(case: LossCase, side: str) -> None:
    student, teacher = torch.randn(2, 5, 4)
    if side != "teacher":
        student[1], student[3] = 0.0, student[2]
    if side != "student":
        teacher[1], teacher[3] = 0.0, teacher[2]
    laws.finite(case, student, teacher)


@pytest.mark.parametrize("case", FEATURE_LOSSES, ids=str)
@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_features_of_any_size(case: LossCase, size: float) -> None:
    student, teacher = size * torch.randn(2, 5, 4)
    value, gradient = laws.value_and_gradient(case.make(), student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_relational
def test_a_functions_mask_leaves_out_of_every_axis(case: LossCase) -> None:
    assert case.function is not None
    student, teacher = torch.randn(2, 6, 4)
    valid = torch.tensor([True, False, True, True, False, True])
    spoilt = [x.masked_fill(~valid[:, None], float("nan")) for x in (student, teacher)]
    rows = case.function(*spoilt, valid=valid)
    assert_close(rows[valid], case.function(student[valid], teacher[valid]))


@pytest.mark.parametrize("loss", [RKDLoss(), SPLoss(), HintLoss()], ids=lambda x: type(x).__name__)
def test_reprs_tell_the_options(loss: DistillationLoss) -> None:
    assert "dim=-1, reduction='mean'" in repr(loss)


def test_the_mean_of_the_rows_is_the_loss_of_the_batch() -> None:
    """By the formula over pairs of the paper, as a mean."""
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    rows = F.sp_loss(student, teacher)
    grams = [x @ x.T for x in (student, teacher)]
    q, p = (nn.functional.normalize(g, dim=1) for g in grams)
    assert_close(rows.mean(), (q - p).square().sum() / 25)


def _angles(features: Tensor) -> Tensor:
    edges = nn.functional.normalize(features[None] - features[:, None], dim=-1)
    return torch.einsum("jid,jkd->jik", edges, edges)


def test_rkd_angles_are_the_mean_over_triples_of_different_samples() -> None:
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    apart = nn.functional.smooth_l1_loss(_angles(student), _angles(teacher), reduction="none")
    there = [
        apart[j, i, k] for j in range(5) for i in range(5) for k in range(5) if len({i, j, k}) == 3
    ]
    rows = F.rkd_loss(student, teacher, distance=0.0, angle=1.0)
    assert_close(rows.mean(), torch.stack(there).mean())
