"""Fixtures of the tests of learned weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from groups import float64


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Make new tensors float64, as finite differences need."""
    with float64():
        yield
