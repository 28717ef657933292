"""In forward mode, derivatives stop where gradients stop: every engine takes the real step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lookahead import (
    ENGINES,
    LR,
    Objective,
    Student,
    Task,
    assert_matches_differences,
    mlp,
    relative_error,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from msdlosses._torch import in_forward_mode

pytestmark = pytest.mark.usefixtures("double_precision")

Predict = Callable[[], Tensor]


def with_no_grad(predict: Predict) -> Tensor:
    with torch.no_grad():
        return predict()


@torch.no_grad()
def with_decorator(predict: Predict) -> Tensor:
    return predict()


def with_set_grad_enabled(predict: Predict) -> Tensor:
    with torch.set_grad_enabled(False):
        return predict()


def with_function_call(predict: Predict) -> Tensor:
    torch.set_grad_enabled(False)
    prediction = predict()
    torch.set_grad_enabled(True)
    return prediction


def with_inference_mode(predict: Predict) -> Tensor:
    with torch.inference_mode():
        prediction = predict()
    return prediction.clone()


def with_enable_grad_inside(predict: Predict) -> Tensor:
    with torch.no_grad():
        with torch.enable_grad():
            predict()
        return predict()


def with_copy(predict: Predict) -> Tensor:
    prediction = predict()
    buffer = torch.zeros_like(prediction)
    with torch.no_grad():
        buffer.copy_(prediction)
    return buffer


def with_change_in_place(predict: Predict) -> Tensor:
    """Change values but not gradients."""
    prediction = predict().sin()
    with torch.no_grad():
        prediction.mul_(2)
    return prediction


def with_change_of_data(predict: Predict) -> Tensor:
    prediction = predict().sin()
    prediction.data.mul_(2)
    return prediction


STOPS: dict[str, Callable[[Predict], Tensor]] = {
    "no_grad": with_no_grad,
    "decorator": with_decorator,
    "set_grad_enabled": with_set_grad_enabled,
    "set_grad_enabled, called": with_function_call,
    "inference_mode": with_inference_mode,
    "enable_grad in no_grad": with_enable_grad_inside,
    "detach": lambda predict: predict().detach(),
    "detach_": lambda predict: predict().clone().detach_(),
    "data": lambda predict: predict().data,
    "tolist": lambda predict: torch.tensor(predict().tolist()),
    "numpy": lambda predict: torch.from_numpy(predict().detach().numpy().copy()),
    "copy_": with_copy,
    "in place": with_change_in_place,
    "data, in place": with_change_of_data,
}


@pytest.mark.parametrize("name", STOPS)
def test_derivatives_stop_where_gradients_stop(name: str) -> None:
    """The loss has a target from the student itself, which gets no gradient."""
    student, task = Student(mlp()), Task()

    def inner(model: nn.Module) -> Tensor:
        target = STOPS[name](lambda: model(**task.batch))
        batch = {name: 1.2 * entry for name, entry in task.batch.items()}
        own = F.mse_loss(model(**batch), target)
        return Task.inner(task, model) + own * task.weighting.weights.sum()

    task.inner = inner
    optimizer = SGD(student.parameters(), LR, momentum=0.9)
    forward, double_backward, _ = (task.gradient(student, optimizer, e) for e in ENGINES)
    assert relative_error(forward, double_backward) < 1e-12
    assert_matches_differences(student, optimizer, task, ENGINES)


def test_derivatives_of_a_gradient_penalty_match_finite_differences() -> None:
    student, task = Student(mlp()), Task()

    def inner(model: nn.Module) -> Tensor:
        pixels = task.batch["pixels"].clone().requires_grad_()
        output = model(pixels=pixels, tokens=task.batch["tokens"]).sum()
        (gradient,) = torch.autograd.grad(output, pixels, create_graph=True)
        return Task.inner(task, model) + gradient.square().sum() * task.weighting.weights.mean()

    task.inner = inner
    assert_matches_differences(student, SGD(student.parameters(), LR), task, ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["register_hook", "retain_grad"])
def test_activations_may_be_observed(engine: str, method: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    expected, norms = task.gradient(student, optimizer, engine), []
    arguments: list[Any] = [lambda g: norms.append(g.norm())] if method == "register_hook" else []

    def inner(model: nn.Module) -> Tensor:
        loss = Task.inner(task, model)
        getattr(loss, method)(*arguments)
        return loss

    task.inner = inner
    assert relative_error(task.gradient(student, optimizer, engine), expected) < 1e-12
    assert bool(norms) is (method == "register_hook")


def test_only_the_pass_in_forward_mode_hides_that_the_student_is_trained() -> None:
    student, task = Student(mlp()), Task()
    passes = []

    def watched(loss: Objective) -> Objective:
        def call(model: nn.Module) -> Tensor:
            trained = any(p.requires_grad for p in model.parameters())
            passes.append((trained, in_forward_mode()))
            return loss(model)

        return call

    task.inner, task.outer = watched(task.inner), watched(task.outer)
    optimizer = SGD(student.parameters(), LR)
    for engine in ENGINES:
        task.gradient(student, optimizer, engine)
    assert set(passes) == {(True, False), (False, True)}
    assert not in_forward_mode()
