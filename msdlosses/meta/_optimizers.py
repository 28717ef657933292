"""Optimizer steps as differentiable functions. Only this module imports `higher`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a docstring of `higher` has an invalid escape sequence
    import higher
    from higher.optim import DifferentiableAdadelta, DifferentiableAdagrad

State = MutableMapping[str, Any]
"""The state of an optimizer for one parameter."""

monkeypatch: Callable[..., Any] = higher.monkeypatch


# `higher` has no types, so mypy cannot check the base class.
class _Elementwise(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """An optimizer whose step is a function of one parameter."""

    update: Callable[[Tensor, Tensor, State, Mapping[str, Any]], Tensor]

    def _update(self, grouped_grads: Sequence[Sequence[Tensor | None]], **kwargs: Any) -> None:
        update = type(self).update
        for index, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
            for i, grad in enumerate(grads):
                if grad is not None:
                    p, state = group["params"][i], self.state[index][i]
                    group["params"][i] = update(p, grad, state, group)


def _sgd(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.SGD`, with half as many temporaries as `higher` needs."""
    grad, momentum = _decayed(p, grad, group), group["momentum"]
    if momentum:
        last = state.get("momentum_buffer")
        fresh = grad * (1 - group["dampening"]) if group["dampening"] else grad
        average = grad if last is None else torch.add(fresh, last, alpha=momentum)
        state["momentum_buffer"] = average
        grad = torch.add(grad, average, alpha=momentum) if group["nesterov"] else average
    return _moved(p, grad, group["lr"])


def _adam(
    p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any], *, decoupled: bool = False
) -> Tensor:
    """Step as `torch.optim.Adam`, where each group decides how its weights decay."""
    if group.get("decoupled_weight_decay", decoupled):
        return _adam_step(p * (1 - group["lr"] * group["weight_decay"]), grad, state, group)
    return _adam_step(p, _decayed(p, grad, group), state, group)


def _adam_step(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as algorithm 1 of Kingma and Ba 2015, arXiv 1412.6980.

    As in `torch.optim`, eps is added to the bias-corrected root.
    """
    beta1, beta2 = group["betas"]
    step = _next_count(state)
    mean = torch.lerp(_zeros(state, "exp_avg", grad), grad, 1 - beta1)
    square = _square(state, "exp_avg_sq", grad, beta2)
    state.update(step=step, exp_avg=mean, exp_avg_sq=square)
    if group["amsgrad"]:
        square = torch.maximum(_zeros(state, "max_exp_avg_sq", grad), square)
        state["max_exp_avg_sq"] = square
    unbiased = (1 - beta2**step) ** 0.5
    change = mean / (_root(square) + group["eps"] * unbiased)
    return _moved(p, change, group["lr"] * unbiased / (1 - beta1**step))


def _rmsprop(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.RMSprop`. `higher` returns NaN where a centered square is 0."""
    alpha = group["alpha"]
    grad = _decayed(p, grad, group)
    square = state["square_avg"] = _square(state, "square_avg", grad, alpha)
    if group["centered"]:
        mean = state["grad_avg"] = torch.lerp(_zeros(state, "grad_avg", grad), grad, 1 - alpha)
        square = square - mean * mean
    change = grad / (_root(square) + group["eps"])
    if group["momentum"]:
        last = _zeros(state, "momentum_buffer", grad)
        change = state["momentum_buffer"] = torch.add(change, last, alpha=group["momentum"])
    return _moved(p, change, group["lr"])


def _decayed(p: Tensor, grad: Tensor, group: Mapping[str, Any]) -> Tensor:
    return torch.add(grad, p, alpha=group["weight_decay"]) if group["weight_decay"] else grad


def _moved(p: Tensor, change: Tensor, rate: Any) -> Tensor:
    """Subtract the change. The learning rate may be a tensor, which `alpha` cannot be."""
    return p - rate * change if isinstance(rate, Tensor) else torch.add(p, change, alpha=-rate)


def _square(state: State, name: str, grad: Tensor, beta: float) -> Tensor:
    return torch.addcmul(beta * _zeros(state, name, grad), grad, grad, value=1 - beta)


def _root(square: Tensor) -> Tensor:
    """Return the square root, with derivative 0 where a gradient, and so its square, is 0.

    Optimizers divide a gradient by this root, so only the derivative of the numerator remains.
    """
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()


def _next_count(state: State) -> Any:
    """Return the number of this step: a float, or a tensor if the optimizer counts on a GPU."""
    step = state.get("step", 0.0)
    on_cpu = not isinstance(step, Tensor) or step.device.type == "cpu"
    return float(step) + 1 if on_cpu else step + 1


def _zeros(state: State, name: str, like: Tensor) -> Tensor:
    """Return an entry of the state, which does not exist before the first step."""
    value: Tensor = state[name] if name in state else torch.zeros_like(like)
    return value


class _DifferentiableSGD(_Elementwise):
    update = staticmethod(_sgd)


class _DifferentiableAdam(_Elementwise):
    update = staticmethod(_adam)


class _DifferentiableAdamW(_Elementwise):
    update = staticmethod(partial(_adam, decoupled=True))


class _DifferentiableRMSprop(_Elementwise):
    update = staticmethod(_rmsprop)


DIFFERENTIABLE: dict[type[Optimizer], type[Any]] = {
    SGD: _DifferentiableSGD,
    Adam: _DifferentiableAdam,
    AdamW: _DifferentiableAdamW,
    RMSprop: _DifferentiableRMSprop,
    Adagrad: DifferentiableAdagrad,
    Adadelta: DifferentiableAdadelta,
}


def differentiable(optimizer: Optimizer) -> type[Any]:
    """Return the class of differentiable optimizers that takes the same steps."""
    return DIFFERENTIABLE[type(optimizer)]


def next_parameter(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor
) -> Tensor:
    """Return a parameter after the next step, as a function of its gradient only."""
    if parameter.is_complex():
        return _next_complex_parameter(optimizer, group, parameter, gradient)
    state = _copy_state(optimizer, parameter)
    return _next_value(optimizer, group, parameter, gradient, state)


def _next_complex_parameter(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor
) -> Tensor:
    """Step as `torch.optim`, which treats the real and the imaginary part as two parameters."""
    state = {name: _parts(value) for name, value in _copy_state(optimizer, parameter).items()}
    parts = _next_value(optimizer, group, _parts(parameter), _parts(gradient), state)
    return torch.view_as_complex(parts)


def _parts(value: Any) -> Any:
    is_complex = isinstance(value, Tensor) and value.is_complex()
    return torch.view_as_real(value) if is_complex else value


def _next_value(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    gradient: Tensor,
    state: State,
) -> Tensor:
    key = 0  # stands for the parameter, which `higher` would copy
    stub = SimpleNamespace(param_groups=[{**group, "params": [key]}], state={})
    twin = differentiable(optimizer)(stub, [key])
    twin.state[0][0].update(state)
    (updated,) = twin.step(
        torch.zeros((), requires_grad=True),  # a loss, whose gradient the callback replaces
        params=[parameter.detach()],
        grad_callback=lambda _: [gradient],
    )
    return cast(Tensor, updated)


def _copy_state(optimizer: Optimizer, parameter: Tensor) -> State:
    """Return what the optimizer keeps for a parameter. `higher` changes counters: copy them."""
    entries = optimizer.state.get(parameter, {}).items()
    state = {name: value for name, value in entries if value is not None}
    return {k: v.clone() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in state.items()}
