"""Blank samples and their features, for late fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from msdlosses._batches import Batch, Kind, Layout, map_entries


def blank_sample(batch: Batch, layout: Layout) -> tuple[Batch, Layout]:
    """Return the first sample of a batch, which is to be masked, and its layout."""
    size = min(layout.size, 1)

    def first(name: str, values: Sequence[Any]) -> Any:
        value = values[0]
        kind = layout.kind(name, value)
        if kind is Kind.TENSOR:
            return value.narrow(layout.axis(name), 0, size)
        return value[:size] if kind is Kind.LIST else value

    sample: Batch = map_entries(first, [batch], whole=layout.rules.shared)
    # `dataclasses.replace` breaks the graphs of torch 2.6.
    return sample, Layout(layout.rules, size, layout.device)


def split_features(features: Batch, size: int) -> tuple[Batch, Batch]:
    """Return the features of the samples, and those of the blank sample, once for each."""

    def apply(function: Callable[[Tensor], Tensor]) -> Batch:
        def apply_to(_: str, values: Sequence[Any]) -> Any:
            batched = isinstance(values[0], Tensor) and values[0].ndim > 0
            return function(values[0]) if batched else values[0]

        applied: Batch = map_entries(apply_to, [features])
        return applied

    present = apply(lambda x: x[:size])
    return present, apply(lambda x: x[size:].expand(size, *x.shape[1:]))
