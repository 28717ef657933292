"""Run the recipes for several processes; each trains on its own part of the batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from groups import float64, leave
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
ACCUMULATED = ("none", "uncertainty", "dynamic")
"""Schemes whose weights do not depend on how a batch is divided."""
ACCUMULATION = "Gradient accumulation"
"""The heading of the recipe for micro-batches that count differently many labels."""
MASKED_LOSS = "Samples that lack something"
"""The heading of the recipe for processes with different numbers of valid samples."""
LEFT_OUT = ("labels", "samples")
"""What is left out: labels of sequences, or views of samples and whole samples."""


def make_net() -> WeightNet:
    return WeightNet(VIEWS, num_classes=CLASSES, hidden=4, synchronize=True)


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.last = nn.Linear(5, 4), nn.Linear(8, CLASSES)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (N, C), or (N, L, C) for tokens of shape (N, L, 5)."""
        image = pixels if tokens.ndim == 2 else pixels.unsqueeze(1).expand(-1, tokens.shape[1], -1)
        return self.last(torch.cat([image, self.text(tokens)], -1).tanh())


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


def train_accumulated(scheme: str, size: int) -> dict[str, Tensor]:
    """Return the state after two steps of the recipe of accelerate, of four samples each."""
    import accelerate

    setting = make_setting(SCHEMES[scheme])
    options = {"gradient_accumulation_steps": 4 // size}
    with patch("accelerate.Accelerator", partial(accelerate.Accelerator, **options)):
        run(
            "distributed",
            "One module",
            "accelerate",
            **setting,
            loader=DataLoader(setting["data"], 1),
        )
    return state(setting)


def make_incomplete(left_out: str, scheme: str = "none") -> dict[str, Any]:
    """A setting in which micro-batches count differently many labels."""
    setting = make_setting(SCHEMES[scheme])
    data = []
    for i, (sample, target) in enumerate(setting["data"]):
        if left_out == "labels":
            labels = torch.randint(CLASSES, (3,))
            labels[(i * i) % 4 :] = -100  # samples 0, 2, 4 and 6 have none
            data.append(({**sample, "tokens": torch.randn(3, 5)}, labels))
        else:
            valid = torch.tensor([i % 3 > 0, i != 0, i % 3 > 0])
            target = target if i else torch.tensor(-100)
            data.append(({**sample, "valid": valid}, target))
    maskers = dict(setting["views"].maskers.items())
    criterion = KDLoss(2.0, ignore_index=-100)
    setting.update(data=data, views=ModalityViews(**maskers, ignore=("valid",)))
    average = "batch" if left_out == "labels" else "sample"
    setting["msd"] = MSDLoss(criterion, setting["msd"].weighting, average=average)
    return setting


def train_incomplete(left_out: str, samples: int = SAMPLES, size: int = 1) -> dict[str, Tensor]:
    """Return the state after the recipe for micro-batches of different counts."""
    setting = make_incomplete(left_out)
    loader = DataLoader(setting["data"][:samples], size)
    modules = (ACCUMULATION, (ACCUMULATION, 1))
    return state(run("distributed", "One module", *modules, **setting, loader=loader))


def train_masked(left_out: str, rank: int, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the losses of two steps that weigh processes by their counts, and the parameters.

    The loss has a penalty, and parameters of its own.
    """
    setting = make_incomplete(left_out, "uncertainty")
    batch, target = next(iter(DataLoader(setting["data"][rank::size], SAMPLES)))
    parameters = [*setting["student"].parameters(), *setting["msd"].parameters()]
    losses = []
    for _ in range(2):
        s, t = (setting["views"](setting[model], batch) for model in ("student", "teacher"))
        parts = setting["msd"].parts(s, t, target, valid=batch.get("valid"))
        loss = parts.loss
        if size > 1:
            loss = run("distributed", MASKED_LOSS, torch=torch)["over_all"](parts)
        gradients = torch.autograd.grad(loss, parameters)
        mean = [loss.detach(), *gradients]
        for tensor in mean if size > 1 else ():
            distributed.all_reduce(tensor)
        losses.append(mean[0] / size)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, mean[1:], strict=True):
                parameter -= 0.5 * gradient / size
    return losses, [parameter.detach() for parameter in parameters]


def main(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    with float64():
        results = {
            "wrapped": {(r, s): train_wrapped(r, s, rank, size) for r in WRAPPERS for s in SCHEMES},
            "meta": train_meta(rank, size),
            "accumulated": {scheme: train_accumulated(scheme, size) for scheme in ACCUMULATED},
            "incomplete": {left_out: train_incomplete(left_out) for left_out in LEFT_OUT},
            "masked": {left_out: train_masked(left_out, rank, size) for left_out in LEFT_OUT},
        }
    torch.save(results, Path(folder) / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
