"""Settings of all tests: one thread, a fixed seed, and the number of hypothesis examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import distributed

settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=600)
settings.load_profile("default")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Start every test from the same random state, whichever tests ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def single_process_group(tmp_path: Path) -> Iterator[None]:
    """Initialize `torch.distributed` with this process only."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()
