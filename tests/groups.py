"""Process groups of tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed
from torch.multiprocessing import spawn


def in_two(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work` of its rank gives in each of two processes, in float64."""
    spawn(_process, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _process(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    # Of no size, so that it stays: two processes that end at once may both remove the file.
    store = distributed.FileStore(f"{folder}/store")
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    with float64():
        torch.save(work(rank), f"{folder}/{rank}.pt")
    leave()


@contextmanager
def float64() -> Iterator[None]:
    """The type that tensors are made in."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def leave() -> NoReturn:
    """End a process of a group, and all is well.

    A model in DistributedDataParallel keeps the threads of Gloo's group, and one of them that is
    still at work when Python ends aborts it.
    """
    distributed.destroy_process_group()
    os._exit(0)
