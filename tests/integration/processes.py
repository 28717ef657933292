"""What each of several processes does: the recipes, on its part of the batches."""

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
    "net": lambda: net().requires_grad_(False),
}
WRAPPERS = ("DistributedDataParallel", "accelerate", "FSDP2")


def net() -> WeightNet:
    return WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Linear(5, 4), nn.Linear(8, CLASSES)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.last(torch.cat([pixels, self.words(tokens)], -1).tanh())


def given(weighting: Callable[[], Weighting | None]) -> dict[str, Any]:
    """What a recipe takes for granted, alike in all processes."""
    torch.manual_seed(0)
    views = ModalityViews(image=LearnedFill(pixels=torch.randn(4)), text=LearnedFill(tokens=(5,)))
    teacher = Student()
    for parameter in teacher.parameters():
        parameter.data.mul_(3)
    return {
        "student": Student(),
        "teacher": teacher,
        "views": views,
        "msd": MSDLoss(KDLoss(2.0, learn_temperature=True), weighting()),
        "data": [(sample(), torch.randint(CLASSES, ())) for _ in range(SAMPLES)],
        "torch": torch,
    }


def sample() -> dict[str, Tensor]:
    return {"pixels": torch.randn(4), "tokens": torch.randn(5)}


def state(found: dict[str, Any], names: Sequence[str] = ("student", "views", "msd")) -> Any:
    """All that moves."""
    tensors = nn.ModuleDict({name: found[name] for name in names}).state_dict()
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }


def wrapped(recipe: str, scheme: str, rank: int, size: int) -> dict[str, Tensor]:
    """After two batches of the recipe."""
    setting = given(SCHEMES[scheme])
    # accelerate hands out batches by itself.
    part = setting["data"] if recipe == "accelerate" else setting["data"][rank::size]
    return state(run("distributed", "One module", recipe, **setting, loader=DataLoader(part, 2)))


def meta(rank: int, size: int) -> dict[str, Tensor]:
    """After two steps of the learner."""
    setting = given(net)
    held_out, target = next(iter(DataLoader(setting["data"], SAMPLES)))
    found = run(
        "distributed",
        "MetaLearner",
        **setting,
        F=nn.functional,
        DistributedDataParallel=nn.parallel.DistributedDataParallel if size > 1 else nn.Identity(),
        loader=DataLoader(setting["data"][rank::size], 4 // size),
        held_out={name: entry[rank::size] for name, entry in held_out.items()},
        held_out_target=target[rank::size],
    )
    return state(found)


def lacking(rank: int, size: int) -> list[Tensor]:
    """The mean gradient, of samples of which the first half lacks all."""
    setting = given(SCHEMES["none"])
    batch, target = next(iter(DataLoader(setting["data"], SAMPLES)))
    rows = slice(rank * SAMPLES // size, (rank + 1) * SAMPLES // size)
    valid = torch.arange(SAMPLES).unsqueeze(1).expand(-1, 3) > 2
    batch = {name: entry[rows] for name, entry in batch.items()}
    s, t = (setting["views"](setting[who], batch) for who in ("student", "teacher"))
    parts = setting["msd"].parts(s, t, target[rows], valid=valid[rows])
    loss = parts.loss
    if size > 1:
        loss = run("distributed", "Samples that lack something", torch=torch)["over_all"](parts)
    gradients = torch.autograd.grad(loss, list(setting["student"].parameters()))
    for gradient in gradients if size > 1 else ():
        distributed.all_reduce(gradient)
    return [gradient / size for gradient in gradients]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    me = distributed.get_rank(), distributed.get_world_size()
    found = {(r, s): wrapped(r, s, *me) for r in WRAPPERS for s in SCHEMES}
    others = {"meta": meta(*me), "lacking": lacking(*me)}
    torch.save({"wrapped": found, **others}, Path(folder) / f"{me[0]}.pt")
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
