"""Whether samples can be numbered in the order of their loader."""

from __future__ import annotations

from typing import Any

from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
)

from msdlosses._checks import check_that, describe
from msdlosses.cache._reach import reachable


def check_order(loader: Any) -> None:
    """Check that no sampler of a loader may change the order of the samples.

    The DataLoader may be inside other objects, such as a progress bar.
    """
    for value in reachable(loader, lambda value: isinstance(value, Dataset | DataLoader | Sampler)):
        sampler = _sampler_of(value)
        what = "`loader` to keep the order of the samples, or batches with an index"
        advice = "Add the index of each sample to the batch, or do not shuffle."
        check_that(what, _keeps_order(sampler), describe(sampler), advice)


def _sampler_of(value: Any) -> Any:
    """Return what chooses the samples of a loader; None for other objects."""
    if isinstance(value, DataLoader):
        streams = isinstance(value.dataset, IterableDataset)
        return None if streams else _innermost(value)
    return _innermost(value) if isinstance(value, Sampler) else None


def _innermost(sampler: Any) -> Any:
    """Return the sampler of single samples that a loader or samplers of batches use."""
    for name in ("batch_sampler", "sampler"):
        inner = getattr(sampler, name, None)
        if inner is not None:  # not its truth, which is its length
            return _innermost(inner)
    return sampler


def _keeps_order(sampler: Any) -> bool:
    if isinstance(sampler, DistributedSampler):
        return not sampler.shuffle
    return sampler is None or isinstance(sampler, SequentialSampler | range)
