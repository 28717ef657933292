"""Which parameters the look-ahead moves, and where it finds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookahead import (
    ENGINES,
    EXACT,
    LR,
    Student,
    Task,
    assert_matches_differences,
    assert_same,
    finite_differences,
    mlp,
    relative_error,
    use_single_precision,
)
from torch import Tensor, nn
from torch.optim import SGD

from msdlosses import LearnedFill, ModalityViews
from msdlosses.meta import meta_gradient

pytestmark = pytest.mark.usefixtures("double_precision")


def test_look_ahead_leaves_frozen_parameters() -> None:
    student, task = Student(mlp()), Task()
    student.body[1].weight.requires_grad_(False)
    optimizer = SGD(student.parameters(), LR, weight_decay=0.1)
    assert_matches_differences(student, optimizer, task, ENGINES)


def test_look_ahead_leaves_parameters_outside_the_optimizer() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.body[3].parameters(), LR)
    assert_matches_differences(student, optimizer, task, ENGINES)


def test_look_ahead_leaves_unused_parameters() -> None:
    student, task = Student(mlp()), Task()
    student.unused = nn.Linear(2, 2)
    optimizer = SGD(student.parameters(), LR, weight_decay=0.1)
    assert_matches_differences(student, optimizer, task, ENGINES)


class TaskOfWholeModel(Task):
    """The same task for a module that holds the student."""

    def __init__(self, task: Task) -> None:
        vars(self).update(vars(task))

    def inner(self, model: Any) -> Tensor:
        return super().inner(model["student"])

    def outer(self, model: Any) -> Tensor:
        return super().outer(model["student"])


def test_optimizer_may_hold_parameters_of_other_modules() -> None:
    student, task = Student(mlp()), Task()
    task.views = ModalityViews(image=LearnedFill(pixels=(2, 4)), text=LearnedFill(tokens=(1, 4)))
    optimizer = SGD([*student.parameters(), *task.views.parameters()], LR, momentum=0.9)
    forward, double_backward = (task.gradient(student, optimizer, engine) for engine in EXACT)
    assert relative_error(forward, double_backward) < 1e-12
    whole = nn.ModuleDict({"student": student, "views": task.views})
    expected = finite_differences(whole, optimizer, TaskOfWholeModel(task))
    assert relative_error(forward, expected) < 1e-6


@pytest.mark.parametrize("engine", EXACT)
def test_losses_may_use_the_student_directly(engine: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer, engine)
    actual = meta_gradient(
        lambda model: task.inner(student),
        lambda model: task.outer(student),
        student,
        optimizer,
        task.weighting,
        engine=engine,
    )
    assert relative_error(actual, expected) == 0


@pytest.mark.parametrize("engine", EXACT)
def test_student_may_hold_the_weighting(engine: str) -> None:
    """A LightningModule, for example, holds both."""
    student, task = Student(mlp()), Task()
    optimizer = SGD(list(student.parameters()), LR)
    expected = task.gradient(student, optimizer)
    student.weighting = task.weighting
    assert relative_error(task.gradient(student, optimizer, engine), expected) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_earlier_graphs_stay_usable(engine: str) -> None:
    """A graph that saved the parameters before can still run backward afterwards."""
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    loss, parameters = task.inner(student), list(student.parameters())
    expected = torch.autograd.grad(loss, parameters, retain_graph=True)
    learner.gradient(task.inner, task.outer)
    assert_same(torch.autograd.grad(loss, parameters), expected)


@pytest.mark.parametrize("engine", EXACT)
def test_autocast_does_not_reuse_casts_of_the_old_parameters(engine: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    use_single_precision(student, task)
    expected = task.gradient(student, optimizer, engine)
    with torch.autocast("cpu", torch.bfloat16):
        task.inner(student)  # fills the autocast cache with casts of the current parameters
        actual = task.gradient(student, optimizer, engine)
    assert 0 < relative_error(actual, expected) < 0.03
