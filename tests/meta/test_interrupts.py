"""Interrupts, errors, and several threads leave nothing behind that a look-ahead changed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from lookahead import ENGINES, EXACT, LR, Student, Task, assert_same, mlp, relative_error
from students import Attention, Recurrent
from torch import nn
from torch.nn.attention import SDPBackend
from torch.optim import SGD

import msdlosses.meta
from msdlosses.meta._interrupts import restoring
from msdlosses.meta._settings import SharedSetting

pytestmark = pytest.mark.usefixtures("double_precision")

FOLDER = Path(msdlosses.meta.__path__[0])
FILES = [FOLDER / f"_{name}.py" for name in ("exact", "kernels", "parameters", "state")]


def settings() -> list[bool]:
    """The settings of the whole process that a look-ahead changes."""
    cuda: Any = torch.backends.cuda
    return [
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        torch._C._is_fwd_grad_enabled(),
        torch.is_grad_enabled(),
    ]


def state(student: nn.Module, task: Task) -> Any:
    modules = (student, task.weighting)
    return copy.deepcopy(
        [
            [list(module.state_dict().items()) for module in modules],
            [[p.requires_grad for p in module.parameters()] for module in modules],
            [p.data_ptr() for p in student.parameters()],
            [b.data_ptr() for b in student.buffers()],
            torch.get_rng_state(),
            settings(),
        ]
    )


@contextmanager
def interrupt_at(number: int) -> Iterator[list[int]]:
    """Raise an error in the n-th line of the meta-learner that runs."""
    lines = [0]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if Path(code.co_filename) not in FILES or code.co_name == "<genexpr>":
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == number:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(previous)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_that_is_interrupted_changes_no_state(engine: str) -> None:
    student, task = Student(mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))), Task()
    learner = task.learner(student, SGD(student.parameters(), LR, momentum=0.9), engine=engine)
    with interrupt_at(0) as lines:
        learner.gradient(task.inner, task.outer)
    before, total = state(student, task), lines[0]
    assert total > 100
    for number in range(1, total, 5):
        with suppress(KeyboardInterrupt), interrupt_at(number):
            learner.gradient(task.inner, task.outer)
        assert_same(state(student, task), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_optimizer_that_fails_leaves_no_gradients(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise KeyboardInterrupt

    student, task = Student(mlp()), Task()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine)
    before = state(student, task)
    monkeypatch.setattr(SGD, "step", fail)
    with pytest.raises(KeyboardInterrupt):
        learner.step(task.inner, task.outer)
    assert_same(state(student, task), before)
    assert all(p.grad is None for p in student.parameters())


def test_restoring_is_repeated_after_an_interrupt() -> None:
    attempts: list[int] = []

    def restore() -> None:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), restoring(restore):
        pass
    assert attempts == [0, 1]


def test_setting_is_restored_by_the_last_user() -> None:
    log: list[str] = []

    @SharedSetting
    @contextmanager
    def setting() -> Iterator[None]:
        log.append("changed")
        yield
        log.append("restored")

    first, second = setting(), setting()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert log == ["changed"]
    second.__exit__(None, None, None)
    assert log == ["changed", "restored"]


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("make_body", [Attention, Recurrent])
def test_learners_in_several_threads_are_independent(
    make_body: Callable[[], nn.Module], engine: str
) -> None:
    pairs = [(Student(make_body()), Task()) for _ in range(2)]
    expected = [t.gradient(s, SGD(s.parameters(), LR), engine) for s, t in pairs]
    before = [state(student, task) for student, task in pairs]

    def work(pair: tuple[Student, Task]) -> list[Any]:
        student, task = pair
        optimizer = SGD(student.parameters(), LR)
        return [task.gradient(student, optimizer, engine) for _ in range(8)]

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, pairs))
    for gradients, gradient in zip(results, expected, strict=True):
        for actual in gradients:  # by other kernels, while the other thread needs them
            assert relative_error(actual, gradient) < 1e-12
    assert_same([state(student, task) for student, task in pairs], before)


def test_settings_of_attention_survive_overlapping_passes() -> None:
    before = settings()
    with torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        changed = settings()
        student, task = Student(Attention()), Task()
        task.gradient(student, SGD(student.parameters(), LR))
        assert settings() == changed
    assert settings() == before
