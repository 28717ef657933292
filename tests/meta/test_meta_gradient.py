"""`meta_gradient`: kinds of weights, probes, several losses, the choice of engine, arguments."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    ENGINES,
    EXACT,
    LAMBDA,
    LR,
    SAMPLES,
    VIEWS,
    FreeWeights,
    PartlyLearnedWeights,
    Student,
    Task,
    assert_matches_differences,
    mlp,
    plain_step,
    relative_error,
)
from students import Recurrent
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from msdlosses import WeightNet
from msdlosses.meta import meta_gradient

pytestmark = pytest.mark.usefixtures("double_precision")

# Weights


@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_for_a_weight_net_matches_finite_differences(normalize: bool) -> None:
    weighting = WeightNet(VIEWS, num_classes=CLASSES, hidden=3, normalize=normalize)
    student, task = Student(mlp()), Task(weighting)
    assert_matches_differences(student, SGD(student.parameters(), LR), task, ENGINES)


class AttachedWeights(FreeWeights):
    """Weights that depend on the terms, without detaching them, and so on the student."""

    def forward(self, terms: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights * terms.sigmoid()


def test_gradient_for_weights_that_depend_on_the_student_matches_finite_differences() -> None:
    student, task = Student(mlp()), Task(AttachedWeights(SAMPLES, 3))
    assert_matches_differences(student, SGD(student.parameters(), LR), task, ENGINES)


def test_gradient_includes_the_direct_dependence_of_the_held_out_loss() -> None:
    student, task = Student(mlp()), Task(FreeWeights(3))

    def outer(model: nn.Module) -> Tensor:
        return Task.outer(task, model) * task.weighting.weights.square().sum()

    task.outer = outer
    assert_matches_differences(student, SGD(student.parameters(), LR), task, ENGINES)


def test_weights_of_invalid_terms_get_no_gradient() -> None:
    student, task = Student(mlp()), Task()
    valid = torch.tensor([[True, True, False]] * SAMPLES)
    valid[0] = torch.tensor([False, True, False])
    task.msd = partial(task.msd, valid=valid)
    optimizer = SGD(student.parameters(), LR)
    (gradient,) = task.gradient(student, optimizer)
    assert torch.equal(gradient != 0, valid)
    assert_matches_differences(student, optimizer, task, ENGINES)


def test_gradient_for_sgd_equals_the_closed_form() -> None:
    student, task = Student(mlp()), Task()
    parameters = list(student.parameters())
    terms = task.msd.terms(task.views(student, task.batch), task.teacher)
    of_terms = [
        torch.autograd.grad(term, parameters, retain_graph=True) for term in terms.flatten()
    ]
    ahead = copy.deepcopy(student)
    plain_step(ahead, SGD(ahead.parameters(), LR), task.inner)
    of_outer = torch.autograd.grad(task.outer(ahead), list(ahead.parameters()))
    products = torch.stack([inner_product(of_outer, of_term) for of_term in of_terms])
    expected = -LR * LAMBDA / SAMPLES * products.reshape(SAMPLES, 3)
    for engine in ENGINES:
        (actual,) = task.gradient(student, SGD(parameters, LR), engine)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


def inner_product(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


@pytest.mark.parametrize("engine", ENGINES)
def test_returns_a_gradient_for_each_trainable_parameter(engine: str) -> None:
    student, task = Student(mlp()), Task(PartlyLearnedWeights())
    weights, unused = task.gradient(student, SGD(student.parameters(), LR), engine)
    assert unused.tolist() == [0.0, 0.0]
    assert weights.abs().min() > 0


# Losses


@pytest.mark.parametrize("engine", EXACT)
def test_probe_replaces_the_inner_loss_only_in_the_gradient(engine: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task()
    optimizer = SGD(student.parameters(), LR)
    ahead = copy.deepcopy(student)
    plain_step(ahead, SGD(ahead.parameters(), LR), task.inner)
    of_outer = torch.autograd.grad(task.outer(ahead), list(ahead.parameters()))

    def probe(model: nn.Module) -> Tensor:
        return task.inner_on(model, slice(2))

    of_probe = torch.autograd.grad(probe(student), list(student.parameters()), create_graph=True)
    product = inner_product(of_outer, of_probe)
    expected = torch.autograd.grad(-LR * product, task.weighting.weights)
    actual = task.gradient(student, optimizer, engine, probe=probe)
    assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_several_losses_are_summed(engine: str) -> None:
    student, task = Student(mlp()), Task(FreeWeights(3))
    optimizer = AdamW(student.parameters(), LR, eps=1e-2)
    expected = task.gradient(student, optimizer, engine)
    inners = [partial(half_inner, task, samples) for samples in (slice(2), slice(2, 4))]
    outers = [lambda model: task.outer(model) / 2] * 2
    actual = meta_gradient(inners, outers, student, optimizer, task.weighting, engine=engine)
    assert relative_error(actual, expected) < 1e-12


def half_inner(task: Task, samples: slice, model: nn.Module) -> Tensor:
    return task.inner_on(model, samples) / 2


# Engines; fallbacks are tested in test_graph.py


def engine_of(student: nn.Module, task: Task, inner: Any = None, **options: Any) -> str | None:
    learner = task.learner(student, SGD(student.parameters(), LR))
    return learner.step(inner or task.inner, task.outer, **options).engine


def test_auto_uses_double_backward() -> None:
    assert engine_of(Student(mlp()), Task()) == "double-backward"


def test_auto_uses_forward_mode_for_recurrent_students() -> None:
    assert engine_of(Student(Recurrent()), Task()) == "forward"


def test_auto_uses_forward_mode_for_several_losses_and_with_a_probe() -> None:
    student, task = Student(mlp()), Task()
    assert engine_of(student, task, [task.inner, task.inner]) == "forward"
    assert engine_of(student, task, probe=task.inner) == "forward"


# Arguments

WRONG_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "student": ({"student": 1}, TypeError, "`student` to be a module, got int"),
    "optimizer": ({"optimizer": None}, TypeError, "`optimizer` to be one of .*got NoneType"),
    "weighting": ({"weighting": nn.ReLU()}, ValueError,
                  "`weighting` to have parameters to learn, got none"),
    "engine": ({"engine": None}, ValueError, "`engine` to be one of .*got None"),
    "steps": ({"steps": "3"}, TypeError, "`steps` to be an integer, got str"),
    "max_norm": ({"max_norm": float("nan")}, ValueError, r"`max_norm` in \(0, inf\), got nan"),
    "inner": ({"inner": 1.0}, TypeError, "`inner` to be callable, got float"),
    "no inner": ({"inner": []}, ValueError, "`inner` to be at least one function, got none"),
    "outer": ({"outer": [1]}, TypeError, "`outer` to be callable, got int"),
    "probe": ({"probe": 1}, TypeError, "`probe` to be callable, got int"),
    "probe with higher": ({"probe": lambda model: 0, "engine": "higher"}, ValueError,
                          "no `probe` with `higher`.* got one"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_rejects_wrong_arguments(name: str) -> None:
    wrong, error, message = WRONG_ARGUMENTS[name]
    student, task = Student(mlp()), Task()
    right = {
        "inner": task.inner,
        "outer": task.outer,
        "student": student,
        "optimizer": SGD(student.parameters(), LR),
        "weighting": task.weighting,
    }
    with pytest.raises(error, match=f"Expected {message}"):
        meta_gradient(**{**right, **wrong})
