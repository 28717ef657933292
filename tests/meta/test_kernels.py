"""Students whose default kernels have no second derivative or no forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    ENGINES,
    LR,
    Student,
    Task,
    assert_matches_differences,
    mlp,
    plain_step,
    relative_error,
    use_single_precision,
)
from students import STUDENTS, Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "batch norm", "attention", "LSTM"])
def test_single_precision_agrees_with_double_precision(name: str, engine: str) -> None:
    """Only single precision has the LSTM of oneDNN and fused attention."""
    student, task = Student(STUDENTS[name]()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer, engine)
    use_single_precision(student, task)
    actual = task.gradient(student, optimizer, engine)
    assert actual[0].dtype == torch.float32
    assert relative_error(actual, expected) < 1e-4


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)), id="batch norm"),
        pytest.param(Attention, id="attention"),
    ],
)
def test_gradient_in_evaluation_mode_matches_finite_differences(
    body: Callable[[], nn.Module],
) -> None:
    """In evaluation mode, Transformer layers have a fused path."""
    student, task = Student(body()), Task()
    plain_step(student, SGD(student.parameters(), LR), task.inner)
    optimizer = SGD(student.parameters(), LR)
    assert_matches_differences(student.eval(), optimizer, task, ENGINES)


class OwnAttention(nn.Module):
    """Calls scaled dot-product attention without one of PyTorch's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(4, 12), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean((1, 2)))


def test_gradient_through_custom_attention_matches_finite_differences() -> None:
    student, task = Student(OwnAttention()), Task()
    assert_matches_differences(student, SGD(student.parameters(), LR), task, ENGINES)
