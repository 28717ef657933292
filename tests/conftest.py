"""What all tests share: one thread, fixed seeds, and how many examples hypothesis tries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=600)
settings.load_profile("default")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Every test starts from the same random state, alone or among others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
