"""FixedWeighting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import make_views
from torch.testing import assert_close
from weights import msd_call

from msdlosses import FixedWeighting

BATCH = make_views("image", "text")


def test_weights_follow_the_order_of_names() -> None:
    weighting = FixedWeighting(full=1, image=0.5, text=0.25)
    names = ("text", "full", "image")
    assert_close(weighting(torch.zeros(2, 3), {}, names=names), torch.tensor([0.25, 1.0, 0.5]))


def test_accepts_view_names_that_are_not_identifiers() -> None:
    weighting = FixedWeighting(**{"full": 1, "~image": 0.5})
    weights = weighting(torch.zeros(2, 2), {}, names=("full", "~image"))
    assert_close(weights, torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(FixedWeighting, ValueError, "at least one view, got none", id="no views"),
        pytest.param(
            lambda: FixedWeighting(full=-1), ValueError, "`full`.* got -1", id="negative weight"
        ),
        pytest.param(
            lambda: FixedWeighting(full=float("nan")),
            ValueError,
            "`full`.* got nan",
            id="NaN weight",
        ),
        pytest.param(
            lambda: FixedWeighting(full="1"),
            TypeError,
            "`full` to be a number, got str",
            id="string weight",
        ),
        pytest.param(
            msd_call(FixedWeighting(full=1, text=1), BATCH),
            KeyError,
            "`full`, `image`, `text`, got `full`, `text`",
            id="missing view",
        ),
        pytest.param(
            msd_call(FixedWeighting(full=1, image=1, text=1, audio=1), BATCH),
            KeyError,
            "`full`, `image`, `text`, got `full`, `image`, `text`, `audio`",
            id="unknown view",
        ),
    ],
)
def test_rejects_invalid_weights(
    call: Callable[[], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert caught.type is error
