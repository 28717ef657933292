"""Sums over the processes of a distributed job."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed

from msdlosses._torch import apply_function


def all_reduce_sum(values: Tensor, group: Any = None) -> Tensor:
    """Sum over the processes of a group, by default all. Gradients are summed as well."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    if values.requires_grad:
        return cast(Tensor, apply_function(_AllReduceSum, values, group))
    summed = values.clone()
    distributed.all_reduce(summed, group=group)
    return summed


class _AllReduceSum(torch.autograd.Function):
    """Stand in for `torch.distributed.nn.functional.all_reduce`, which torch deprecates."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return all_reduce_sum(values.detach(), group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(gradient, ctx.group), None
