"""Steps of the optimizers of PyTorch, as differentiable functions of one parameter.

Each returns the new parameter, and updates the entries of the state without changing tensors in
place. Gradients to maximize are negated before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

State = MutableMapping[str, Any]
"""The state of an optimizer for one parameter."""


def sgd(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.SGD`, with half as many temporaries as `higher` needs."""
    grad, momentum = _decayed(p, grad, group), group["momentum"]
    if momentum:
        last = state.get("momentum_buffer")
        fresh = grad * (1 - group["dampening"]) if group["dampening"] else grad
        average = grad if last is None else torch.add(fresh, last, alpha=momentum)
        state["momentum_buffer"] = average
        grad = torch.add(grad, average, alpha=momentum) if group["nesterov"] else average
    return _moved(p, grad, group["lr"])


def adam(
    p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any], *, decoupled: bool = False
) -> Tensor:
    """Step as algorithm 1 of Kingma and Ba 2015, arXiv 1412.6980.

    As in `torch.optim`, eps is added to the bias-corrected root, and each group decides how its
    weights decay.
    """
    p, grad = _decayed_pair(p, grad, group, decoupled)
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


def rmsprop(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
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


def adagrad(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.Adagrad`."""
    grad, step = _decayed(p, grad, group), _next_count(state)
    total = torch.addcmul(_zeros(state, "sum", grad), grad, grad)
    state.update(step=step, sum=total)
    rate = group["lr"] / (1 + (step - 1) * group["lr_decay"])
    return _moved(p, grad / (_root(total) + group["eps"]), rate)


def adadelta(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.Adadelta`."""
    grad, rho, eps = _decayed(p, grad, group), group["rho"], group["eps"]
    square = state["square_avg"] = _square(state, "square_avg", grad, rho)
    last = (_zeros(state, "acc_delta", grad) + eps).sqrt()
    change = grad * last / (square + eps).sqrt()
    state["acc_delta"] = _square(state, "acc_delta", change, rho)
    return _moved(p, change, group["lr"])


def nadam(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.NAdam`."""
    p, grad = _decayed_pair(p, grad, group)
    beta1, beta2 = group["betas"]
    step, decay = _next_count(state), group["momentum_decay"]
    momentum, following = (beta1 * (1 - 0.5 * 0.96 ** (k * decay)) for k in (step, step + 1))
    product = _scalar(state, "mu_product", 1.0) * momentum
    mean = torch.lerp(_zeros(state, "exp_avg", grad), grad, 1 - beta1)
    square = _square(state, "exp_avg_sq", grad, beta2)
    state.update(step=step, mu_product=product, exp_avg=mean, exp_avg_sq=square)
    own, ahead = (1 - momentum) / (1 - product), following / (1 - product * following)
    unbiased = (1 - beta2**step) ** 0.5
    root = _root(square) / unbiased + group["eps"]
    return _moved(p, (own * grad + ahead * mean) / root, group["lr"])


def radam(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.RAdam`, whose first steps do not divide by the root."""
    p, grad = _decayed_pair(p, grad, group)
    beta1, beta2 = group["betas"]
    step = _next_count(state)
    mean = torch.lerp(_zeros(state, "exp_avg", grad), grad, 1 - beta1)
    square = _square(state, "exp_avg_sq", grad, beta2)
    state.update(step=step, exp_avg=mean, exp_avg_sq=square)
    unbiased = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / unbiased
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    adapted = (ratio * unbiased) ** 0.5 / (_root(square) + group["eps"])
    if isinstance(length, Tensor):  # pragma: no cover - counted on a GPU
        adapted = torch.where(length > 5, adapted, torch.ones_like(adapted))
    elif length <= 5:
        adapted = torch.ones_like(mean)
    return _moved(p, mean * adapted, group["lr"] / (1 - beta1**step))


def adamax(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.Adamax`."""
    grad, step = _decayed(p, grad, group), _next_count(state)
    beta1, beta2 = group["betas"]
    mean = torch.lerp(_zeros(state, "exp_avg", grad), grad, 1 - beta1)
    largest = torch.maximum(beta2 * _zeros(state, "exp_inf", grad), grad.abs() + group["eps"])
    state.update(step=step, exp_avg=mean, exp_inf=largest)
    return _moved(p, mean / largest, group["lr"] / (1 - beta1**step))


def muon(p: Tensor, grad: Tensor, state: State, group: Mapping[str, Any]) -> Tensor:
    """Step as `torch.optim.Muon`, but with its iteration in the precision of the gradient."""
    momentum = group["momentum"]
    mean = torch.lerp(_zeros(state, "momentum_buffer", grad), grad, 1 - momentum)
    state["momentum_buffer"] = mean
    change = _orthogonalized(torch.lerp(grad, mean, momentum) if group["nesterov"] else mean, group)
    p = p * (1 - group["lr"] * group["weight_decay"])
    return _moved(p, change, group["lr"] * _muon_ratio(group["adjust_lr_fn"], *p.shape))


def _orthogonalized(matrix: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return an almost orthogonal matrix by the Newton-Schulz iteration."""
    a, b, c = group["ns_coefficients"]
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if matrix.shape[0] > matrix.shape[1] else x
    return result


def _muon_ratio(kind: str | None, rows: int, columns: int) -> float:
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if kind in (None, "original") else 1.0


def _decayed(p: Tensor, grad: Tensor, group: Mapping[str, Any]) -> Tensor:
    return torch.add(grad, p, alpha=group["weight_decay"]) if group["weight_decay"] else grad


def _decayed_pair(
    p: Tensor, grad: Tensor, group: Mapping[str, Any], decoupled: bool = False
) -> tuple[Tensor, Tensor]:
    """Let the weights decay, either themselves or in their gradient."""
    if group.get("decoupled_weight_decay", decoupled):
        return p * (1 - group["lr"] * group["weight_decay"]), grad
    return p, _decayed(p, grad, group)


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
    return _scalar(state, "step", 0.0) + 1


def _scalar(state: State, name: str, start: float) -> Any:
    value = state.get(name, start)
    on_cpu = not isinstance(value, Tensor) or value.device.type == "cpu"
    return float(value) if on_cpu else value


def _zeros(state: State, name: str, like: Tensor) -> Tensor:
    """Return an entry of the state, which does not exist before the first step."""
    value: Tensor = state[name] if name in state else torch.zeros_like(like)
    return value
