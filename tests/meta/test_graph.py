"""Graphs that break the second derivative: custom functions and reentrant checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from lookahead import CLASSES, EXACT, LR, Student, Task, assert_matches_differences, mlp
from students import Recurrent
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("double_precision")


class Cube(Function):
    """Can be differentiated twice, but not in forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient * ctx.saved_tensors[0] ** 2


class KernelCube(Cube):
    """Its backward runs a kernel that records no graph."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient.detach() * ctx.saved_tensors[0].detach() ** 2


class OnceCube(Cube):
    """Its backward declares that it can be differentiated only once."""

    backward = staticmethod(once_differentiable(Cube.backward))


class ForwardCube(OnceCube):
    """Can be differentiated once, and in forward mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * tangent * ctx.saved_for_forward[0] ** 2

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_forward(x)
        return Cube.forward(ctx, x)


class Apply(nn.Module):
    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function.apply(x)


def test_auto_falls_back_to_forward_mode_and_warns_once() -> None:
    student, task = Student(mlp(Apply(ForwardCube))), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    message = r"'double-backward' can differentiate, got .*ForwardCube.* Used engine='forward'"
    with pytest.warns(UserWarning, match=message):
        step = learner.step(task.inner, task.outer)
    assert step.engine == "forward"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learner.step(task.inner, task.outer).engine == "forward"
    assert_matches_differences(student, optimizer, task, ["forward"])


def test_auto_falls_back_to_double_backward_and_warns_once() -> None:
    student, task = Student(nn.Sequential(Recurrent(), Apply(Cube))), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    message = r"'forward' can differentiate, got .*jvp function.* Used engine='double-backward'"
    with pytest.warns(UserWarning, match=message):
        step = learner.step(task.inner, task.outer)
    assert step.engine == "double-backward"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learner.step(task.inner, task.outer).engine == "double-backward"
    assert_matches_differences(student, optimizer, task, ["double-backward"])


@pytest.mark.parametrize("function", [KernelCube, OnceCube])
def test_rejects_a_function_that_breaks_the_graph(function: type[Function]) -> None:
    """Otherwise, weights would be learned from only a part of the gradient."""
    student, task = Student(mlp(Apply(function))), Task()
    optimizer = SGD(student.parameters(), LR)
    with pytest.raises(NotImplementedError, match=f"backward of {function.__name__} is not"):
        task.gradient(student, optimizer, "double-backward")
    with pytest.raises(NotImplementedError, match=r"'forward' can differentiate, got .*jvp"):
        task.gradient(student, optimizer, "forward")


@pytest.mark.parametrize("function", [KernelCube, OnceCube])
def test_auto_falls_back_to_differences_and_warns_once(function: type[Function]) -> None:
    student, task = Student(mlp(Apply(function))), Task()
    optimizer = SGD(student.parameters(), LR)
    learner = task.learner(student, optimizer)
    message = f"got .*backward of {function.__name__} is not.* Used engine='difference'"
    with pytest.warns(UserWarning, match=message):
        step = learner.step(task.inner, task.outer)
    assert step.engine == "difference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learner.step(task.inner, task.outer).engine == "difference"
    assert_matches_differences(student, optimizer, task, ["difference"])


class ReentrantCheckpoint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layers, x.requires_grad_(), use_reentrant=True)


@pytest.mark.parametrize("engine", EXACT)
def test_rejects_reentrant_checkpoints(engine: str) -> None:
    """Their parameters are not in the graph, and would silently not be trained."""
    body = nn.Sequential(ReentrantCheckpoint(), nn.Linear(CLASSES, CLASSES))
    student, task = Student(body), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    with pytest.raises(ValueError, match="got one with use_reentrant=True"):
        learner.step(task.inner, task.outer)
