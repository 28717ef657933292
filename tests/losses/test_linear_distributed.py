"""`LinearLogits` whose head belongs to a replicated or a sharded model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import float64, in_two
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from msdlosses import KDLoss, LinearLogits

SAMPLES, CLASSES = 8, 6


class Decoder(nn.Module):
    """A body and a head that its forward pass does not apply."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.body(inputs).tanh()
        return hidden


class Distillation(nn.Module):
    """The student and its loss, in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Decoder()
        self.loss = KDLoss(2.0, chunk_size=3)

    def forward(self, inputs: Tensor, teacher: Tensor) -> Tensor:
        head = self.student.lm_head
        return self.loss(LinearLogits(self.student(inputs), head.weight, head.bias), teacher)


def gradients(rank: int | None, wrapper: str) -> dict[str, Tensor]:
    """Return the gradients of all samples; a process with a rank computes half of them."""
    torch.manual_seed(0)
    distillation = Distillation()
    inputs, teacher = torch.randn(SAMPLES, 4), torch.randn(SAMPLES, CLASSES)
    model: Any = distillation
    if rank is not None:
        inputs, teacher = (x.chunk(2)[rank] for x in (inputs, teacher))
        if wrapper == "DistributedDataParallel":
            model = DistributedDataParallel(distillation)
        else:
            mesh = init_device_mesh("cpu", (2,))
            # The head is a group of its own: in the forward pass around it, it is sharded.
            fully_shard(distillation.student.lm_head, mesh=mesh)
            fully_shard(distillation, mesh=mesh)
    model(inputs, teacher).backward()
    found = {name: p.grad for name, p in distillation.named_parameters()}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}


on_cpu = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard needs a GPU in this torch"
)


@pytest.mark.parametrize(
    "wrapper", ["DistributedDataParallel", pytest.param("fully_shard", marks=on_cpu)]
)
def test_gradients_of_two_processes_equal_those_of_one(wrapper: str, tmp_path: Path) -> None:
    found = in_two(partial(gradients, wrapper=wrapper), tmp_path)
    with float64():
        expected = gradients(None, wrapper)
    for result in found:
        assert_close(result, expected)
