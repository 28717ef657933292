"""Run the recipes for several processes; each trains on its own part of the batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from groups import leave
from recipes import run
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from msdlosses import (
    DynamicWeightAverage,
    KDLoss,
    LearnedFill,
    ModalityViews,
    MSDLoss,
    UncertaintyWeighting,
    Weighting,
    WeightNet,
)

CLASSES, SAMPLES, VIEWS = 3, 8, ("full", "image", "text")
SCHEMES: dict[str, Callable[[], Weighting | None]] = {
    "none": lambda: None,
    "uncertainty": lambda: UncertaintyWeighting(VIEWS),
    "dynamic": lambda: DynamicWeightAverage(VIEWS),
    "net": lambda: make_net().requires_grad_(False),
}
WRAPPERS = ("DistributedDataParallel", "accelerate", "FSDP2")
MASKED_LOSS = "Samples that lack something"
"""The heading of the recipe for processes with different numbers of valid samples."""


def make_net() -> WeightNet:
    return WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.last = nn.Linear(5, 4), nn.Linear(8, CLASSES)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.last(torch.cat([pixels, self.text(tokens)], -1).tanh())


def make_setting(weighting: Callable[[], Weighting | None]) -> dict[str, Any]:
    """The names that the recipes use, with the same values in all processes."""
    torch.manual_seed(0)
    views = ModalityViews(image=LearnedFill(pixels=torch.randn(4)), text=LearnedFill(tokens=(5,)))
    teacher = Student()
    for parameter in teacher.parameters():
        parameter.data.mul_(3)
    return {
        "student": Student(),
        "teacher": teacher,
        "views": views,
        "msd": MSDLoss(KDLoss(2.0, learn_temperature=(1, 8)), weighting()),
        "data": [(make_sample(), torch.randint(CLASSES, ())) for _ in range(SAMPLES)],
        "torch": torch,
    }


def make_sample() -> dict[str, Tensor]:
    return {"pixels": torch.randn(4), "tokens": torch.randn(5)}


def state(namespace: dict[str, Any], names: Sequence[str] = ("student", "views", "msd")) -> Any:
    """All parameters and buffers, gathered if they are sharded."""
    tensors = nn.ModuleDict({name: namespace[name] for name in names}).state_dict()
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }


def train_wrapped(recipe: str, scheme: str, rank: int, size: int) -> dict[str, Tensor]:
    """Return the state after two batches of a recipe with a wrapper."""
    setting = make_setting(SCHEMES[scheme])
    # accelerate gives each process its part of the loader.
    part = setting["data"] if recipe == "accelerate" else setting["data"][rank::size]
    return state(run("distributed", "One module", recipe, **setting, loader=DataLoader(part, 2)))


def train_meta(rank: int, size: int) -> dict[str, Tensor]:
    """Return the state after two steps of the recipe with a `MetaLearner`."""
    setting = make_setting(make_net)
    held_out, target = next(iter(DataLoader(setting["data"], SAMPLES)))
    namespace = run(
        "distributed",
        "MetaLearner",
        **setting,
        F=nn.functional,
        DistributedDataParallel=nn.parallel.DistributedDataParallel if size > 1 else nn.Identity(),
        loader=DataLoader(setting["data"][rank::size], 4 // size),
        held_out={name: entry[rank::size] for name, entry in held_out.items()},
        held_out_target=target[rank::size],
    )
    return state(namespace)


def masked_gradients(rank: int, size: int) -> list[Tensor]:
    """Return the mean gradients when the first three samples have no valid view."""
    setting = make_setting(SCHEMES["none"])
    batch, target = next(iter(DataLoader(setting["data"], SAMPLES)))
    rows = slice(rank * SAMPLES // size, (rank + 1) * SAMPLES // size)
    valid = torch.arange(SAMPLES).unsqueeze(1).expand(-1, 3) > 2
    batch = {name: entry[rows] for name, entry in batch.items()}
    s, t = (setting["views"](setting[model], batch) for model in ("student", "teacher"))
    parts = setting["msd"].parts(s, t, target[rows], valid=valid[rows])
    loss = parts.loss
    if size > 1:
        loss = run("distributed", MASKED_LOSS, torch=torch)["over_all"](parts)
    gradients = torch.autograd.grad(loss, list(setting["student"].parameters()))
    for gradient in gradients if size > 1 else ():
        distributed.all_reduce(gradient)
    return [gradient / size for gradient in gradients]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    results = {
        "wrapped": {(r, s): train_wrapped(r, s, rank, size) for r in WRAPPERS for s in SCHEMES},
        "meta": train_meta(rank, size),
        "masked": masked_gradients(rank, size),
    }
    torch.save(results, Path(folder) / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
