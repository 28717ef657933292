"""Frozen weightings, and frozen parameters of the student, which may be tensor subclasses."""

from __future__ import annotations

import copy

import pytest
import torch
from lookahead import (
    ENGINES,
    EXACT,
    LR,
    PartlyLearnedWeights,
    Student,
    Task,
    assert_same,
    mlp,
    plain_step,
    relative_error,
    use_single_precision,
)
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("mode", ["online", "lookahead"])
@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_plain_while_the_weighting_is_frozen(engine: str, mode: str) -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR, momentum=0.9)
    learner = task.learner(student, optimizer, engine=engine, mode=mode)
    learner.step(task.inner, task.outer)
    task.weighting.requires_grad_(False)
    twin = copy.deepcopy(student)
    twin_optimizer = SGD(twin.parameters(), LR, momentum=0.9)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weights = task.weighting.weights.clone()
    step = learner.step(task.inner, task.outer)
    plain_step(twin, twin_optimizer, task.inner)
    assert (step.outer, step.engine) == (None, None)
    assert_same(list(student.parameters()), list(twin.parameters()))
    assert torch.equal(task.weighting.weights, weights)
    assert learner.gradient(task.inner, task.outer) == ()
    task.weighting.requires_grad_(True)
    assert learner.step(task.inner, task.outer).engine == engine
    assert not torch.equal(task.weighting.weights, weights)


@pytest.mark.parametrize("scaler", [None, GradScaler("cpu", init_scale=4.0)])
def test_frozen_parts_of_the_weighting_do_not_move(scaler: GradScaler | None) -> None:
    student, task = Student(mlp()), Task(PartlyLearnedWeights())
    use_single_precision(student, task)
    task.weighting.frozen.requires_grad_(True)
    learner = task.learner(student, SGD(student.parameters(), LR), scaler=scaler)
    learner.step(task.inner, task.outer)
    task.weighting.weights.requires_grad_(False)
    before = copy.deepcopy(task.weighting.state_dict())
    learner.step(task.inner, task.outer)
    after = task.weighting.state_dict()
    assert torch.equal(before["weights"], after["weights"])
    assert not torch.equal(before["frozen"], after["frozen"])
    task.weighting.requires_grad_(False)
    learner.step(task.inner, task.outer)


@pytest.mark.parametrize("scaler", [None, GradScaler("cpu", init_scale=4.0)])
def test_weighting_optimizer_may_hold_only_frozen_parameters(scaler: GradScaler | None) -> None:
    student, task = Student(mlp()), Task(PartlyLearnedWeights())
    use_single_precision(student, task)
    learner = task.learner(student, SGD(student.parameters(), LR), scaler=scaler)
    learner.weighting_optimizer.param_groups[0]["params"] = [task.weighting.weights]
    task.weighting.weights.requires_grad_(False)
    task.weighting.frozen.requires_grad_(True)
    before = copy.deepcopy(task.weighting.state_dict())
    learner.step(task.inner, task.outer)
    assert_same(dict(task.weighting.state_dict()), dict(before))


class Quantized(Tensor):
    """A frozen weight in another layout, as quantized models have them."""


class Adapted(nn.Module):
    """A frozen linear layer with a trained low-rank adapter."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.down, self.up = nn.Linear(12, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x @ self.weight.T + self.up(self.down(x).tanh())


@pytest.mark.parametrize("engine", EXACT)
def test_frozen_weights_may_be_tensor_subclasses(engine: str) -> None:
    weight, gradients = torch.randn(3, 12), []
    for kind in (Tensor, Quantized):
        torch.manual_seed(0)
        student, task = Student(Adapted(weight.as_subclass(kind))), Task()
        optimizer = AdamW(student.parameters(), LR, eps=1e-2)
        gradients.append(task.gradient(student, optimizer, engine))
        task.learner(student, optimizer, engine=engine).step(task.inner, task.outer)
    assert type(student.body.weight.data) is Quantized
    assert relative_error(gradients[1], gradients[0]) < 1e-12


def test_trained_weights_must_be_plain_tensors() -> None:
    student, task = Student(Adapted(torch.randn(3, 12).as_subclass(Quantized))), Task()
    student.body.weight.requires_grad_(True)
    with pytest.raises(TypeError, match=r"plain tensors, .*`body.weight`"):
        task.learner(student, SGD(student.parameters(), LR))


def test_other_trained_parameters_must_be_plain_tensors() -> None:
    student, task = Student(mlp()), Task()
    other = nn.Parameter(torch.randn(3).as_subclass(Quantized))
    with pytest.raises(TypeError, match="plain tensors in `optimizer`"):
        task.learner(student, SGD([*student.parameters(), other], LR))
