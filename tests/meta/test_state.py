"""`MetaLearner.gradient` changes no state, whether or not a loss fails."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lookahead import ENGINES, LR, BatchNormWeights, Objective, Student, Task, assert_same, mlp
from students import Attention, Recurrent
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from msdlosses import MetaLearner
from msdlosses.meta import _step
from msdlosses.meta._state import StateKeeper

pytestmark = pytest.mark.usefixtures("double_precision")


def complete_state(student: nn.Module, optimizer: Optimizer, learner: MetaLearner) -> Any:
    modules = [student, learner.weighting]
    return copy.deepcopy(
        {
            "states": [list(module.state_dict().items()) for module in modules],
            "grads": [[p.grad for p in module.parameters()] for module in modules],
            "trainable": [[p.requires_grad for p in module.parameters()] for module in modules],
            "versions": [[p._version for p in module.parameters()] for module in modules],
            "modes": [[m.training for m in module.modules()] for module in modules],
            "hooks": [len(m._forward_hooks) for m in learner.weighting.modules()],
            "optimizers": [optimizer.state_dict(), learner.weighting_optimizer.state_dict()],
            "random": torch.get_rng_state(),
            "kernels": [
                torch.backends.cudnn.enabled,
                torch.backends.mha.get_fastpath_enabled(),
                torch._C._get_mkldnn_enabled(),
            ],
        }
    )


class LossError(Exception):
    """Raised by a loss."""


def raise_in(loss: Objective, calls: Iterator[int], failing_call: int | None) -> Objective:
    """A loss that raises an error at the end of one of the calls."""

    def wrapped(model: nn.Module) -> Tensor:
        value = loss(model)
        if next(calls) == failing_call:
            raise LossError
        return value

    return wrapped


@pytest.mark.parametrize("failing_call", [None, 1, 2, 3])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)), id="batch norm"),
        pytest.param(Recurrent, id="LSTM"),
        pytest.param(lambda: Attention(0.5), id="attention"),
    ],
)
def test_gradient_changes_no_state(
    body: Callable[[], nn.Module], engine: str, failing_call: int | None
) -> None:
    student, task = Student(body()), Task(BatchNormWeights())
    optimizer = AdamW(student.parameters(), LR)
    learner = task.learner(student, optimizer, engine=engine)
    learner.step(task.inner, task.outer)
    (task.inner(student) + task.outer(student)).backward()  # leaves gradients behind
    student.body.eval()
    next(iter(student.body.children())).train()
    calls = iter(range(1, 9))
    inner, outer = (raise_in(loss, calls, failing_call) for loss in (task.inner, task.outer))
    buffers, storage = [*student.buffers()], [p.data_ptr() for p in student.parameters()]
    before = complete_state(student, optimizer, learner)
    try:
        learner.gradient(inner, outer)
    except LossError:
        assert failing_call is not None
    assert_same(complete_state(student, optimizer, learner), before)
    assert all(a is b for a, b in zip(student.buffers(), buffers, strict=True))
    assert [p.data_ptr() for p in student.parameters()] == storage


def test_gradient_works_under_no_grad() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    expected = learner.gradient(task.inner, task.outer)
    with torch.no_grad():
        assert_same(learner.gradient(task.inner, task.outer), expected)
        learner.step(task.inner, task.outer)


class Growing(nn.Module):
    """Replaces its buffer by a longer one in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("history", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        self.history = torch.cat([self.history, torch.zeros(1)])
        return x


def test_step_commits_buffers_that_change_their_shape() -> None:
    growing = Growing()
    student, task = Student(mlp(growing)), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine="forward")
    learner.gradient(task.inner, task.outer)
    assert growing.history.shape == (0,)
    learner.step(task.inner, task.outer)
    assert growing.history.shape == (1,)


def test_random_states_of_other_devices_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose generators dropout uses."""
    generator = torch.Generator()
    device_module = SimpleNamespace(default_generators={None: generator})  # by device index
    monkeypatch.setattr(torch, "get_device_module", lambda device: device_module)
    keeper = StateKeeper(nn.Linear(2, 2, device="meta"))
    state = keeper.save()
    expected = torch.rand(3, generator=generator)
    keeper.restore(state)
    assert torch.equal(torch.rand(3, generator=generator), expected)


def test_parameters_are_split_into_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_step, "LARGEST_CHUNK", 10)
    parameters = [torch.empty(size) for size in (4, 5, 6, 20, 1)]
    chunks = [*_step._split(range(5), parameters)]
    assert chunks == [[0, 1], [2], [3], [4]]
    assert [*_step._split([], parameters)] == []
