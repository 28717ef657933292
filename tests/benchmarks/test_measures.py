"""The study's metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import measures


def test_average_precision_matches_its_definition() -> None:
    """The mean over the relevant items of the share of relevant items up to their rank."""
    generator = np.random.default_rng(0)
    scores, target = generator.normal(size=(30, 7)), generator.random((30, 7)) < 0.2
    target[:, 0] = False  # a label without items is left out
    expected = []
    for column in range(1, 7):
        ranked = target[np.argsort(-scores[:, column]), column]
        expected.append(np.mean([ranked[: i + 1].mean() for i in np.flatnonzero(ranked)]))
    average = measures.mean_average_precision(
        torch.tensor(scores), torch.tensor(target, dtype=torch.float)
    )
    assert average == pytest.approx(np.mean(expected))


def test_calibration_error_matches_a_calculation_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.55, 0.55])
    correct = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    # four samples at .9 with .75 correct, and two at .55 with .5 correct
    assert measures.calibration_error(confidence, correct) == pytest.approx(
        (4 * 0.15 + 2 * 0.05) / 6, abs=1e-6
    )


def test_student_equal_to_the_teacher_has_perfect_fidelity() -> None:
    logits, target = torch.randn(20, 5), torch.randint(5, (20,))
    metrics = measures.metrics(logits, target, logits)
    assert (metrics["kl"], metrics["agreement"]) == (0.0, 1.0)
