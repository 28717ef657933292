"""Weightings of padded sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schemes import CLASSES
from sequences import LENGTH, TOKENS, VALID, VIEWS, fill_invalid, make_sequences
from torch import Tensor
from torch.testing import assert_close

from msdlosses import KDLoss, MSDLoss, SaliencyWeighting, TeacherLossWeighting
from msdlosses.functional import kl_divergence, multilabel_cross_entropy

NAN = float("nan")
TERMS = torch.zeros(4, 3)


# SaliencyWeighting


def test_saliency_is_a_mean_over_positions_that_are_valid_in_both_views() -> None:
    batch = make_sequences()
    teacher = fill_invalid(batch.teacher, NAN)
    weights = SaliencyWeighting()(TERMS, teacher, names=VIEWS, valid=VALID)
    without_text = kl_divergence(batch.teacher["image"], batch.teacher["full"])
    both = VALID[..., 0] & VALID[..., 1]
    assert_close(weights[1, 2], torch.tanh(without_text[1, both[1]].mean()))
    # Without a full view the saliency is unknown: the weight is the mean of those that are known.
    known = weights[1:3, 2].mean()
    assert_close(weights[[0, 3], 2], known.expand(2))
    assert_close(weights[:, 0], torch.ones(4))


def test_population_weights_are_fitted_to_samples_with_known_saliency() -> None:
    batch = make_sequences()
    teacher = fill_invalid(batch.teacher, NAN)
    fitted = SaliencyWeighting(population=True).fit(teacher, valid=VALID)
    weights = fitted(TERMS, {}, names=VIEWS)
    per_sample = SaliencyWeighting()(TERMS, teacher, names=VIEWS, valid=VALID)
    assert_close(weights[2], per_sample[1:3, 2].mean())  # only samples 1 and 2 have a known one
    halves = [{v: x[k : k + 2] for v, x in teacher.items()} for k in (0, 2)]
    fitted = SaliencyWeighting(population=True).fit(iter(halves), valid=VALID.split(2))
    assert_close(fitted(TERMS, {}, names=VIEWS), weights)


# TeacherLossWeighting


def test_teacher_loss_is_a_mean_over_valid_positions() -> None:
    batch = make_sequences()
    target = batch.target.masked_fill(~TOKENS, -1)  # not a class
    teacher = fill_invalid(batch.teacher, NAN)
    weights = TeacherLossWeighting()(TERMS, teacher, target, names=VIEWS, valid=VALID)
    logits, labels = batch.teacher["text"][1], batch.target[1]
    loss = torch.nn.functional.cross_entropy(logits[:1], labels[:1])  # one valid position
    assert_close(weights[1, 2], torch.exp(-loss))


def test_teacher_loss_of_multilabel_targets() -> None:
    batch = make_sequences()
    scores = torch.rand(4, LENGTH, CLASSES).masked_fill(~TOKENS[..., None], NAN)
    weighting = TeacherLossWeighting(0.1, task_loss=multilabel_cross_entropy)
    weights = weighting(TERMS, batch.teacher, scores, names=VIEWS, valid=VALID)
    assert weights.isfinite().all()
    expected = multilabel_cross_entropy(batch.teacher["text"][2, :1], scores[2, :1])
    assert_close(weights[2, 2], torch.exp(-0.1 * expected[0]))


def test_task_loss_may_return_one_value_per_sequence() -> None:
    def task_loss(logits: Tensor, target: Tensor) -> Tensor:
        return logits.nan_to_num().sum((1, 2))

    batch = make_sequences()
    weighting = TeacherLossWeighting(task_loss=task_loss)
    weights = weighting(TERMS, batch.teacher, batch.target, names=VIEWS, valid=VALID)
    assert_close(weights[1, 2], torch.exp(-batch.teacher["text"][1].sum()))


# Weights per position


def test_a_weight_per_position_from_the_loss_on_it() -> None:
    batch = make_sequences()
    weighting = TeacherLossWeighting(0.5, per_position=True)
    weights = weighting(TERMS, batch.teacher, batch.target, names=VIEWS)
    assert weights.shape == (4, LENGTH, 3)
    logits, labels = batch.teacher["text"][1, 2], batch.target[1, 2]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert_close(weights[1, 2, 2], torch.exp(-0.5 * loss))


def test_a_weight_per_position_from_its_saliency() -> None:
    batch = make_sequences()
    weights = SaliencyWeighting(per_position=True)(TERMS, batch.teacher, names=VIEWS)
    assert weights.shape == (4, LENGTH, 3)
    without_text = kl_divergence(batch.teacher["image"], batch.teacher["full"])
    assert_close(weights[..., 2], torch.tanh(without_text))
    assert torch.equal(weights[..., 0], torch.ones(4, LENGTH))


def test_unknown_saliency_of_a_position_is_the_mean_of_known_ones() -> None:
    batch = make_sequences()
    teacher = fill_invalid(batch.teacher, NAN)
    weighting = SaliencyWeighting(per_position=True)
    weights = weighting(TERMS, teacher, names=VIEWS, valid=VALID)
    saliency = kl_divergence(batch.teacher["image"], batch.teacher["full"])
    known = VALID[..., 0] & VALID[..., 1]
    mean = torch.tanh(saliency[known]).mean()
    assert_close(weights[..., 2][known], torch.tanh(saliency[known]))
    assert_close(weights[..., 2][~known], mean.expand(int((~known).sum())))


@pytest.mark.parametrize("make", [SaliencyWeighting, TeacherLossWeighting])
@pytest.mark.parametrize("average", ["sample", "batch"])
def test_weights_per_position_equal_weights_of_flattened_samples(make: Any, average: str) -> None:
    """Without padding, each position is like a sample of its own."""
    batch = make_sequences()
    flat = [
        {v: x.flatten(0, 1) for v, x in side.items()} for side in (batch.student, batch.teacher)
    ]
    expected = MSDLoss(KDLoss(), make())(*flat, batch.target.flatten())
    msd = MSDLoss(KDLoss(), make(per_position=True), average=average)
    assert_close(msd(batch.student, batch.teacher, batch.target), expected)


def test_rejects_population_weights_per_position() -> None:
    with pytest.raises(ValueError, match=r"`population` or `per_position`.*both"):
        SaliencyWeighting(population=True, per_position=True)
