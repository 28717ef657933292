"""UncertaintyWeighting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import make_views
from torch.testing import assert_close
from torchjd.scalarization import UW
from weights import VIEWS, compute_terms, compute_weights, msd_call

from msdlosses import KDLoss, MSDLoss, UncertaintyWeighting

BATCH = make_views("image", "text")


def test_initial_weights_are_1_without_penalty() -> None:
    weighting = UncertaintyWeighting(VIEWS)
    assert torch.equal(compute_weights(weighting, BATCH), torch.ones(4, 3))
    assert torch.equal(weighting.penalty(VIEWS), torch.zeros(3))


def test_loss_and_gradient_agree_with_torchjd() -> None:
    weighting, reference = UncertaintyWeighting(VIEWS), UW(3)
    values = torch.tensor([0.5, -1.0, 2.0])
    weighting.log_variance.data, reference.log_var.data = values.clone(), values.clone()
    loss = MSDLoss(KDLoss(), weighting)(BATCH.student, BATCH.teacher)
    # TorchJD halves each weight, as for regression, so the terms are doubled.
    expected = reference(2 * compute_terms(BATCH).mean(0))
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert_close(weighting.log_variance.grad, reference.log_var.grad)


def test_converges_to_a_variance_of_twice_the_term() -> None:
    """This is the minimum of exp(-s) L + s / 2, and it does not depend on the order of views."""
    terms = torch.tensor([[0.1, 1.0, 4.0]])
    weighting = UncertaintyWeighting(("text", "full", "image"))
    optimizer = torch.optim.SGD(weighting.parameters(), 0.5)
    for _ in range(500):
        weights = weighting(terms, {}, names=VIEWS)
        optimizer.zero_grad()
        (weights * terms + weighting.penalty(VIEWS)).sum().backward()
        optimizer.step()
    assert_close(weighting(terms, {}, names=VIEWS), 0.5 / terms[0], rtol=1e-3, atol=1e-4)


def test_repr_shows_the_options() -> None:
    assert repr(UncertaintyWeighting(VIEWS)) == f"UncertaintyWeighting(names={VIEWS})"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(
            lambda: UncertaintyWeighting("full"),
            TypeError,
            "`names` to be a sequence of views, got str",
            id="string",
        ),
        pytest.param(
            lambda: UncertaintyWeighting(()), ValueError, "`names`.* got none", id="no names"
        ),
        pytest.param(
            lambda: UncertaintyWeighting(("full", "text", "full")),
            ValueError,
            "`names`.* got `full`, `text`, `full`",
            id="repeated name",
        ),
        pytest.param(
            msd_call(UncertaintyWeighting(("full", "text")), BATCH),
            KeyError,
            "`full`, `image`, `text`, got `full`, `text`",
            id="names of other views",
        ),
    ],
)
def test_rejects_invalid_names(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.type is error
