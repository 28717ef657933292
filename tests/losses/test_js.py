"""JSDLoss."""

from __future__ import annotations

import pytest

from msdlosses import JSDLoss


def test_rejects_beta_that_is_nan() -> None:
    with pytest.raises(ValueError, match=r"`beta` in \[0, 1\], got nan"):
        JSDLoss(beta=float("nan"))


def test_rejects_beta_that_is_not_a_number() -> None:
    with pytest.raises(TypeError, match="`beta` to be a number, got NoneType"):
        JSDLoss(beta=None)
