"""The optimizers whose steps are known as differentiable functions.

Only this module imports `higher`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from msdlosses._checks import check_callable, check_that, describe
from msdlosses.meta import _algebra
from msdlosses.meta._algebra import State
from msdlosses.meta._sharding import local

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a docstring of `higher` has an invalid escape sequence
    import higher

Step = Callable[[Tensor, Tensor, State, Mapping[str, Any]], Tensor]
"""Maps a parameter, its gradient, its state, and the options of its group to the new parameter."""

monkeypatch: Callable[..., Any] = higher.monkeypatch

ELEMENTWISE: dict[type[Optimizer], Step] = {
    SGD: _algebra.sgd,
    Adam: _algebra.adam,
    AdamW: partial(_algebra.adam, decoupled=True),
    RMSprop: _algebra.rmsprop,
    Adagrad: _algebra.adagrad,
    Adadelta: _algebra.adadelta,
    NAdam: _algebra.nadam,
    RAdam: _algebra.radam,
    Adamax: _algebra.adamax,
}
"""Steps that treat all entries alike, so that tensors may be joined."""

STEPS: dict[type[Optimizer], Step] = dict(ELEMENTWISE)

if hasattr(torch.optim, "Muon"):  # pragma: no branch - since torch 2.9
    STEPS[torch.optim.Muon] = _algebra.muon


def register_optimizer(optimizer_class: type[Optimizer], step: Step) -> None:
    """Let the meta-learner differentiate the steps of another optimizer.

    Args:
        optimizer_class: the class of the optimizer, not including its subclasses.
        step: the step of one parameter, in differentiable operations:
            ``(parameter, gradient, state, group) -> new parameter``. It must equal the step of the
            optimizer. ``state`` is a copy of what the optimizer keeps for the parameter, which is
            empty before the first step. The engine ``"higher"`` also needs its new values, without
            changes of tensors in place. ``group`` has the options. If ``group["maximize"]`` is
            true, ``gradient`` is negated already.

    Shape:
        ``step`` gets a parameter and a gradient of one shape, and returns a tensor of that shape.

    Raises:
        TypeError: `optimizer_class` is not a class of optimizers, or `step` is not callable.

    Example:
        >>> class SignSGD(torch.optim.Optimizer):
        ...     def __init__(self, params, lr):
        ...         super().__init__(params, {"lr": lr})
        ...     @torch.no_grad()
        ...     def step(self):
        ...         for group in self.param_groups:
        ...             for p in group["params"]:
        ...                 if p.grad is not None:
        ...                     p -= group["lr"] * torch.tanh(p.grad)
        >>> def step(parameter, gradient, state, group):
        ...     return parameter - group["lr"] * torch.tanh(gradient)
        >>> register_optimizer(SignSGD, step)

    Source: [ours].
    """
    is_class = isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)
    what = "`optimizer_class` to be a class of optimizers"
    check_that(what, is_class, describe(optimizer_class), error=TypeError)
    check_callable("step", step)
    STEPS[optimizer_class] = step


# `higher` has no types, so mypy cannot check the base class.
class _Unrolled(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """An optimizer whose step is a function of one parameter."""

    take_step: Step

    def _update(self, grouped_grads: Sequence[Sequence[Tensor | None]], **kwargs: Any) -> None:
        step = type(self).take_step
        for index, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
            for i, grad in enumerate(grads):
                if grad is not None:
                    p, state = group["params"][i], self.state[index][i]
                    group["params"][i] = step(p, grad, state, group)


def differentiable(optimizer: Optimizer) -> type[Any]:
    """Return a class of differentiable optimizers, for `higher`, that takes the same steps."""
    step = STEPS[type(optimizer)]
    return type("Unrolled", (_Unrolled,), {"take_step": staticmethod(step)})


def batch_key(optimizer: Optimizer, parameter: Tensor) -> Hashable:
    """Return a value that is equal for parameters of one group that may take a step together.

    Their steps treat all entries alike, and their counters are equal.
    """
    state = optimizer.state.get(parameter, {})
    scalars = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.ndim == 0}
    together = type(optimizer) in ELEMENTWISE and not parameter.is_complex()
    if not together or any(v.device.type != "cpu" for v in scalars.values()):
        return id(parameter)
    counters = [(k, float(v)) for k, v in scalars.items()]
    others = [k for k, v in state.items() if k not in scalars and v is not None]
    return (parameter.dtype, parameter.device, *counters, *others)


def next_parameters(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    *gradients: Tensor,
) -> tuple[Tensor, ...]:
    """Return parameters of one group after the next step, as functions of their gradients only.

    Several parameters are joined into one, because the time of small tensors is that of calls.
    """
    states = [_copy_state(optimizer, p) for p in parameters]
    parameters = [local(p.detach()) for p in parameters]
    if len(parameters) == 1:
        return (_next_parameter(optimizer, group, parameters[0], gradients[0], states[0]),)
    state = {name: _joined([state[name] for state in states]) for name in states[0]}
    flat = _next_parameter(optimizer, group, _joined(parameters), _joined(gradients), state)
    sizes = [p.numel() for p in parameters]
    parts = torch.split(flat, sizes)
    return tuple(part.view(p.shape) for part, p in zip(parts, parameters, strict=True))


def _next_parameter(
    optimizer: Optimizer, group: Mapping[str, Any], p: Tensor, gradient: Tensor, state: State
) -> Tensor:
    """Step as `torch.optim`, which treats the real and the imaginary part as two parameters."""
    step = STEPS[type(optimizer)]
    if not p.is_complex():
        return step(p, gradient, state, group)
    parts = {name: _parts(value) for name, value in state.items()}
    return torch.view_as_complex(step(_parts(p), _parts(gradient), parts, group))


def _parts(value: Any) -> Any:
    is_complex = isinstance(value, Tensor) and value.is_complex()
    return torch.view_as_real(value) if is_complex else value


def _joined(values: Sequence[Any]) -> Any:
    """Concatenate tensors of entries. Of equal counters, return the first."""
    if not isinstance(values[0], Tensor) or values[0].ndim == 0:
        return values[0]
    return torch.cat([value.reshape(-1) for value in values])


def _copy_state(optimizer: Optimizer, parameter: Tensor) -> State:
    """Return what the optimizer keeps for a parameter. A registered step may change it."""
    entries = optimizer.state.get(parameter, {}).items()
    state = {name: local(value) for name, value in entries if value is not None}
    return {k: v.clone() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in state.items()}
