"""Hyperparameters for all methods of the study."""

from __future__ import annotations

import pytest


@pytest.fixture
def hyperparameters() -> dict[str, float]:
    return {
        "rate": 0.02, "decay": 0.1, "word_dropout": 0.0, "dropout": 0.0, "mix": 0.9,
        "temperature": 2.0, "drop": 0.3, "smoothing": 0.1, "alpha": 1.0, "single": 0.5,
        "feature": 0.1, "beta": 1.0, "look_ahead": 0.1, "meta_rate": 0.01, "held_out": 0.1,
        "every": 1,
    }  # fmt: skip
