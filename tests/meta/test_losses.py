"""Losses from which no weights can be learned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lookahead import CLASSES, ENGINES, LR, Objective, Student, Task, assert_same, mlp
from torch import Tensor, nn
from torch.optim import SGD

pytestmark = pytest.mark.usefixtures("double_precision")


def with_detached_weights(task: Task, model: nn.Module) -> Tensor:
    terms = task.msd.terms(task.views(model, task.batch), task.teacher)
    return (task.weighting.weights.detach() * terms).mean()


NO_PATH = "a path from the weighting through the step on `inner` to `outer`, got none"

WRONG_LOSSES: dict[str, tuple[str, Callable[..., Any], type[Exception], str]] = {
    "inner, per sample": ("inner", lambda task, model: model(**task.batch).sum(1), TypeError,
                          r"a scalar tensor from `inner`, got float64 \(4,\)"),
    "inner, a number": ("inner", lambda task, model: 1.0, TypeError,
                        "a scalar tensor from `inner`, got float"),
    "outer, logits": ("outer", lambda task, model: model(**task.held_out), TypeError,
                      r"a scalar tensor from `outer`, got float64 \(5, 3\)"),
    "outer, None": ("outer", lambda task, model: None, TypeError,
                    "a scalar tensor from `outer`, got NoneType"),
    "inner, constant": ("inner", lambda task, model: torch.ones(()), ValueError, NO_PATH),
    "outer, constant": ("outer", lambda task, model: torch.ones(()), ValueError, NO_PATH),
    "inner, without the model": ("inner", lambda task, model: task.weighting.weights.sum(),
                                 ValueError, NO_PATH),
    "inner, detached weights": ("inner", with_detached_weights, ValueError, NO_PATH),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["gradient", "step"])
@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_rejects_wrong_losses_and_changes_no_state(name: str, method: str, engine: str) -> None:
    which, loss, error, message = WRONG_LOSSES[name]
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    losses: dict[str, Objective] = {"inner": task.inner, "outer": task.outer}
    losses[which] = lambda model: loss(task, model)
    before = copy.deepcopy([student.state_dict(), task.weighting.state_dict()])
    with pytest.raises(error, match=f"Expected {message}"):
        getattr(learner, method)(**losses)
    assert_same([student.state_dict(), task.weighting.state_dict()], before)


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.words((2 * x[:, 2].abs()).long().clamp(max=8)).mean(1))


def test_rejects_sparse_gradients() -> None:
    student, task = Student(SparseEmbedding()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine="forward")
    with pytest.raises(ValueError, match=r"dense gradients, got sparse ones\. Set sparse=False"):
        learner.step(task.inner, task.outer)
