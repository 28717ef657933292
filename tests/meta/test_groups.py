"""Parameter groups that differ in their options, and complex parameters."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    ENGINES,
    EXACT,
    LR,
    Student,
    Task,
    assert_matches_differences,
    finite_differences,
    mlp,
    plain_step,
    relative_error,
)
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

pytestmark = pytest.mark.usefixtures("double_precision")

Options = dict[str, Any]
HAS_DECOUPLED_ADAM = "decoupled_weight_decay" in Adam([nn.Parameter(torch.ones(1))]).defaults
DECOUPLED: list[Options] = [{"decoupled_weight_decay": True, "weight_decay": 0.3}]


def tensor_lr() -> Options:
    return {"lr": torch.tensor(0.2, dtype=torch.float64)}


GROUPS: dict[type[Optimizer], list[Options]] = {
    SGD: [
        {"momentum": 0.9, "nesterov": True},
        {"maximize": True, "weight_decay": 0.1},
        {"momentum": 0.5, "dampening": 0.3},
        tensor_lr(),
    ],
    Adam: [
        *(DECOUPLED if HAS_DECOUPLED_ADAM else []),
        {"weight_decay": 0.3},
        {"amsgrad": True, "maximize": True},
        {"betas": (0.5, 0.7), "eps": 0.1},
        tensor_lr(),
    ],
    AdamW: [{"weight_decay": 0.3}, {"amsgrad": True, "maximize": True}, tensor_lr()],
    RMSprop: [
        {"centered": True},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"maximize": True, "alpha": 0.5},
        tensor_lr(),
    ],
    Adagrad: [{"lr_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}, tensor_lr()],
    Adadelta: [{"rho": 0.5}, {"weight_decay": 0.1, "maximize": True}, tensor_lr()],
}
PAIRS = [
    pytest.param(kind, pair, id=f"{kind.__name__}, {' and '.join('+'.join(o) for o in pair)}")
    for kind, options in GROUPS.items()
    for pair in combinations(options, 2)
]


def make(kind: type[Optimizer], body: nn.Module, *options: Options) -> Optimizer:
    """Make an optimizer with a group for each of the options, and one without options."""
    own = [[body[1].weight], [body[3].weight], [body[1].bias, body[3].bias]]
    groups = [{"params": p, **o} for p, o in zip(own, [*options, {}], strict=True)]
    return kind(groups, lr=0.1) if kind is SGD else kind(groups, lr=0.1, eps=1e-2)


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize(("kind", "pair"), PAIRS)
def test_groups_may_differ_in_their_options(
    kind: type[Optimizer], pair: tuple[Options, Options], steps_before: int
) -> None:
    student, task = Student(mlp()), Task()
    optimizer = make(kind, student.body, *pair)
    for _ in range(steps_before):
        plain_step(student, optimizer, task.inner)
    assert_matches_differences(student, optimizer, task, ENGINES)


@pytest.mark.skipif(not HAS_DECOUPLED_ADAM, reason="AdamW has no such option")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_of_adamw_may_be_coupled(engine: str) -> None:
    """`AdamW` forgets the option when it loads a state, as the differences do."""
    student, task = Student(mlp()), Task()
    decay = {"weight_decay": 0.3}
    adam = make(Adam, student.body, decay, {**decay, "decoupled_weight_decay": True})
    adamw = make(AdamW, student.body, {**decay, "decoupled_weight_decay": False}, decay)
    adamw.param_groups[2]["weight_decay"] = 0.0
    expected = task.gradient(student, adam, engine)
    assert relative_error(task.gradient(student, adamw, engine), expected) < 1e-12


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 5), nn.Linear(10, CLASSES)
        self.middle = nn.Parameter(torch.randn(5, 5, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Any:
        middle = self.first(x.flatten(1)).tanh().to(torch.complex128) @ self.middle
        return self.head(torch.view_as_real(middle).flatten(1))


COMPLEX: dict[str, tuple[type[Optimizer], Options]] = {
    "SGD": (SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "Adam": (Adam, {"eps": 1e-2, "weight_decay": 0.1}),
    "Adam, amsgrad": (Adam, {"eps": 1e-2, "amsgrad": True}),
    "AdamW": (AdamW, {"eps": 1e-2}),
    "RMSprop": (RMSprop, {"eps": 1e-2, "centered": True, "momentum": 0.9}),
    "Adagrad": (Adagrad, {"eps": 1e-2, "initial_accumulator_value": 0.1}),
    "Adadelta": (Adadelta, {"eps": 1e-2}),
}


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", COMPLEX)
def test_gradient_for_complex_parameters_matches_finite_differences(
    name: str, steps_before: int, max_norm: float | None
) -> None:
    kind, options = COMPLEX[name]
    torch.manual_seed(1)
    student, task = Student(Complex()), Task()
    optimizer = kind(student.parameters(), lr=0.1, **options)
    for _ in range(steps_before):
        plain_step(student, optimizer, task.inner)
    expected = finite_differences(student, optimizer, task, eps=1e-4, max_norm=max_norm)
    for engine in EXACT:
        actual = task.gradient(student, optimizer, engine, max_norm=max_norm)
        assert relative_error(actual, expected) < 1e-6, engine


def test_higher_rejects_complex_parameters() -> None:
    student, task = Student(Complex()), Task()
    with pytest.raises(ValueError, match="real parameters, for `higher`, got complex ones"):
        task.gradient(student, SGD(student.parameters(), LR), "higher")


def test_gradient_does_not_change_the_groups() -> None:
    student, task = Student(mlp()), Task()
    optimizer = make(Adam, student.body, {"weight_decay": 0.3}, {"amsgrad": True})
    plain_step(student, optimizer, task.inner)
    before = copy.deepcopy(optimizer.state_dict())
    for engine in ENGINES:
        task.gradient(student, optimizer, engine)
    assert str(optimizer.state_dict()) == str(before)
