"""The learner's state: buffers and counters, checkpoints, and memory."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from lookahead import CLASSES, ENGINES, LR, VIEWS, BatchNormWeights, Student, Task, assert_same, mlp
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from msdlosses import WeightNet

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_step_updates_buffers_and_optimizers_once(mode: str, engine: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6))), Task(BatchNormWeights())
    optimizer = AdamW(student.parameters(), LR)
    learner = task.learner(student, optimizer, mode=mode, engine=engine)
    batches_tracked = student.body[2].num_batches_tracked
    for count in (1, 2, 3):
        learner.step(task.inner, task.outer)
        assert batches_tracked == count
        assert student.body[2].num_batches_tracked is batches_tracked
        assert task.weighting.norm.num_batches_tracked == count
        steps = {int(state["step"]) for state in optimizer.state.values()}
        steps |= {int(state["step"]) for state in learner.weighting_optimizer.state.values()}
        assert steps == {count}


def train(steps: int, resume_at: int | None = None, **options: Any) -> tuple[Any, list[Any]]:
    """Train, optionally resuming from a checkpoint; return all parameters and step results."""
    torch.manual_seed(0)
    student = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)))
    task = Task(WeightNet(VIEWS, num_classes=CLASSES, hidden=4))
    optimizer = AdamW(student.parameters(), 0.05)
    learner = task.learner(student, optimizer, **options)
    results = []
    for n in range(steps):
        if n == resume_at:
            states = [student.state_dict(), optimizer.state_dict(), learner.state_dict()]
            *states, random_state = copy.deepcopy([*states, torch.get_rng_state()])
            student = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)))
            task.weighting = WeightNet(VIEWS, num_classes=CLASSES, hidden=4)
            task.msd.weighting = task.weighting
            optimizer = AdamW(student.parameters(), 0.05)
            learner = task.learner(student, optimizer, **options)
            for owner, state in zip((student, optimizer, learner), states, strict=True):
                owner.load_state_dict(state)
            torch.set_rng_state(random_state)
        step = learner.step(task.inner, task.outer)
        results.append((step.inner, step.outer, step.engine))
    return [*student.state_dict().values(), *task.weighting.state_dict().values()], results


@pytest.mark.parametrize("resume_at", [1, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="online"),
        pytest.param({"mode": "lookahead"}, id="lookahead"),
        pytest.param({"update_every": 3, "warmup": 1}, id="update_every"),
    ],
)
def test_resumed_run_equals_uninterrupted_run(options: dict[str, Any], resume_at: int) -> None:
    assert_same(train(6, resume_at, **options), train(6, **options))


def test_state_dict_loads_with_weights_only(tmp_path: Path) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    learner.step(task.inner, task.outer)
    torch.save(learner.state_dict(), tmp_path / "learner.pt")
    learner.load_state_dict(torch.load(tmp_path / "learner.pt", weights_only=True))


def test_rejects_an_incomplete_state_dict() -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    state_dict = learner.state_dict()
    del state_dict["steps_taken"]
    with pytest.raises(KeyError, match="`state_dict` to hold `steps_taken`, got `weighting`, "):
        learner.load_state_dict(state_dict)


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_do_not_leak_tensors(engine: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))), Task()
    learner = task.learner(student, AdamW(student.parameters(), LR), engine=engine)
    counts = []
    steps = 200 if engine != "higher" else 10
    gc.collect()
    gc.disable()
    try:
        for n in range(steps):
            learner.step(task.inner, task.outer)
            if n in (2, steps - 1):
                counts.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    finally:
        gc.enable()
    if engine != "higher":  # its copies are in reference cycles
        assert counts[0] == counts[1]
