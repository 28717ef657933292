"""Sequences of different length: padding counts nowhere, whatever is written there."""

from __future__ import annotations

import pytest
import torch
from schemes import CLASSES, NONE, claiming, every_weighting, make_weighting
from strategies import ViewBatch, make_views
from torch import Tensor
from torch.testing import assert_close

from msdlosses import (
    DKDLoss,
    FixedWeighting,
    KDLoss,
    MSDLoss,
    SaliencyWeighting,
    TeacherLossWeighting,
)
from msdlosses.functional import kl_divergence, multilabel_cross_entropy

NAN = float("nan")
LENGTH = 4
NAMES = ("full", "image", "text")
PADDED = torch.tensor(
    [
        [True, True, True, True],
        [True, True, False, False],
        [True, False, False, False],
        [False, False, False, False],
    ]
)
VALID = PADDED.unsqueeze(-1).repeat(1, 1, 3)
VALID[0, :, 1] = False  # a sample that lacks the image,
VALID[0, :, 0] = False  # and so the whole
VALID[1, 1, 2] = False  # and one whose text has a hole


def sequences() -> ViewBatch:
    return make_views("image", "text", samples=4, classes=CLASSES, positions=(LENGTH,))


def make_msd(scheme: str, **options: str) -> MSDLoss:
    torch.manual_seed(3)
    return MSDLoss(KDLoss(2.0), make_weighting(scheme, NAMES), **options)


def spoil(logits: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    return {
        view: x.masked_fill(~VALID[..., k, None], value)
        for k, (view, x) in enumerate(logits.items())
    }


@every_weighting
@pytest.mark.parametrize("average", ["sample", "batch"])
@pytest.mark.parametrize("value", [NAN, float("inf"), 1e4])
def test_what_is_padded_leaks_nowhere(scheme: str, average: str, value: float) -> None:
    """Neither into the loss nor into a gradient, be it the student's or the weighting's."""
    batch = sequences()
    found = []
    for fill in (0.0, value):
        msd = make_msd(scheme, average=average)
        student = {v: x.requires_grad_() for v, x in spoil(batch.student, fill).items()}
        target = batch.target.masked_fill(~PADDED, 0 if fill == 0 else 3)
        loss = msd(student, spoil(batch.teacher, fill), target, valid=VALID)
        loss.backward()
        found.append(
            [loss, *(x.grad for x in student.values()), *(p.grad for p in msd.parameters())]
        )
    assert found[1][0].isfinite()
    assert_close(found[1], found[0])
    for k, gradient in enumerate(found[1][1:4]):
        assert not gradient[~VALID[..., k]].any()


@pytest.mark.parametrize("scheme", [NONE, *claiming("independent")])
def test_a_padded_batch_is_the_samples_cut_to_their_length(scheme: str) -> None:
    batch = sequences()
    msd = make_msd(scheme)
    lengths = [4, 2, 1]
    valid = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    valid = valid.unsqueeze(-1).expand(-1, -1, 3)
    first = [{v: x[:3] for v, x in side.items()} for side in (batch.student, batch.teacher)]
    parts = msd.parts(*first, batch.target[:3], valid=valid)
    for n, length in enumerate(lengths):
        one = [{v: x[n : n + 1, :length] for v, x in side.items()} for side in first]
        alone = msd.parts(*one, batch.target[n : n + 1, :length])
        assert_close(parts.terms[n], alone.terms[0])
        assert_close(parts.weights[n], alone.weights[0])


def test_all_positions_of_the_batch_count_alike() -> None:
    batch = sequences()
    msd = MSDLoss(KDLoss(), FixedWeighting(full=1, image=1, text=1), average="batch")
    parts = msd.parts(batch.student, batch.teacher, valid=VALID)
    rows = torch.stack([kl_divergence(batch.student[v], batch.teacher[v]) for v in NAMES], dim=-1)
    positions = VALID.any(-1).sum()
    assert_close(parts.loss, rows[VALID].sum() / positions)
    assert_close(parts.loss, (parts.weights * parts.terms).sum() / parts.count)


@pytest.mark.parametrize("valid", [None, torch.tensor([[True] * 3, [True, False, True]] * 2)])
def test_where_no_sample_is_padded_both_averages_are_one(valid: Tensor | None) -> None:
    batch = sequences()
    losses = [
        MSDLoss(KDLoss(), average=name)(batch.student, batch.teacher, valid=valid)
        for name in ("sample", "batch")
    ]
    assert_close(losses[0], losses[1])


@every_weighting
@pytest.mark.parametrize("average", ["sample", "batch"])
@pytest.mark.parametrize("loss", [KDLoss, DKDLoss])
def test_an_ignored_target_is_a_position_that_is_not_valid(
    scheme: str, average: str, loss: type[KDLoss]
) -> None:
    batch = sequences()
    results = []
    for ignored in (None, -100):
        torch.manual_seed(3)
        msd = MSDLoss(loss(ignore_index=ignored), make_weighting(scheme, NAMES), average=average)
        if ignored is None:
            valid = PADDED.unsqueeze(-1).expand(-1, -1, 3)
            results.append(msd.parts(batch.student, batch.teacher, batch.target, valid=valid))
        else:
            target = batch.target.masked_fill(~PADDED, ignored)
            student = {v: x.masked_fill(~PADDED[..., None], NAN) for v, x in batch.student.items()}
            results.append(msd.parts(student, batch.teacher, target))
    for name in ("loss", "terms", "weights", "count"):
        assert_close(getattr(results[1], name), getattr(results[0], name))


def test_only_some_views_may_have_positions() -> None:
    """An image that is classified as a whole beside the words of a text."""
    torch.manual_seed(1)
    student = {"full": torch.randn(3, CLASSES), "text": torch.randn(3, LENGTH, CLASSES)}
    teacher = {view: torch.randn_like(x) for view, x in student.items()}
    target = torch.tensor([[1, -1, -1, -1], [2, 0, 1, -1], [-1, -1, -1, -1]])
    msd = MSDLoss({"full": KDLoss(), "text": KDLoss(ignore_index=-1)})
    parts = msd.parts(student, teacher, target)
    words = kl_divergence(student["text"], teacher["text"])
    expected = [words[0, 0], words[1, :3].mean(), torch.tensor(0.0)]
    assert_close(parts.terms[:, 1], torch.stack(expected))
    assert_close(parts.terms[:, 0], kl_divergence(student["full"], teacher["full"]))
    assert parts.count.item() == 3


def test_saliency_is_the_mean_over_the_positions_that_both_views_have() -> None:
    batch = sequences()
    t = spoil(batch.teacher, NAN)
    weights = SaliencyWeighting()(torch.zeros(4, 3), t, names=NAMES, valid=VALID)
    rows = kl_divergence(batch.teacher["image"], batch.teacher["full"])  # without the text
    seen = VALID[..., 0] & VALID[..., 1]
    assert_close(weights[1, 2], torch.tanh(rows[1, seen[1]].mean()))
    assert_close(weights[0, 1:], torch.ones(2))  # the whole is not known
    assert_close(weights[3], torch.ones(3))


def test_teacher_loss_is_the_mean_over_the_positions_that_count() -> None:
    batch = sequences()
    target = batch.target.masked_fill(~PADDED, -1)  # no class
    t = spoil(batch.teacher, NAN)
    weights = TeacherLossWeighting()(torch.zeros(4, 3), t, target, names=NAMES, valid=VALID)
    logits, labels = batch.teacher["text"][1], batch.target[1]
    loss = torch.nn.functional.cross_entropy(logits[:1], labels[:1])  # its one position
    assert_close(weights[1, 2], torch.exp(-loss))


def test_teacher_loss_of_soft_scores_of_a_sequence() -> None:
    batch = sequences()
    scores = torch.rand(4, LENGTH, CLASSES).masked_fill(~PADDED[..., None], NAN)
    weighting = TeacherLossWeighting(0.1, task_loss=multilabel_cross_entropy)
    weights = weighting(torch.zeros(4, 3), batch.teacher, scores, names=NAMES, valid=VALID)
    assert weights.isfinite().all()
    expected = multilabel_cross_entropy(batch.teacher["text"][2, :1], scores[2, :1])
    assert_close(weights[2, 2], torch.exp(-0.1 * expected[0]))


def test_a_task_loss_may_have_one_value_for_a_whole_sequence() -> None:
    batch = sequences()
    weighting = TeacherLossWeighting(task_loss=lambda logits, y: logits.nan_to_num().sum((1, 2)))
    weights = weighting(torch.zeros(4, 3), batch.teacher, batch.target, names=NAMES, valid=VALID)
    assert_close(weights[1, 2], torch.exp(-batch.teacher["text"][1].sum()))


def test_population_saliency_is_fitted_to_what_is_known() -> None:
    batch = sequences()
    t = spoil(batch.teacher, NAN)
    fitted = SaliencyWeighting(population=True).fit(t, valid=VALID)
    weights = fitted(torch.zeros(4, 3), {}, names=NAMES)
    single = SaliencyWeighting()(torch.zeros(4, 3), t, names=NAMES, valid=VALID)
    assert_close(weights[2], single[1:3, 2].mean())  # the samples whose text's is known
    halves = [{v: x[k : k + 2] for v, x in t.items()} for k in (0, 2)]
    again = SaliencyWeighting(population=True).fit(iter(halves), valid=VALID.split(2))
    assert_close(again(torch.zeros(4, 3), {}, names=NAMES), weights)


@every_weighting
@pytest.mark.parametrize("average", ["sample", "batch"])
def test_nothing_valid_is_a_joined_zero(scheme: str, average: str) -> None:
    batch = sequences()
    student = {v: torch.full_like(x, NAN).requires_grad_() for v, x in batch.student.items()}
    msd = make_msd(scheme, average=average)
    nothing = torch.zeros_like(VALID)
    loss = msd(student, batch.teacher, batch.target, valid=nothing)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, list(student.values())):
        assert torch.equal(gradient, torch.zeros_like(gradient))
