"""Sums over the processes of a distributed job."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed

from msdlosses._torch import apply_function


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all processes, if there are several. Gradients are summed as well."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    if values.requires_grad:
        return cast(Tensor, apply_function(_AllReduceSum, values))
    summed = values.clone()
    distributed.all_reduce(summed)
    return summed


class _AllReduceSum(torch.autograd.Function):
    """Stand in for `torch.distributed.nn.functional.all_reduce`, which torch deprecates."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce_sum(values.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)
