"""Running a model with other parameter values, or with tangents on its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import RLock

import torch
from torch import Tensor, nn

from msdlosses._torch import (
    enter_forward_mode,
    leave_forward_mode,
    make_dual,
    preserve_version_counter,
    set_tangents_enabled,
)
from msdlosses.meta._interrupts import restoring
from msdlosses.meta._modes import ForwardMode

_one_at_a_time = RLock()
"""PyTorch has one level of forward mode for all threads."""


@contextmanager
def temporary_values(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Give parameters other values, wherever a module holds them.

    Their storage is replaced and not written to, so that a graph that saved it stays intact.
    """
    original = [p.data for p in parameters]
    with restoring(partial(_set_data, parameters, original)):
        _set_data(parameters, values)
        yield


def _set_data(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value
    torch.clear_autocast_cache()  # its keys are the parameters, not their values


@contextmanager
def tangents(
    parameters: Sequence[Tensor],
    directions: Sequence[Tensor | None],
    model: nn.Module,
    meta_parameters: Sequence[Tensor],
) -> Iterator[ForwardMode]:
    """Attach tangents to parameters, wherever a module holds them.

    The graph records only the meta-parameters, and none of the model's parameters. A tangent
    arrives by copying the parameter onto itself, in place and hidden from the version counter; its
    value stays the same.
    """
    pairs = [(p, d) for p, d in zip(parameters, directions, strict=True) if d is not None]
    with _one_at_a_time, ExitStack() as stack:
        for parameter, _ in pairs:
            stack.enter_context(preserve_version_counter(parameter))
        stack.enter_context(restoring(leave_forward_mode))
        enter_forward_mode()
        stack.enter_context(restoring(partial(set_tangents_enabled, True)))
        stack.enter_context(untracked(parameters, model, meta_parameters))
        for parameter, direction in pairs:
            dual: Tensor = make_dual(parameter.detach(), direction)
            parameter.copy_(dual)
        torch.clear_autocast_cache()
        yield stack.enter_context(ForwardMode())


@contextmanager
def untracked(
    parameters: Sequence[Tensor], model: nn.Module, meta_parameters: Sequence[Tensor]
) -> Iterator[None]:
    """Record the meta-parameters only in the graph, and none of the model's parameters."""
    student = {*parameters, *model.parameters()} - {*meta_parameters}
    recorded = [p for p in student if p.requires_grad]
    with restoring(partial(_set_requires_grad, recorded, True)):
        _set_requires_grad(recorded, False)
        yield


def _set_requires_grad(parameters: Iterable[Tensor], requires_grad: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(requires_grad)
