"""Optimisers as differentiable functions. The only module that imports `higher`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an invalid escape sequence in a docstring of `higher`
    import higher
    from higher.optim import DifferentiableAdadelta, DifferentiableAdagrad

Gradients = Sequence[Tensor | None]
State = MutableMapping[str, Any]

monkeypatch: Callable[..., Any] = higher.monkeypatch


# `higher` has no types, so mypy can't check what is inherited.
class _Elementwise(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """An optimiser that is written as a function of one parameter."""

    update: Callable[[Tensor, Tensor, State, Mapping[str, Any]], Tensor]

    def _update(self, grouped_grads: Sequence[Gradients], **kwargs: Any) -> None:
        update = type(self).update
        for index, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
            for i, grad in enumerate(grads):
                if grad is not None:
                    p, state = group["params"][i], self.state[index][i]
                    group["params"][i] = update(p, grad, state, group)


def _sgd(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """As `higher` has it, with half as many tensors of a parameter's size."""
    grad, momentum = _decayed(p, grad, group), group["momentum"]
    if momentum:
        last = state.get("momentum_buffer")
        fresh = grad * (1 - group["dampening"]) if group["dampening"] else grad
        average = grad if last is None else torch.add(fresh, last, alpha=momentum)
        state["momentum_buffer"] = average
        grad = torch.add(grad, average, alpha=momentum) if group["nesterov"] else average
    return _moved(p, grad, group["lr"])


def _adam(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    return _adam_step(p, _decayed(p, grad, group), state, group)


def _adamw(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    return _adam_step(p * (1 - group["lr"] * group["weight_decay"]), grad, state, group)


def _adam_step(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Algorithm 1 of Kingma and Ba 2015, arXiv 1412.6980, its eps beside the corrected root."""
    beta1, beta2 = group["betas"]
    step = _count(state)
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
    """`torch.optim.RMSprop`: that of `higher` gives NaN where a centred square is 0."""
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
    """A rate may be a tensor, which `alpha` can't be."""
    return p - rate * change if isinstance(rate, Tensor) else torch.add(p, change, alpha=-rate)


def _square(state: State, name: str, grad: Tensor, beta: float) -> Tensor:
    return torch.addcmul(beta * _zeros(state, name, grad), grad, grad, value=1 - beta)


def _root(square: Tensor) -> Tensor:
    """The root, with derivative 0 where a gradient, and with it its square, is exactly 0.

    An optimiser divides a gradient by this root, so that at 0 the numerator alone counts.
    """
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()


def _count(state: State) -> Any:
    """The number of this step: a float, or a tensor where the optimiser counts on a GPU."""
    step = state.get("step", 0.0)
    counted_here = not isinstance(step, Tensor) or step.device.type == "cpu"
    return float(step) + 1 if counted_here else step + 1


def _zeros(state: State, name: str, like: Tensor) -> Tensor:
    """An entry of the state, which a first step does not find."""
    found: Tensor = state[name] if name in state else torch.zeros_like(like)
    return found


class _DifferentiableSGD(_Elementwise):
    update = staticmethod(_sgd)


class _DifferentiableAdam(_Elementwise):
    update = staticmethod(_adam)


class _DifferentiableAdamW(_Elementwise):
    update = staticmethod(_adamw)


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
    """The class of differentiable optimisers that takes the same steps."""
    if any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        return _DifferentiableAdamW  # an option of torch.optim.Adam
    return DIFFERENTIABLE[type(optimizer)]


def next_parameter(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor
) -> Tensor:
    """Where the next step moves a parameter, as a function of its gradient alone."""
    key = 0  # stands for the parameter, which `higher` would copy
    stub = SimpleNamespace(param_groups=[{**group, "params": [key]}], state={})
    steps = differentiable(optimizer)(stub, [key])
    steps.state[0][0].update(_state(optimizer, parameter))
    (moved,) = steps.step(
        torch.zeros((), requires_grad=True),  # a loss; what `higher` finds by it is replaced
        params=[parameter.detach()],
        grad_callback=lambda _: [gradient],
    )
    return cast(Tensor, moved)


def _state(optimizer: Optimizer, parameter: Tensor) -> State:
    """What the optimiser knows of a parameter. Counters are copied: `higher` moves them."""
    entries = optimizer.state.get(parameter, {}).items()
    known = {name: value for name, value in entries if value is not None}
    return {k: v.clone() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in known.items()}
