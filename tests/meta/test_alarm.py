"""On a GPU, the error about a wrong gradient is raised later, without waiting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lookahead import LR, Student, Task, mlp
from torch.optim import SGD

from msdlosses.meta._alarm import Alarm


class FakeEvent:
    """An event of a device that has reached it when `arrived` is set."""

    arrived = False

    def __init__(self, device: object) -> None:
        FakeEvent.arrived = False

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return FakeEvent.arrived

    def synchronize(self) -> None:
        FakeEvent.arrived = True


def on_device(value: bool) -> Any:
    """A flag on a device that computes asynchronously."""
    flag = torch.tensor(value)
    device = SimpleNamespace(type="cuda")
    return SimpleNamespace(device=device, to=lambda device, non_blocking: flag)


@pytest.fixture
def alarm(monkeypatch: pytest.MonkeyPatch) -> Alarm:
    monkeypatch.setattr(torch, "Event", FakeEvent)
    return Alarm()


def test_flag_on_the_cpu_raises_at_once() -> None:
    alarm = Alarm()
    alarm.watch(torch.tensor(False))
    with pytest.raises(ValueError, match="a gradient that is its derivative"):
        alarm.watch(torch.tensor(True))


def test_flag_on_a_device_raises_when_its_copy_has_arrived(alarm: Alarm) -> None:
    alarm.watch(on_device(True))
    alarm.poll()
    FakeEvent.arrived = True
    with pytest.raises(ValueError, match="a gradient that is its derivative"):
        alarm.poll()
    alarm.poll()


def test_flag_on_a_device_that_is_not_set_raises_nothing(alarm: Alarm) -> None:
    alarm.watch(on_device(False))
    alarm.wait()
    alarm.wait()


def test_waiting_raises(alarm: Alarm) -> None:
    alarm.watch(on_device(True))
    with pytest.raises(ValueError, match="a gradient that is its derivative"):
        alarm.wait()


def test_step_raises_the_error_of_the_step_before(alarm: Alarm) -> None:
    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR))
    learner.step(task.inner, task.outer)
    learner._alarm.watch(on_device(True))
    FakeEvent.arrived = True
    with pytest.raises(ValueError, match="a gradient that is its derivative"):
        learner.step(task.inner, task.outer)
    learner.step(task.inner, task.outer)
