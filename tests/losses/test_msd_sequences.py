"""`MSDLoss` of padded sequences."""

from __future__ import annotations

import pytest
import torch
from schemes import CLASSES, NONE, claiming, every_weighting, make_weighting
from sequences import LENGTH, TOKENS, VALID, VIEWS, fill_invalid, make_sequences
from torch import Tensor
from torch.testing import assert_close

from msdlosses import DKDLoss, FixedWeighting, KDLoss, MSDLoss
from msdlosses.functional import kl_divergence

NAN = float("nan")
every_average = pytest.mark.parametrize("average", ["sample", "batch"])


def make_msd(scheme: str, average: str = "sample", criterion: KDLoss | None = None) -> MSDLoss:
    """Make a loss whose weighting has the same parameters each time."""
    torch.manual_seed(3)
    return MSDLoss(criterion or KDLoss(2.0), make_weighting(scheme, VIEWS), average=average)


# Invalid positions


@every_weighting
@every_average
@pytest.mark.parametrize("value", [NAN, float("inf"), 1e4])
def test_padding_does_not_affect_the_loss_or_gradients(
    scheme: str, average: str, value: float
) -> None:
    batch = make_sequences()
    results = []
    for fill, padding_class in ((0.0, 0), (value, 3)):
        msd = make_msd(scheme, average)
        student = {v: x.requires_grad_() for v, x in fill_invalid(batch.student, fill).items()}
        target = batch.target.masked_fill(~TOKENS, padding_class)
        loss = msd(student, fill_invalid(batch.teacher, fill), target, valid=VALID)
        loss.backward()
        gradients = [x.grad for x in (*student.values(), *msd.parameters())]
        results.append([loss, *gradients])
    expected, actual = results
    assert actual[0].isfinite()
    assert_close(actual, expected)
    for k, gradient in enumerate(actual[1:4]):
        assert not gradient[~VALID[..., k]].any()


@pytest.mark.parametrize("scheme", [NONE, *claiming("independent")])
def test_padded_batch_equals_samples_without_padding(scheme: str) -> None:
    batch = make_sequences()
    msd = make_msd(scheme)
    lengths = [4, 2, 1]
    valid = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    valid = valid.unsqueeze(-1).expand(-1, -1, 3)
    logits = [{v: x[:3] for v, x in side.items()} for side in (batch.student, batch.teacher)]
    parts = msd.parts(*logits, batch.target[:3], valid=valid)
    for n, length in enumerate(lengths):
        sample = [{v: x[n : n + 1, :length] for v, x in side.items()} for side in logits]
        expected = msd.parts(*sample, batch.target[n : n + 1, :length])
        assert_close(parts.terms[n], expected.terms[0])
        weights = (p.weights.expand_as(p.terms) for p in (parts, expected))
        assert_close(*(w[k] for w, k in zip(weights, (n, 0), strict=True)))


@every_weighting
@every_average
@pytest.mark.parametrize("loss", [KDLoss, DKDLoss])
def test_ignored_target_equals_invalid_position(
    scheme: str, average: str, loss: type[KDLoss]
) -> None:
    batch = make_sequences()
    valid = TOKENS.unsqueeze(-1).expand(-1, -1, 3)
    msd = make_msd(scheme, average, loss())
    expected = msd.parts(batch.student, batch.teacher, batch.target, valid=valid)

    target = batch.target.masked_fill(~TOKENS, -100)
    student = {v: x.masked_fill(~TOKENS[..., None], NAN) for v, x in batch.student.items()}
    msd = make_msd(scheme, average, loss(ignore_index=-100))
    actual = msd.parts(student, batch.teacher, target)
    for name in ("loss", "terms", "weights", "count"):
        assert_close(getattr(actual, name), getattr(expected, name))


@every_weighting
@every_average
def test_empty_mask_gives_zero_with_gradient(scheme: str, average: str) -> None:
    batch = make_sequences()
    student = {v: torch.full_like(x, NAN).requires_grad_() for v, x in batch.student.items()}
    msd = make_msd(scheme, average)
    loss = msd(student, batch.teacher, batch.target, valid=torch.zeros_like(VALID))
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, list(student.values())):
        assert torch.equal(gradient, torch.zeros_like(gradient))


# Averages over positions


def test_batch_average_weights_all_positions_equally() -> None:
    batch = make_sequences()
    msd = MSDLoss(KDLoss(), FixedWeighting(full=1, image=1, text=1), average="batch")
    parts = msd.parts(batch.student, batch.teacher, valid=VALID)
    values = torch.stack([kl_divergence(batch.student[v], batch.teacher[v]) for v in VIEWS], dim=-1)
    positions = VALID.any(-1).sum()
    assert_close(parts.loss, values[VALID].sum() / positions)
    assert parts.count == positions
    per_sample = MSDLoss(KDLoss()).terms(batch.student, batch.teacher, valid=VALID)
    assert_close(parts.terms, per_sample)


@pytest.mark.parametrize("valid", [None, torch.tensor([[True] * 3, [True, False, True]] * 2)])
def test_averages_are_equal_without_padding(valid: Tensor | None) -> None:
    batch = make_sequences()
    losses = [
        MSDLoss(KDLoss(), average=average)(batch.student, batch.teacher, valid=valid)
        for average in ("sample", "batch")
    ]
    assert_close(*losses)


def test_views_with_and_without_positions() -> None:
    """One prediction for each sample from the full input, and one for each token from the text."""
    torch.manual_seed(1)
    student = {"full": torch.randn(3, CLASSES), "text": torch.randn(3, LENGTH, CLASSES)}
    teacher = {view: torch.randn_like(x) for view, x in student.items()}
    target = torch.tensor([[1, -1, -1, -1], [2, 0, 1, -1], [-1, -1, -1, -1]])
    msd = MSDLoss({"full": KDLoss(), "text": KDLoss(ignore_index=-1)})
    parts = msd.parts(student, teacher, target)
    tokens = kl_divergence(student["text"], teacher["text"])
    expected = [tokens[0, 0], tokens[1, :3].mean(), torch.tensor(0.0)]
    assert_close(parts.terms[:, 1], torch.stack(expected))
    assert_close(parts.terms[:, 0], kl_divergence(student["full"], teacher["full"]))
    assert parts.count.item() == 3
