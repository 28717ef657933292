"""The next step of an optimizer, and its derivative with respect to the gradients.

The step is elementwise and small: the model has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from msdlosses.meta._lookahead import Gradients, no_path
from msdlosses.meta._optimizers import batch_key, next_parameters
from msdlosses.meta._sharding import Group, local, sum_of_shards

LARGEST_CHUNK = 2**18
"""How many entries several small tensors have together at most."""

Pullback = Callable[[Gradients], Gradients]
"""Maps gradients with respect to the new parameters to ones with respect to the gradients."""


def look_ahead_step(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    gradients: Gradients,
    max_norm: float | None,
    shards: Group | None = None,
) -> tuple[list[Tensor], Pullback]:
    """Return the parameters after the next step, and its vector-Jacobian product."""
    leaves = [None if g is None else g.detach().requires_grad_() for g in gradients]
    used = as_optimizer_uses(optimizer, parameters, max_norm, shards)(leaves)
    updated = [local(p.detach()) for p in parameters]
    for group, chunk in _chunks(optimizer, parameters, used):
        members = [parameters[i] for i in chunk]
        # The algebra would keep several times the size of its gradients for the backward pass.
        results = checkpoint(
            partial(next_parameters, optimizer, group, members),
            *(used[i] for i in chunk),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for i, result in zip(chunk, results, strict=True):
            updated[i] = result
    return [p.detach() for p in updated], partial(_pull_back, updated, leaves)


def _chunks(
    optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Gradients
) -> Iterator[tuple[Mapping[str, Any], list[int]]]:
    """Yield the parameters that take a step together, as their places, with their group."""
    first = 0
    for group in optimizer.param_groups:
        alike: dict[Hashable, list[int]] = {}
        for i in range(first, first + len(group["params"])):
            if gradients[i] is not None:
                alike.setdefault(batch_key(optimizer, parameters[i]), []).append(i)
        for places in alike.values():
            yield from ((group, chunk) for chunk in _split(places, parameters))
        first += len(group["params"])


def _split(places: Sequence[int], parameters: Sequence[Tensor]) -> Iterator[list[int]]:
    """Split parameters into chunks whose temporaries are small, or have only one parameter."""
    chunk: list[int] = []
    size = 0
    for i in places:
        if chunk and size + parameters[i].numel() > LARGEST_CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(i)
        size += parameters[i].numel()
    if chunk:
        yield chunk


def _pull_back(updated: Sequence[Tensor], leaves: Gradients, cotangents: Gradients) -> Gradients:
    pairs = [
        (p, cotangent)
        for p, cotangent in zip(updated, cotangents, strict=True)
        if cotangent is not None and p.requires_grad
    ]
    if not pairs:
        raise no_path()
    outputs, weights = zip(*pairs, strict=True)
    wanted = [g for g in leaves if g is not None]
    gradients = iter(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))
    return [None if g is None else next(gradients) for g in leaves]


def as_optimizer_uses(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    max_norm: float | None,
    shards: Group | None = None,
) -> Callable[[Gradients], Gradients]:
    """Return a function that clips gradients, and negates those to maximize, as a step does."""
    groups = optimizer.param_groups
    signs = {id(p): -1 if group.get("maximize") else 1 for group in groups for p in group["params"]}

    def use(gradients: Gradients) -> Gradients:
        pairs = zip(parameters, gradients, strict=True)
        clipped = _clip([g if id(p) in signs else None for p, g in pairs], max_norm, shards)
        pairs = zip(parameters, clipped, strict=True)
        return [g if g is None or signs[id(p)] > 0 else -g for p, g in pairs]

    return use


def _clip(gradients: Gradients, max_norm: float | None, shards: Group | None) -> Gradients:
    """Clip as `torch.nn.utils.clip_grad_norm_`, but differentiably."""
    if max_norm is None or all(g is None for g in gradients):
        return gradients
    norms = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    if shards is not None:
        total = sum_of_shards(total.square(), shards).sqrt()
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    return [None if g is None else g * factor.to(g.device) for g in gradients]
