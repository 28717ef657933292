"""Loaders without an index: only those that keep the order of the samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cache_helpers import Recorder, make_views
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from msdlosses import TeacherCache


class Samples(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixels": torch.tensor([float(i), -1.0]), "tokens": torch.zeros(1)}


class Stream(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        samples = Samples()
        return (samples[i] for i in range(8))


class Reversed(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(7, -1, -1))


class Wrapper:
    """Holds a loader as progress bars and trainers do."""

    def __init__(self, loader: Any) -> None:
        self.hidden = SimpleNamespace(loader=[loader])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.hidden.loader[0])


class Slotted:
    __slots__ = ("loader",)

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def load(**options: Any) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Samples(), **{"batch_size": 3, **options})


def batches_of(sampler: Any) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Samples(), batch_sampler=BatchSampler(sampler, 3, drop_last=False))


RANDOM: dict[str, Callable[[], Any]] = {
    "shuffle": lambda: load(shuffle=True),
    "RandomSampler": lambda: load(sampler=RandomSampler(Samples())),
    "SubsetRandomSampler": lambda: load(sampler=SubsetRandomSampler(range(8))),
    "WeightedRandomSampler": lambda: load(sampler=WeightedRandomSampler([1.0] * 8, 8)),
    "DistributedSampler": lambda: load(sampler=DistributedSampler(Samples(), 1, 0)),
    "batches of a RandomSampler": lambda: batches_of(RandomSampler(Samples())),
    "own sampler": lambda: load(sampler=Reversed()),
    "iterator": lambda: iter(load(shuffle=True)),
    "generator": lambda: (batch for batch in load(shuffle=True)),
    "enumerate": lambda: (batch for _, batch in enumerate(load(shuffle=True))),
    "zip": lambda: zip(load(shuffle=True), range(9), strict=False),
    "map": lambda: map(dict, load(shuffle=True)),
    "islice": lambda: itertools.islice(load(shuffle=True), 2),
    "chain": lambda: itertools.chain(load(), load(shuffle=True)),
    "pairs": lambda: ((batch, 0) for batch in load(shuffle=True)),
}
IN_ORDER: dict[str, Callable[[], Any]] = {
    "SequentialSampler": lambda: load(sampler=SequentialSampler(Samples())),
    "range": lambda: load(sampler=range(8)),
    "DistributedSampler": lambda: load(sampler=DistributedSampler(Samples(), 1, 0, shuffle=False)),
    "batches of a SequentialSampler": lambda: batches_of(SequentialSampler(Samples())),
    "stream": lambda: DataLoader(Stream(), batch_size=3),
    "iterator": lambda: iter(load()),
    "generator": lambda: (batch for batch in load()),
    "enumerate": lambda: (batch for _, batch in enumerate(load())),
    "zip": lambda: zip(load(), range(9), strict=False),
    "list": lambda: [*load()],
}
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda x: x,
    "wrapped": Wrapper,
    "slots": Slotted,
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("name", RANDOM)
def test_rejects_loader_that_changes_the_order(name: str, wrap: str, tmp_path: Path) -> None:
    teacher = Recorder()
    with pytest.raises(ValueError, match="Expected `loader` to keep the order"):
        TeacherCache.build(teacher, make_views(), WRAPPERS[wrap](RANDOM[name]()), tmp_path)
    assert not teacher.pixels


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("name", IN_ORDER)
def test_numbers_samples_in_the_order_of_the_loader(name: str, wrap: str, tmp_path: Path) -> None:
    loader = WRAPPERS[wrap](IN_ORDER[name]())
    cache = TeacherCache.build(Recorder(), make_views(), loader, tmp_path)
    assert cache[:]["full"][:, 0].tolist() == [*range(8)]
