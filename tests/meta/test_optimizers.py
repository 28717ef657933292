"""The look-ahead takes the same steps as the real optimizers: gradients match differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookahead import (
    ENGINES,
    LR,
    Student,
    Task,
    assert_matches_differences,
    mlp,
    plain_step,
)
from students import STUDENTS
from torch import nn
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from msdlosses.meta import _algebra

pytestmark = pytest.mark.usefixtures("double_precision")

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {}),
    "SGD, momentum": (SGD, {"momentum": 0.9}),
    "SGD, dampening": (SGD, {"momentum": 0.9, "dampening": 0.5}),
    "SGD, Nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD, weight decay": (SGD, {"weight_decay": 0.1}),
    "SGD, maximize": (SGD, {"momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    "SGD, foreach": (SGD, {"momentum": 0.8, "weight_decay": 0.1, "foreach": True}),
    "SGD, fused": (SGD, {"momentum": 0.8, "weight_decay": 0.1, "fused": True}),
    "SGD, tensor as lr": (SGD, {"lr": torch.tensor(0.3, dtype=torch.float64)}),
    "Adam": (Adam, {"eps": 1e-2}),
    "Adam, small eps": (Adam, {"eps": 1e-4}),
    "Adam, weight decay": (Adam, {"eps": 1e-2, "weight_decay": 0.1}),
    "Adam, decoupled": (Adam, {"eps": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "Adam, amsgrad": (Adam, {"eps": 1e-2, "amsgrad": True}),
    "Adam, maximize": (Adam, {"eps": 1e-2, "maximize": True, "weight_decay": 0.1}),
    "Adam, betas": (Adam, {"eps": 1e-2, "betas": (0.5, 0.7)}),
    "Adam, foreach": (Adam, {"eps": 1e-2, "foreach": True}),
    "Adam, fused": (Adam, {"eps": 1e-2, "fused": True}),
    "AdamW": (AdamW, {"eps": 1e-2, "weight_decay": 0.3}),
    "AdamW, amsgrad, maximize": (AdamW, {"eps": 1e-2, "amsgrad": True, "maximize": True}),
    "RMSprop": (RMSprop, {"eps": 1e-2}),
    "RMSprop, centered": (RMSprop, {"eps": 1e-2, "centered": True, "alpha": 0.8}),
    "RMSprop, momentum": (RMSprop, {"eps": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    "RMSprop, maximize": (RMSprop, {"eps": 1e-2, "maximize": True}),
    "Adagrad": (Adagrad, {"eps": 1e-2}),
    "Adagrad, options": (Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1, "maximize": True,
                                   "initial_accumulator_value": 0.1}),
    "Adadelta": (Adadelta, {"eps": 1e-2}),
    "Adadelta, options": (Adadelta, {"eps": 1e-2, "rho": 0.5, "weight_decay": 0.1,
                                     "maximize": True}),
    "NAdam": (NAdam, {"eps": 1e-2}),
    "NAdam, weight decay": (NAdam, {"eps": 1e-2, "weight_decay": 0.1, "momentum_decay": 0.1}),
    "NAdam, decoupled": (NAdam, {"eps": 1e-2, "weight_decay": 0.1, "maximize": True,
                                 "decoupled_weight_decay": True}),
    "RAdam": (RAdam, {"eps": 1e-2}),
    "RAdam, rectified": (RAdam, {"eps": 1e-2, "betas": (0.5, 0.9), "weight_decay": 0.1}),
    "RAdam, decoupled": (RAdam, {"eps": 1e-2, "betas": (0.5, 0.9), "weight_decay": 0.1,
                                 "decoupled_weight_decay": True, "maximize": True}),
    "Adamax": (Adamax, {"eps": 1e-2}),
    "Adamax, options": (Adamax, {"eps": 1e-2, "weight_decay": 0.1, "maximize": True}),
}  # fmt: skip


def make_optimizer(name: str, student: nn.Module) -> Optimizer:
    kind, options = OPTIMIZERS[name]
    if (
        "decoupled_weight_decay" in options
        and "decoupled_weight_decay" not in Adam([nn.Parameter(torch.ones(1))]).defaults
    ):
        pytest.skip("this version of PyTorch lacks decoupled_weight_decay")
    return kind(student.parameters(), **{"lr": 0.1, **options})


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_matches_finite_differences(name: str, steps_before: int) -> None:
    student, task = Student(mlp()), Task()
    optimizer = make_optimizer(name, student)
    for _ in range(steps_before):
        plain_step(student, optimizer, task.inner)
    assert_matches_differences(student, optimizer, task, ENGINES)


@pytest.mark.parametrize("name", ["SGD, maximize", "AdamW", "RMSprop, centered", "Adadelta"])
@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_gradient_through_clipping_matches_finite_differences(name: str, max_norm: float) -> None:
    student, task = Student(mlp()), Task()
    optimizer = make_optimizer(name, student)
    plain_step(student, optimizer, task.inner)
    assert_matches_differences(student, optimizer, task, ENGINES, max_norm)


@pytest.mark.parametrize("name", ["Adam", "RMSprop, centered", "Adagrad", "Adadelta"])
def test_zero_gradients_do_not_break_the_derivative(name: str) -> None:
    """Unused rows of an embedding: their step contains the square root of zero."""
    student, task = Student(STUDENTS["embedding"]()), Task()
    assert_matches_differences(student, make_optimizer(name, student), task)


def test_gradient_respects_the_options_of_parameter_groups() -> None:
    body, task = mlp(), Task()
    groups = [
        {"params": body[1].parameters(), "lr": 0.05},
        {"params": [body[3].weight], "momentum": 0.9, "weight_decay": 0.3, "maximize": True},
        {"params": [body[3].bias], "lr": 1.5, "momentum": 0.5, "nesterov": True},
    ]
    student = Student(body)
    optimizer = SGD(groups, LR)
    plain_step(student, optimizer, task.inner)
    assert_matches_differences(student, optimizer, task, ENGINES)


def test_gradient_follows_a_learning_rate_schedule() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    (before,) = task.gradient(student, optimizer)
    plain_step(student, optimizer, lambda model: 0 * task.inner(model))
    scheduler.step()
    assert_matches_differences(student, optimizer, task)
    (after,) = task.gradient(student, optimizer)
    assert after.norm() < 0.3 * before.norm()


def test_clipping_ignores_parameters_outside_the_optimizer() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.body[3].parameters(), LR)
    assert_matches_differences(student, optimizer, task, ENGINES, max_norm=0.1)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_rectified_adam_agrees_with_torch_over_many_steps(as_tensor: bool) -> None:
    """The step is rectified once the variance is known well enough, after about five steps."""
    parameter = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    optimizer = RAdam([parameter], lr=0.1)
    moved, state = parameter.detach().clone(), dict[str, Any]()
    for step in range(12):
        gradient = torch.randn(3, 2, dtype=torch.float64)
        if as_tensor and step:
            state["step"] = torch.tensor(float(step))
        moved = _algebra.radam(moved, gradient, state, optimizer.param_groups[0])
        parameter.grad = gradient
        optimizer.step()
        torch.testing.assert_close(moved, parameter.detach())
