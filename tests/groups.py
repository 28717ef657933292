"""Run a function in a process group of two."""

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
    """Call `work(rank)` in each of two processes, in float64, and return both results."""
    spawn(_process, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _process(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    # Without a world size the store keeps its file, which both processes might delete at once.
    store = distributed.FileStore(f"{folder}/store")
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    with float64():
        torch.save(work(rank), f"{folder}/{rank}.pt")
    leave()


@contextmanager
def float64() -> Iterator[None]:
    """Make float64 the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def leave() -> NoReturn:
    """End this process of a group with success.

    DistributedDataParallel keeps Gloo threads alive. A thread that still runs when Python exits
    would abort the process, so this skips Python's cleanup.
    """
    distributed.destroy_process_group()
    os._exit(0)
