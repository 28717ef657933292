"""Muon, and optimizers that users register."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from lookahead import CLASSES, LR, Student, Task, assert_matches_differences, plain_step
from torch import Tensor, nn
from torch.optim import Optimizer

from msdlosses.meta import _optimizers, register_optimizer

pytestmark = pytest.mark.usefixtures("double_precision")

EVERY = ("forward", "double-backward", "difference", "higher")


def matrices() -> nn.Sequential:
    """A student whose parameters are matrices."""
    first, last = nn.Linear(12, 6, bias=False), nn.Linear(6, CLASSES, bias=False)
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)


class Lion(Optimizer):
    """An optimizer with a state, which PyTorch does not have; smooth, for finite differences."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "beta": 0.8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["beta"])
                    p.sub_(mean.mul(10).tanh(), alpha=group["lr"])


def lion(p: Tensor, grad: Tensor, state: Any, group: Mapping[str, Any]) -> Tensor:
    mean = state.get("mean", torch.zeros_like(p)).lerp(grad, 1 - group["beta"])
    state["mean"] = mean
    return p - group["lr"] * (10 * mean).tanh()


@pytest.fixture
def registered() -> Iterator[None]:
    register_optimizer(Lion, lion)
    yield
    del _optimizers.STEPS[Lion]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("steps_before", [0, 2])
def test_registered_optimizer_matches_finite_differences(steps_before: int) -> None:
    student, task = Student(matrices()), Task()
    optimizer = Lion(student.parameters(), 0.1)
    for _ in range(steps_before):
        plain_step(student, optimizer, task.inner)
    assert_matches_differences(student, optimizer, task, EVERY)


def test_optimizer_that_is_not_registered_is_rejected() -> None:
    student, task = Student(matrices()), Task()
    with pytest.raises(TypeError, match=r"`optimizer` to be one of .* got Lion"):
        task.learner(student, Lion(student.parameters(), LR))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((Student, lion), "optimizer_class"),
        (("Lion", lion), "optimizer_class"),
        ((Lion, 1), "step"),
    ],
)
def test_registration_rejects_wrong_arguments(arguments: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"`{name}`"):
        register_optimizer(*arguments)


# Muon


@pytest.fixture
def exact_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Muon iterate in float64 instead of bfloat16."""
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain momentum": {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0},
    "RMS of AdamW": {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this version of PyTorch lacks Muon")
@pytest.mark.usefixtures("exact_iteration")
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_muon_matches_finite_differences(name: str, steps_before: int) -> None:
    student, task = Student(matrices()), Task()
    optimizer = torch.optim.Muon(student.parameters(), lr=0.05, **OPTIONS[name])
    for _ in range(steps_before):
        plain_step(student, optimizer, task.inner)
    assert_matches_differences(student, optimizer, task, EVERY)
