"""Exact counts of a call of a loss: operators, memory, checks, and compiled graphs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
from laws import LOSSES, LossCase
from schemes import every_weighting, make_weighting
from torch import Tensor
from torch.testing import assert_close

from benchmarks.counters import Call, count_operators, largest_tensor, saved_bytes
from msdlosses import DynamicWeightAverage, KDLoss, MSDLoss, _checks

VIEWS = ("full", "image", "text")
SAMPLES, CLASSES = 16, 512
VIEW_SIZE = SAMPLES * CLASSES
LOGITS_BYTES = 4 * len(VIEWS) * VIEW_SIZE


def make_logits(samples: int = SAMPLES) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the logits of a student, which require gradients, and of a teacher."""
    student = {view: torch.randn(samples, CLASSES, requires_grad=True) for view in VIEWS}
    return student, {view: torch.randn(samples, CLASSES) for view in VIEWS}


def make_msd(scheme: str) -> MSDLoss:
    return MSDLoss(KDLoss(2.0), make_weighting(scheme, VIEWS, CLASSES))


def forward(msd: MSDLoss) -> Call:
    student, teacher = make_logits()
    target = torch.randint(CLASSES, (SAMPLES,))
    return lambda: msd(student, teacher, target)


def forward_backward(msd: MSDLoss, valid: Tensor | None = None) -> Call:
    student, teacher = make_logits()
    target = torch.randint(CLASSES, (SAMPLES,))
    inputs = [*student.values(), *msd.parameters()]
    return lambda: torch.autograd.grad(msd(student, teacher, target, valid=valid), inputs)


# Operators. On a GPU each is at least one kernel launch, which dominates if classes are few.

BUDGETS = {
    "none": (45, 77),
    "fixed": (48, 81),
    "saliency": (83, 148),
    "population saliency": (49, 82),
    "teacher loss": (67, 133),
    "weight net": (197, 281),
    "plain weight net": (172, 258),
    "uncertainty": (60, 93),
    "dynamic": (70, 104),
}
"""Operators without and with a mask, forward and backward: the present number plus 10 %."""


@every_weighting
def test_number_of_operators(scheme: str) -> None:
    msd = make_msd(scheme)
    unmasked, masked = BUDGETS[scheme]
    assert count_operators(forward_backward(msd)) <= unmasked
    valid = torch.ones(SAMPLES, len(VIEWS), dtype=torch.bool)
    assert count_operators(forward_backward(msd, valid)) <= masked


def test_number_of_operators_of_small_views() -> None:
    """They are stacked."""
    msd, (student, teacher) = MSDLoss(KDLoss(2.0)), make_logits(2)
    assert (
        count_operators(lambda: torch.autograd.grad(msd(student, teacher), [*student.values()]))
        <= 26
    )


# Memory


CLOSED = ("kd, temperature", "reverse kd", "jsd", "multi-label kd", "logit mse")
"""The losses that compute their gradient in closed form."""


def closed_forms() -> pytest.MarkDecorator:
    cases = [case for case in LOSSES if case.name.startswith(CLOSED)]
    return pytest.mark.parametrize("case", cases, ids=str)


@closed_forms()
def test_one_tensor_per_view_is_saved(case: LossCase) -> None:
    """It is the derivative by the student's logits."""
    assert saved_bytes(forward(MSDLoss(case.make()))) <= 1.01 * LOGITS_BYTES


@pytest.mark.parametrize("average", ["sample", "batch"])
def test_one_tensor_per_view_is_saved_of_small_views(average: str) -> None:
    student, teacher = (
        {view: logits[:2].detach() for view, logits in side.items()} for side in make_logits()
    )
    for logits in student.values():
        logits.requires_grad_()
    msd = MSDLoss(KDLoss(2.0), average=average)
    assert saved_bytes(lambda: msd(student, teacher)) <= 1.01 * LOGITS_BYTES * 2 / SAMPLES


@every_weighting
def test_weighting_saves_no_tensor_as_large_as_logits(scheme: str) -> None:
    unweighted = saved_bytes(forward(MSDLoss(KDLoss(2.0))))
    layers = 0.1 if scheme.endswith("weight net") else 0
    assert saved_bytes(forward(make_msd(scheme))) <= unweighted + (0.01 + layers) * LOGITS_BYTES


@every_weighting
def test_largest_tensor_has_the_size_of_one_view(scheme: str) -> None:
    assert largest_tensor(forward_backward(make_msd(scheme))) <= VIEW_SIZE


@pytest.mark.parametrize("case", [case for case in LOSSES if case.name != "rkd"], ids=str)
def test_largest_tensor_of_a_criterion_has_the_size_of_one_view(case: LossCase) -> None:
    assert largest_tensor(forward_backward(MSDLoss(case.make()))) <= VIEW_SIZE


# Checks of arguments


class Check(NamedTuple):
    """A call of a function that checks arguments."""

    arguments: list[object]
    nested: bool
    """Whether another function of `_checks` called it."""


@contextmanager
def record_checks() -> Iterator[list[Check]]:
    """Record the calls of functions of `_checks` whose names start with `check`."""
    checks: list[Check] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and is_in_checks(frame) and frame.f_code.co_name.startswith("check"):
            checks.append(Check(list(frame.f_locals.values()), is_in_checks(frame.f_back)))

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield checks
    finally:
        sys.setprofile(previous)


def is_in_checks(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename == _checks.__file__


@every_weighting
def test_number_of_checks(scheme: str) -> None:
    call = forward(MSDLoss(KDLoss(), make_weighting(scheme, VIEWS, CLASSES)))
    with record_checks() as checks:
        call()
    assert 0 < len(checks) <= 2 * len(VIEWS) + 12


def test_logits_are_checked_once() -> None:
    student, teacher = make_logits()
    with record_checks() as checks:
        MSDLoss(KDLoss())(student, teacher)
    outer = [check for check in checks if not check.nested]
    for logits in (*student.values(), *teacher.values()):
        assert sum(any(x is logits for x in check.arguments) for check in outer) == 1


# Compiled graphs


class CountingBackend:
    """A backend of `torch.compile` that counts the graphs."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.count += 1
        return graph.forward


@every_weighting
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_epochs_and_smaller_last_batches_do_not_recompile(scheme: str, masked: bool) -> None:
    """One graph is compiled for the first batch, and one for batches of any size."""
    torch.compiler.reset()
    backend = CountingBackend()
    msd = make_msd(scheme)
    compiled = torch.compile(msd, fullgraph=True, backend=backend)
    for _ in range(3):
        for samples in (8, 8, 5):
            student, teacher = make_logits(samples)
            valid = torch.rand(samples, 3) < 0.7 if masked else None
            target = torch.randint(CLASSES, (samples,))
            compiled(student, teacher, target, valid=valid).backward()
        if isinstance(msd.weighting, DynamicWeightAverage):
            msd.weighting.step()
    assert backend.count <= 2


def test_temperature_schedule_does_not_recompile() -> None:
    torch.compiler.reset()
    backend = CountingBackend()
    kd = KDLoss(torch.tensor(1.0))
    compiled = torch.compile(kd, fullgraph=True, backend=backend)
    for temperature in (1.0, 2.0, 4.0):
        kd.temperature = temperature
        student, teacher = torch.randn(2, 8, 5)
        assert_close(compiled(student, teacher), KDLoss(temperature)(student, teacher))
    assert backend.count == 1
