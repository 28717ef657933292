"""The engine "higher": several steps, and losses that bypass its copy of the student."""

from __future__ import annotations

from typing import Any

import pytest
from lookahead import LR, Student, Task, finite_differences, mlp, relative_error
from torch.optim import SGD, AdamW, Optimizer, RMSprop

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(SGD, {"momentum": 0.9}, id="SGD"),
        pytest.param(AdamW, {"eps": 1e-2, "weight_decay": 0.3}, id="AdamW"),
        pytest.param(RMSprop, {"eps": 1e-2, "centered": True, "alpha": 0.8}, id="RMSprop"),
    ],
)
def test_gradient_through_three_steps_matches_finite_differences(
    kind: type[Optimizer], options: dict[str, Any]
) -> None:
    student, task = Student(mlp()), Task()
    optimizer = kind(student.parameters(), lr=0.1, **options)
    actual = task.gradient(student, optimizer, steps=3)
    expected = finite_differences(student, optimizer, task, steps=3)
    assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_rejects_losses_that_use_the_original_student(which: str) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine="higher")
    losses: dict[str, Any] = {"inner": task.inner, "outer": task.outer}
    loss = losses[which]
    losses[which] = lambda model: loss(student)
    with pytest.raises(ValueError, match=f"`{which}` to use the model it is called with"):
        learner.gradient(**losses)
