"""Verdicts on claims."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.verdicts import verdict


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0, 1.2, 0.9], "shown"),
        ([1.0, -1.2, 0.9], "not shown"),
        ([-1.0, -1.2, -0.9], "opposite"),
    ],
)
def test_verdict_depends_on_the_interval(differences: list[float], expected: str) -> None:
    assert verdict(np.array(differences)) == expected
