"""The exact engines, for students of many kinds."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    ENGINES,
    EXACT,
    LR,
    SAMPLES,
    VIEWS,
    Student,
    Task,
    assert_matches_differences,
    mlp,
    plain_step,
    relative_error,
)
from students import STUDENTS, Recurrent, engines_for
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from msdlosses import WeightNet
from msdlosses.meta import meta_gradient

pytestmark = pytest.mark.usefixtures("double_precision")

# Finite differences also see the power iteration, which spectral norm does not differentiate.
NOT_DIFFERENTIATED_FULLY = ("spectral norm",)


@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(SGD, {}, id="SGD"), pytest.param(AdamW, {"eps": 1e-2}, id="AdamW")],
)
@pytest.mark.parametrize("name", [n for n in STUDENTS if n not in NOT_DIFFERENTIATED_FULLY])
def test_gradient_matches_finite_differences(
    name: str, kind: type[Optimizer], options: dict[str, Any]
) -> None:
    student, task = Student(STUDENTS[name]()), Task()
    optimizer = kind(student.parameters(), lr=LR / 5, **options)
    plain_step(student, optimizer, task.inner)
    assert_matches_differences(student, optimizer, task, engines_for(name))


@pytest.mark.parametrize("name", STUDENTS)
def test_engines_agree(name: str) -> None:
    student, task = Student(STUDENTS[name]()), Task(WeightNet(VIEWS, num_classes=CLASSES, hidden=5))
    optimizer = SGD(student.parameters(), LR, momentum=0.9)
    plain_step(student, optimizer, task.inner)
    first, *others = (task.gradient(student, optimizer, engine) for engine in engines_for(name))
    for other in others:
        assert relative_error(first, other) < 1e-9


def test_compiled_loss_gives_the_same_gradient() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer)
    task.msd = torch.compile(task.msd, backend="aot_eager")
    task.msd(task.teacher, task.teacher)
    for engine in ENGINES:
        assert relative_error(task.gradient(student, optimizer, engine), expected) < 1e-12


def test_compiled_student_gives_the_same_gradient() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer)
    compiled = torch.compile(student, backend="aot_eager")
    task.inner(compiled)
    for engine in EXACT:
        assert relative_error(task.gradient(compiled, optimizer, engine), expected) < 1e-12


def test_forward_mode_rejects_a_loss_that_changes_between_calls() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    batches = cycle([task.batch, task.held_out])

    def inner(model: nn.Module) -> Tensor:
        task.batch = {name: entry[:SAMPLES] for name, entry in next(batches).items()}
        return task.inner(model)

    with pytest.raises(ValueError, match="the same loss from each call of `inner`"):
        meta_gradient(inner, task.outer, student, optimizer, task.weighting, engine="forward")


class Bag(nn.Module):
    """Uses `EmbeddingBag`, whose backward pass has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return x + self.bag(torch.zeros(len(x), 2, dtype=torch.long)) * x


def test_error_names_the_engine_and_the_operation_without_a_derivative() -> None:
    student, task = Student(nn.Sequential(Recurrent(), Bag())), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine="double-backward")
    with pytest.raises(
        NotImplementedError, match=r"engine='double-backward' can differentiate, got .*bag"
    ):
        learner.step(task.inner, task.outer)


@pytest.mark.parametrize("engine", EXACT)
def test_errors_of_the_losses_are_raised_unchanged(engine: str) -> None:
    def inner(model: nn.Module) -> Tensor:
        raise RuntimeError("the data is gone")

    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    with pytest.raises(RuntimeError, match=r"^the data is gone$"):
        learner.step(inner, task.outer)


@pytest.mark.parametrize("engine", EXACT)
def test_rejects_a_loss_whose_gradient_is_constant(engine: str) -> None:
    def inner(model: nn.Module) -> Tensor:
        return sum((p.sum() for p in model.parameters()), torch.zeros(()))

    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    with pytest.raises(ValueError, match=r"path from the weighting .* got none"):
        learner.step(inner, task.outer)
