"""Students whose parameters are sharded over processes by `fully_shard`.

Optimizers step on each shard by itself. Only norms and inner products join the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from msdlosses._checks import check_that
from msdlosses._reduce import all_reduce_sum
from msdlosses.meta._interrupts import restoring

Group = distributed.ProcessGroup


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Any:
    """Return the shard of this process, or a tensor itself that is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard_group(optimizer: Optimizer) -> Group | None:
    """Return the processes that hold the shards, or None if there are none."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    meshes = {p.device_mesh for p in trained if is_sharded(p)}
    if not meshes:
        return None
    one = len(meshes) == 1 and all(is_sharded(p) for p in trained)
    what = "all parameters of `optimizer` sharded over one mesh of one dimension"
    check_that(what, one and next(iter(meshes)).ndim == 1, "others")
    group: Group = meshes.pop().get_group()
    return group


@contextmanager
def temporary_shards(
    model: nn.Module, parameters: Sequence[Tensor], values: Sequence[Tensor]
) -> Iterator[None]:
    """Write other values into the shards of parameters, and restore them afterwards."""
    original = [local(p.detach()).clone() for p in parameters]
    with restoring(partial(_write, model, parameters, original)):
        _write(model, parameters, values)
        yield


@torch.no_grad()
def _write(model: nn.Module, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for module in model.modules():
        if hasattr(module, "reshard"):
            cast(Any, module).reshard()  # forget the gathered parameters
    for parameter, value in zip(parameters, values, strict=True):
        local(parameter.detach()).copy_(value)
    torch.clear_autocast_cache()


def gradients_by_backward(loss: Tensor, wanted: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
    """Return gradients that the hooks of `fully_shard` reduce, which need `backward`."""
    tensors = list({id(p): p for p in (*wanted, *others)}.values())
    saved = [p.grad for p in tensors]
    with restoring(partial(_set_gradients, tensors, saved)):
        _set_gradients(tensors, [None] * len(tensors))
        torch.autograd.backward(loss, retain_graph=True)
        return [p.grad for p in wanted]


def _set_gradients(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient


def sum_of_shards(value: Tensor, group: Group | None) -> Tensor:
    """Return a differentiable sum over the processes that hold shards."""
    return value if group is None else all_reduce_sum(value, group)
