"""Inner products and norms over several tensors, upcast where sums could overflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from msdlosses._formulas.logits import upcast
from msdlosses.meta._sharding import Group, sum_of_shards

Pairs = Sequence[tuple[Tensor, Tensor]]


def dot(pairs: Pairs, shards: Group | None = None) -> Tensor:
    """Return the real part of the inner product, over all shards if tensors are sharded."""
    own = _on_one_device(_dot(upcast(left), upcast(right)) for left, right in pairs).sum()
    return sum_of_shards(own, shards)


def norm(tensors: Iterable[Tensor], shards: Group | None = None) -> Tensor:
    """Return the norm of all entries together, over all shards if tensors are sharded."""
    norms = _on_one_device(torch.linalg.vector_norm(upcast(t)) for t in tensors)
    total: Tensor = torch.linalg.vector_norm(norms)
    return total if shards is None else sum_of_shards(total.square(), shards).sqrt()


def coarsest(dtypes: Iterable[torch.dtype]) -> float:
    """Return the largest relative rounding error of floating-point types."""
    floating = (d for d in dtypes if d.is_floating_point or d.is_complex)
    return max((torch.finfo(dtype).eps for dtype in floating), default=0.0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(left.flatten(), right.flatten())
    return product.real


def _on_one_device(values: Iterable[Tensor]) -> Tensor:
    first, *others = list(values) or [torch.zeros(())]
    return torch.stack([first, *(value.to(first) for value in others)])
