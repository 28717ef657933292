"""Steps in half precision: autocast and gradient scaling."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    EXACT,
    LR,
    VIEWS,
    Student,
    Task,
    assert_same,
    mlp,
    use_single_precision,
)
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD

from msdlosses import WeightNet

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_several_steps_may_share_an_autocast_region(mode: str, engine: str) -> None:
    results = []
    for shared in (True, False):
        torch.manual_seed(0)
        student, task = Student(mlp()), Task(WeightNet(VIEWS, num_classes=CLASSES))
        use_single_precision(student, task)
        learner = task.learner(student, SGD(student.parameters(), LR), mode=mode, engine=engine)
        with torch.autocast("cpu", torch.bfloat16) if shared else nullcontext():
            for _ in range(3):
                with nullcontext() if shared else torch.autocast("cpu", torch.bfloat16):
                    learner.step(task.inner, task.outer)
        results.append([*student.parameters(), *task.weighting.parameters()])
    assert_same(results[0], results[1])


def make_task() -> tuple[Student, Task]:
    torch.manual_seed(0)
    student, task = Student(mlp()), Task()
    use_single_precision(student, task)
    return student, task


def train(scaler: GradScaler | None, **options: Any) -> list[Tensor]:
    """Take three steps, in float16 if there is a scaler; return all parameters."""
    student, task = make_task()
    optimizer = SGD(student.parameters(), 0.1, momentum=0.9)
    learner = task.learner(student, optimizer, scaler=scaler, **options)
    for _ in range(3):
        with torch.autocast("cpu", torch.float16, enabled=scaler is not None):
            learner.step(task.inner, task.outer)
    return [*student.parameters(), *task.weighting.parameters()]


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="online"),
        pytest.param({"mode": "lookahead"}, id="lookahead"),
        pytest.param({"max_norm": 0.1}, id="max_norm"),
        pytest.param({"update_every": 2}, id="update_every"),
    ],
)
def test_scaled_steps_in_float16_are_close_to_float32(options: dict[str, Any], engine: str) -> None:
    scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    actual = train(scaler, engine=engine, **options)
    expected = train(None, engine=engine, **options)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    assert scaler.get_scale() == 2.0**13  # the scale grew once


@pytest.mark.parametrize("engine", EXACT)
def test_scaler_skips_steps_that_overflow(engine: str) -> None:
    scaler = GradScaler("cpu", init_scale=2.0**120, growth_interval=2)
    trained = train(scaler, engine=engine)
    student, task = make_task()
    assert_same(trained, [*student.parameters(), *task.weighting.parameters()])
    assert scaler.get_scale() == 2.0**117
    assert not torch.equal(train(None)[0], trained[0])
