"""What the processes of a `DistributedDataParallel` student agree on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed

Group = distributed.ProcessGroup
Gradients = Sequence[Tensor | None]


def average(gradients: Gradients, like: Sequence[Tensor], group: Group | None) -> Gradients:
    """The mean over the processes; None only for what no process has a gradient of."""
    if group is None:
        return gradients
    used = torch.tensor([g is not None for g in gradients], dtype=torch.uint8).to(like[0].device)
    distributed.all_reduce(used, distributed.ReduceOp.MAX, group)
    sums = [
        (torch.zeros_like(p) if g is None else g.detach().clone()) if anywhere else None
        for p, g, anywhere in zip(like, gradients, used.tolist(), strict=True)
    ]
    _wait([distributed.all_reduce(s, group=group, async_op=True) for s in sums if s is not None])
    return [None if s is None else s.div_(group.size()) for s in sums]


def broadcast(tensors: Iterable[Tensor], group: Group | None) -> None:
    """Give every process the tensors of the first."""
    if group is None:
        return
    first = distributed.get_global_rank(group, 0)
    with torch.no_grad():
        _wait([distributed.broadcast(t, first, group, async_op=True) for t in tensors])


def _wait(works: Iterable[distributed.Work | None]) -> None:
    for work in works:
        if work is not None:
            work.wait()
