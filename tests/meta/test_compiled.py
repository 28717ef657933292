"""Students stay compiled with the engine "difference"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lookahead import LR, Student, Task, mlp, relative_error
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import SGD

pytestmark = pytest.mark.usefixtures("double_precision")


class Inside(nn.Module):
    """A student whose only part is compiled."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, **batch: Tensor) -> Any:
        return self.part(**batch)


class OnlyCompiled(nn.Module):
    """Flattens its input, but only in compiled code."""

    def forward(self, x: Tensor) -> Tensor:
        assert torch.compiler.is_compiling()
        return x.flatten(1)


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def compiled(how: str, student: nn.Module, backend: Any) -> nn.Module:
    if how == "wrapped":
        return torch.compile(student, backend=backend, fullgraph=True)
    student.compile(backend=backend, fullgraph=True)
    return student if how == "in place" else Inside(student)


@pytest.mark.parametrize("how", ["wrapped", "in place", "inside"])
def test_student_stays_compiled(how: str, counter: CompileCounterWithBackend) -> None:
    torch.manual_seed(0)
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task()
    model = compiled(how, student, counter)
    student.body[0] = OnlyCompiled()
    learner = task.learner(model, SGD(student.parameters(), LR), engine="difference")
    learner.step(task.inner, task.outer)
    graphs = counter.frame_count
    assert graphs > 0
    for _ in range(5):
        learner.step(task.inner, task.outer)
    assert counter.frame_count == graphs


@pytest.mark.parametrize("how", ["wrapped", "in place", "inside"])
def test_compiled_student_learns_as_an_eager_one(
    how: str, counter: CompileCounterWithBackend
) -> None:
    results = []
    for backend in (None, counter):
        torch.manual_seed(0)
        student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.3))), Task()
        model = student if backend is None else compiled(how, student, backend)
        learner = task.learner(model, SGD(student.parameters(), LR), engine="difference")
        for _ in range(3):
            learner.step(task.inner, task.outer)
        modules = (student, task.weighting)
        results.append([v.double() for m in modules for v in m.state_dict().values()])
    assert relative_error(*results) < 1e-6


def test_compiled_loss_runs_uncompiled(counter: CompileCounterWithBackend) -> None:
    """Its compiled code would hide the weighting."""
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer)
    task.msd = torch.compile(task.msd, backend="aot_eager")
    task.msd(task.teacher, task.teacher)
    model = torch.compile(student, backend=counter)
    assert relative_error(task.gradient(model, optimizer, "difference"), expected) < 1e-6
    assert counter.frame_count > 0
