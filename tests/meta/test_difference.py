"""The engine "difference" is close to the exact engines, for losses, students, and optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    LR,
    SAMPLES,
    VIEWS,
    BatchNormWeights,
    Student,
    Task,
    assert_matches_differences,
    finite_differences,
    mlp,
    plain_step,
    relative_error,
    use_single_precision,
)
from students import STUDENTS
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from msdlosses import KDLoss, MSDLoss, UncertaintyWeighting, Weighting, WeightNet
from msdlosses.meta import meta_gradient

pytestmark = pytest.mark.usefixtures("double_precision")

KINDS: dict[str, Any] = {
    "SGD": lambda parameters: SGD(parameters, LR / 5, momentum=0.9),
    "AdamW": lambda parameters: AdamW(parameters, LR / 5, eps=1e-2),
}
each_optimizer = pytest.mark.parametrize("kind", KINDS)

# Their forward pass also has a part that the gradient leaves out.
NOT_DIFFERENTIATED_FULLY = ("spectral norm",)


@each_optimizer
@pytest.mark.parametrize("name", [n for n in STUDENTS if n not in NOT_DIFFERENTIATED_FULLY])
def test_double_precision_is_accurate(name: str, kind: str) -> None:
    student, task = Student(STUDENTS[name]()), Task()
    optimizer = KINDS[kind](student.parameters())
    plain_step(student, optimizer, task.inner)
    expected = task.gradient(student, optimizer, "double-backward")
    assert relative_error(task.gradient(student, optimizer, "difference"), expected) < 1e-6


@each_optimizer
@pytest.mark.parametrize("name", ["mlp", "batch norm", "attention", "attention, dropout", "LSTM"])
def test_single_precision_is_close(name: str, kind: str) -> None:
    student, task = Student(STUDENTS[name]()), Task(WeightNet(VIEWS, num_classes=CLASSES, hidden=5))
    optimizer = KINDS[kind](student.parameters())
    expected = task.gradient(student, optimizer, "double-backward")
    use_single_precision(student, task)
    actual = task.gradient(student, optimizer, "difference")
    assert relative_error([g.double() for g in actual], expected) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_close_as_that_of_exact_engines(dtype: torch.dtype) -> None:
    student, task = Student(mlp()), Task()
    use_single_precision(student, task)
    optimizer = AdamW(student.parameters(), LR / 5, eps=1e-2)
    expected = task.gradient(student, optimizer, "double-backward")
    with torch.autocast("cpu", dtype):
        actual = task.gradient(student, optimizer, "difference")
    assert relative_error(actual, expected) < (0.2 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_gradient_through_clipping_matches_finite_differences(max_norm: float) -> None:
    student, task = Student(mlp()), Task()
    optimizer = AdamW(student.parameters(), LR, eps=1e-2)
    assert_matches_differences(student, optimizer, task, ["difference"], max_norm)


def test_unused_rows_of_an_embedding_do_not_shorten_the_step_of_adam() -> None:
    student, task = Student(STUDENTS["embedding"]()), Task()
    optimizer = AdamW(student.parameters(), LR / 5)
    plain_step(student, optimizer, task.inner)
    expected = task.gradient(student, optimizer, "double-backward")
    assert relative_error(task.gradient(student, optimizer, "difference"), expected) < 1e-6


def test_weights_that_are_all_zero_get_a_gradient() -> None:
    student, task = Student(mlp()), Task()
    nn.init.zeros_(task.weighting.weights)
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer, "double-backward")
    assert relative_error(task.gradient(student, optimizer, "difference"), expected) < 1e-6


def test_parameters_that_are_all_zero_can_move() -> None:
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.body[3].parameters(), LR)
    for parameter in student.body[3].parameters():
        nn.init.zeros_(parameter)
    expected = task.gradient(student, optimizer, "double-backward")
    assert relative_error(task.gradient(student, optimizer, "difference"), expected) < 1e-6


# Weightings


class Parts(nn.Module):
    """A container, whose parts a loss calls one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Linear(1, 3), nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.ones(()))


def test_parts_of_a_weighting_may_be_called_one_by_one() -> None:
    student, task, parts = Student(mlp()), Task(), Parts()

    def inner(model: nn.Module) -> Tensor:
        losses = model(**task.batch).square().sum(1, keepdim=True)
        weights = parts.head(parts.encode(losses.detach()).tanh()).sigmoid()
        return (weights * losses).mean() * parts.scale

    gradients = [
        meta_gradient(
            inner, task.outer, student, SGD(student.parameters(), 0.1), parts, engine=engine
        )
        for engine in ("difference", "double-backward")
    ]
    assert relative_error(*gradients) < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        BatchNormWeights,
        lambda: UncertaintyWeighting(VIEWS),
        lambda: WeightNet(VIEWS, num_classes=CLASSES),
    ],
    ids=["batch norm", "penalty", "net"],
)
def test_weightings_of_other_kinds(make: Any) -> None:
    student, task = Student(mlp(nn.Dropout(0.3))), Task(make())
    optimizer = SGD(student.parameters(), LR)
    expected = task.gradient(student, optimizer, "double-backward")
    assert relative_error(task.gradient(student, optimizer, "difference"), expected) < 1e-6


class AttachedWeights(Weighting):
    """Weights that depend on the student with a gradient."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.students = [student]

    def forward(self, terms: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.scale * next(self.students[0].parameters()).sum().sigmoid()


def test_rejects_weights_with_a_gradient_to_the_student() -> None:
    student = Student(mlp())
    task = Task(AttachedWeights(student))
    with pytest.raises(ValueError, match="outputs of `weighting` with a gradient to its own"):
        task.gradient(student, SGD(student.parameters(), LR), "difference")


@pytest.mark.parametrize("calls", [[1, 2, 2, 2, 2], [2, 1, 1, 1, 1]], ids=["more", "fewer"])
def test_rejects_another_number_of_calls(calls: list[int]) -> None:
    student, task = Student(mlp()), Task()
    remaining = iter(calls)

    def inner(model: nn.Module) -> Tensor:
        count = next(remaining)
        return torch.stack([task.inner(model) / count for _ in range(count)]).sum()

    with pytest.raises(ValueError, match="the same calls of `weighting`"):
        meta_gradient(
            inner, task.outer, student, SGD(student.parameters(), LR), task.weighting,
            engine="difference",
        )  # fmt: skip


def test_rejects_calls_of_other_shapes() -> None:
    student, task = Student(mlp()), Task()
    sizes = iter([SAMPLES, SAMPLES - 1, SAMPLES, SAMPLES])
    with pytest.raises(ValueError, match="the same calls of `weighting`"):
        meta_gradient(
            lambda model: task.inner_on(model, slice(next(sizes))),
            task.outer, student, SGD(student.parameters(), LR), task.weighting,
            engine="difference",
        )  # fmt: skip


# Losses


def test_detached_values_are_held() -> None:
    """A student that also learns from its own prediction, without a gradient to it."""
    student, task = Student(mlp()), Task()
    optimizer = SGD(student.parameters(), LR)
    task.inner = lambda model: Task.inner(task, model) + 0.5 * self_distilled(model, task)
    expected = finite_differences(student, optimizer, task)
    assert relative_error(task.gradient(student, optimizer, "difference"), expected) < 1e-6


def self_distilled(model: nn.Module, task: Task) -> Tensor:
    logits = model(**task.batch)
    return (logits * logits.detach().softmax(1)).sum()


def test_learned_temperature_in_the_optimizer() -> None:
    student, task = Student(mlp()), Task()
    task.msd = MSDLoss(KDLoss(2.0, learn_temperature=(1.0, 8.0)), task.weighting)
    parameters = [*student.parameters(), *task.msd.criterion.parameters()]
    optimizer = SGD(parameters, LR)
    expected = task.gradient(student, optimizer, "double-backward")
    assert relative_error(task.gradient(student, optimizer, "difference"), expected) < 1e-6


def test_several_losses_and_a_probe() -> None:
    student, task = Student(mlp(nn.Dropout(0.3))), Task()
    optimizer = SGD(student.parameters(), LR)
    halves = [lambda m: task.inner_on(m, slice(2)) / 2, lambda m: task.inner_on(m, slice(2, 4)) / 2]
    for options in ({}, {"probe": lambda model: task.inner_on(model, slice(3))}):
        results = [
            meta_gradient(
                halves, task.outer, student, optimizer, task.weighting, engine=engine, **options
            )
            for engine in ("difference", "forward")
        ]
        assert relative_error(*results) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rejects_parameters_in_half_precision(dtype: torch.dtype) -> None:
    student, task = Student(mlp()).to(dtype), Task()
    optimizer = SGD(student.parameters(), LR)
    with pytest.raises(TypeError, match="float32 or float64 for engine='difference'"):
        task.learner(student, optimizer, engine="difference")
    with pytest.raises(TypeError, match="float32 or float64 for engine='difference'"):
        task.gradient(student, optimizer, "difference")


# Learners


@pytest.mark.parametrize("mode", ["online", "lookahead"])
@each_optimizer
def test_learner_moves_like_that_of_an_exact_engine(mode: str, kind: str) -> None:
    results = []
    for engine in ("difference", "double-backward"):
        torch.manual_seed(0)
        student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.3))), Task()
        optimizer: Optimizer = KINDS[kind](student.parameters())
        learner = task.learner(student, optimizer, engine=engine, mode=mode, max_norm=0.5)
        for _ in range(4):
            learner.step(task.inner, task.outer)
        state = {**student.state_dict(), **task.weighting.state_dict()}
        results.append([value.double() for value in state.values()])
        random = torch.rand(1)
        results[-1].append(random)
    assert relative_error(*results) < 1e-6
    assert torch.equal(results[0][-1], results[1][-1])


def test_error_is_estimated_now_and_then() -> None:
    student, task = Student(mlp(nn.ReLU())), Task()
    use_single_precision(student, task)
    optimizer = SGD(student.parameters(), LR / 10, momentum=0.9)
    learner = task.learner(student, optimizer, engine="difference")
    errors = [learner.step(task.inner, task.outer).error for _ in range(9)]
    estimated = [k + 1 for k, error in enumerate(errors) if error is not None]
    assert estimated == [1, 2, 3, 5, 9]
    assert all(0 < error < 0.05 for error in errors if error is not None)


def test_exact_engines_estimate_no_error() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    assert learner.step(task.inner, task.outer).error is None


def test_weighting_may_return_other_values_too() -> None:
    """Values that are not tensors, and tensors without a gradient, are replayed as they are."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self) -> tuple[Tensor, Tensor, str]:
            return self.weight, torch.tensor(3.0, dtype=torch.float64), "weights"

    student, weighting = nn.Linear(3, 2).double(), Wrapped()
    x = torch.randn(5, 3, dtype=torch.float64)

    def inner(model: nn.Module) -> Tensor:
        learned, fixed, name = weighting()
        assert name == "weights"
        return learned * model(x).square().mean() + fixed * model(x).mean()

    def outer(model: nn.Module) -> Tensor:
        return model(x).pow(4).mean()

    gradients = [
        meta_gradient(
            inner, outer, student, SGD(student.parameters(), 0.1), weighting, engine=engine
        )[0]
        for engine in ("difference", "double-backward")
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)
