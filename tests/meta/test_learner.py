"""`MetaLearner.step`: how it moves the student and the weighting, and what it returns."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    ENGINES,
    LR,
    FreeWeights,
    PartlyLearnedWeights,
    Student,
    Task,
    assert_same,
    mlp,
    plain_step,
)
from students import STUDENTS, engines_for
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Adam, AdamW, Optimizer

from msdlosses import MetaLearner

pytestmark = pytest.mark.usefixtures("double_precision")

each_mode = pytest.mark.parametrize("mode", ["online", "lookahead"])
each_engine = pytest.mark.parametrize("engine", ENGINES)

# The student's step

ROUNDED_DIFFERENTLY = ("attention", "attention, dropout", "weight norm")  # by other kernels


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        (name, engine)
        for name in STUDENTS
        for engine in ("auto", "forward", "higher")
        if engine == "auto" or engine in engines_for(name)
    ],
)
def test_online_student_moves_as_in_a_plain_step(name: str, engine: str) -> None:
    torch.manual_seed(1)
    student, task = Student(STUDENTS[name]()), Task()
    torch.manual_seed(1)
    twin = Student(STUDENTS[name]())
    optimizer, twin_optimizer = (
        SGD(model.parameters(), LR, momentum=0.9, weight_decay=0.01) for model in (student, twin)
    )
    learner = task.learner(student, optimizer, engine=engine)
    for _ in range(2):
        weights_before = copy.deepcopy(task.weighting.state_dict())
        random_before = torch.get_rng_state()
        step = learner.step(task.inner, task.outer)
        weights_after = copy.deepcopy(task.weighting.state_dict())
        random_after = torch.get_rng_state()

        task.weighting.load_state_dict(weights_before)
        torch.set_rng_state(random_before)
        losses: list[Tensor] = []
        plain_step(twin, twin_optimizer, partial(recorded_inner, task, losses))
        # As after one forward pass, although the learner took several.
        assert torch.equal(torch.get_rng_state(), random_after)
        torch.testing.assert_close(step.inner, losses[0].detach(), rtol=1e-12, atol=0)
        task.weighting.load_state_dict(weights_after)
    assert_equal = assert_close if name in ROUNDED_DIFFERENTLY else assert_same
    assert_equal(list(student.state_dict().items()), list(twin.state_dict().items()))
    assert_equal(list(optimizer.state_dict().items()), list(twin_optimizer.state_dict().items()))


def recorded_inner(task: Task, losses: list[Tensor], model: nn.Module) -> Tensor:
    losses.append(task.inner(model))
    return losses[-1]


def assert_close(left: Any, right: Any) -> None:
    torch.testing.assert_close(dict(left), dict(right), rtol=1e-10, atol=1e-14)


def manual_step(
    student: nn.Module, optimizer: Optimizer, weighting_optimizer: Optimizer, task: Task, mode: str
) -> None:
    """Take a step of both optimizers, written out for a student trained by SGD."""
    named = dict(student.named_parameters())
    gradients = torch.autograd.grad(task.inner(student), list(named.values()), create_graph=True)
    ahead = {n: p - LR * g for (n, p), g in zip(named.items(), gradients, strict=True)}

    def student_ahead(**batch: Tensor) -> Any:
        return functional_call(student, ahead, (), batch)

    learned = list(task.weighting.parameters())
    meta_gradients = torch.autograd.grad(task.outer(student_ahead), learned)
    if mode == "online":
        plain_step(student, optimizer, task.inner)
    for parameter, gradient in zip(learned, meta_gradients, strict=True):
        parameter.grad = gradient
    weighting_optimizer.step()
    if mode == "lookahead":
        plain_step(student, optimizer, task.inner)


@each_engine
@each_mode
def test_steps_equal_manual_steps(mode: str, engine: str) -> None:
    student, task = Student(mlp()), Task()
    twin, twin_task = copy.deepcopy((student, task))
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode, engine=engine)
    twin_optimizer = SGD(twin.parameters(), LR)
    twin_weighting_optimizer = Adam(twin_task.weighting.parameters(), 0.1)
    for _ in range(5):
        learner.step(task.inner, task.outer)
        manual_step(twin, twin_optimizer, twin_weighting_optimizer, twin_task, mode)
    for module, expected in ((student, twin), (task.weighting, twin_task.weighting)):
        for a, b in zip(module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_modes_move_the_student_by_different_weights() -> None:
    moved = {}
    for mode in ("online", "lookahead"):
        torch.manual_seed(0)
        student, task = Student(mlp()), Task()
        task.learner(student, SGD(student.parameters(), LR), mode=mode).step(task.inner, task.outer)
        moved[mode] = student.body[1].weight.detach()
    assert not torch.allclose(moved["online"], moved["lookahead"])


@each_mode
def test_step_leaves_no_gradients(mode: str) -> None:
    student, task = Student(mlp()), Task(PartlyLearnedWeights())
    learner = MetaLearner(
        student,
        SGD(student.body[3].parameters(), LR),
        task.weighting,
        Adam([task.weighting.weights], 0.1),
        mode=mode,
    )
    learner.step(task.inner, task.outer)
    assert [p.grad for p in (*student.parameters(), *task.weighting.parameters())] == [None] * 7


def changed_entries(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


def test_step_trains_only_what_the_optimizers_hold() -> None:
    student, weighting = Student(mlp()), PartlyLearnedWeights()
    student.body[3].bias.requires_grad_(False)
    student.body[3].bias.grad = torch.ones(CLASSES)  # from before it was frozen
    student.body[1].bias.grad = torch.ones(6)  # for another optimizer
    before = copy.deepcopy((student.state_dict(), weighting.state_dict()))
    optimizer = SGD(student.body[3].parameters(), LR)
    task, weighting_optimizer = Task(weighting), Adam([weighting.weights], 0.1)
    MetaLearner(student, optimizer, weighting, weighting_optimizer).step(task.inner, task.outer)
    assert changed_entries(student, before[0]) == {"body.3.weight"}
    assert changed_entries(weighting, before[1]) == {"weights"}
    assert student.body[1].bias.grad.tolist() == [1.0] * 6


@pytest.mark.parametrize("max_norm", [0.01, 1e3])
@each_mode
def test_max_norm_clips_only_the_student(mode: str, max_norm: float) -> None:
    student, task = Student(mlp()), Task()
    twin = copy.deepcopy(student)
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode, max_norm=max_norm)
    weights = copy.deepcopy(task.weighting.state_dict())
    learner.step(task.inner, task.outer)
    if mode == "online":
        task.weighting.load_state_dict(weights)
    plain_step(twin, SGD(twin.parameters(), LR), task.inner, max_norm)
    assert_same(list(student.parameters()), list(twin.parameters()))


# The result


@each_engine
def test_step_returns_losses_and_engine(engine: str) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    inner = task.inner(student).item()
    step = learner.step(task.inner, task.outer)
    outer = task.outer(student).item()  # online, the look-ahead is the step that was taken
    assert step.engine == engine
    assert step.inner.item() == pytest.approx(inner, rel=1e-12)
    assert step.outer is not None
    assert step.outer.item() == pytest.approx(outer, rel=1e-12)
    assert not step.inner.requires_grad
    assert not step.outer.requires_grad


# Which steps update the weighting


def test_weighting_is_updated_in_warmup_and_then_in_every_nth_step() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), update_every=3, warmup=2)
    steps = [learner.step(task.inner, task.outer) for _ in range(9)]
    assert [step.engine is not None for step in steps] == [
        True, True, True, False, False, True, False, False, True
    ]  # fmt: skip
    assert [step.outer is None for step in steps] == [step.engine is None for step in steps]


def test_other_steps_are_plain_steps() -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), update_every=2)
    learner.step(task.inner, task.outer)
    twin, weights = copy.deepcopy((student, task.weighting.weights))
    random_before = torch.get_rng_state()
    learner.step(task.inner, task.outer)
    random_after = torch.get_rng_state()
    torch.set_rng_state(random_before)
    plain_step(twin, SGD(twin.parameters(), LR), task.inner)
    assert torch.equal(torch.get_rng_state(), random_after)
    assert_same(list(student.state_dict().items()), list(twin.state_dict().items()))
    assert torch.equal(task.weighting.weights, weights)


# Gradient accumulation


def weighted_inner(task: Task, samples: slice, weight: float, model: nn.Module) -> Tensor:
    return weight * task.inner_on(model, samples)


@each_mode
def test_accumulated_gradients_equal_those_of_the_whole_batch(mode: str) -> None:
    results = []
    for parts in ([slice(None)], [slice(2), slice(2, 4)]):
        torch.manual_seed(0)
        student, task = Student(mlp()), Task(FreeWeights(3))
        learner = task.learner(student, AdamW(student.parameters(), LR, eps=1e-2), mode=mode)
        losses = [partial(weighted_inner, task, samples, 1 / len(parts)) for samples in parts]
        for _ in range(3):
            learner.step(losses, task.outer)
        results.append([*student.parameters(), *task.weighting.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
