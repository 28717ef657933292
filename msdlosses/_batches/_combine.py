"""Several batches as one: stacked, or chosen sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from msdlosses._batches._containers import Batch, map_entries
from msdlosses._batches._layout import Kind, Layout
from msdlosses._batches._own import copy_entry, same
from msdlosses._checks import describe, expected

SEPARATELY = "Set views_per_forward=1 to run the views separately."
SHARE = "Name it in `shared` if it is not per sample."
DECLARE = "If each row is a sample, name it in `batch_axis`; otherwise pad to one tensor."


def stack(batches: Sequence[Batch], layout: Layout) -> Batch:
    """Concatenate views of one batch along the batch axis."""

    def concatenate(name: str, values: Sequence[Any]) -> Any:
        first, kind = values[0], layout.kind(name, values[0])
        if kind in (Kind.TENSOR, Kind.RAGGED):
            axis = 0 if kind is Kind.RAGGED else layout.axis(name)
            _check_alike(name, values, axis)
            return torch.cat(tuple(values), axis)
        if kind is Kind.LIST:
            return type(first)(chain.from_iterable(copy_entry(name, value) for value in values))
        _check_constant(name, values)
        return first if kind is Kind.SHARED else copy_entry(name, first)

    stacked: Batch = map_entries(concatenate, batches, whole=layout.rules.shared, advice=SEPARATELY)
    return stacked


def select(mask: Tensor, chosen: Batch, other: Batch, layout: Layout) -> Batch:
    """Return one batch for the samples in the mask and the other batch for the rest."""

    def where(name: str, values: Sequence[Any]) -> Any:
        outside, inside = values
        if same(outside, inside):
            return outside
        kind = layout.kind(name, outside)
        _check_choice(name, kind, outside, inside, layout)
        if kind is Kind.LIST:
            # Python objects cannot be chosen on a GPU.
            chosen = zip(mask.tolist(), inside, outside, strict=True)
            return type(outside)([new if take else old for take, new, old in chosen])
        return torch.where(_rows(mask, name, outside, kind, layout), inside, outside)

    mixed: Batch = map_entries(where, [other, chosen], whole=layout.rules.shared)
    return mixed


def _rows(mask: Tensor, name: str, entry: Tensor, kind: Kind, layout: Layout) -> Tensor:
    """Return the mask of samples as a mask that broadcasts over an entry."""
    axis = 0
    if kind is Kind.RAGGED:
        counts = layout.counts_of(name).to(mask.device)
        mask = mask.repeat_interleave(counts, output_size=len(entry))
    else:
        axis = layout.axis(name) % entry.ndim
    return mask.reshape((-1,) + (1,) * (entry.ndim - axis - 1))


def _alike(one: Any, other: Any, skipped: int | None = None) -> bool:
    """Return whether two tensors are of one dtype and shape, except along an axis."""
    if not isinstance(other, Tensor) or one.dtype != other.dtype or one.ndim != other.ndim:
        return False
    sizes = enumerate(zip(one.shape, other.shape, strict=True))
    return all(a == b for axis, (a, b) in sizes if axis != skipped)


def _fits(kind: Kind, outside: Any, inside: Any) -> bool:
    """Return whether a masked entry can replace an entry for some of the samples only."""
    if kind is Kind.LIST:
        return type(inside) is type(outside) and len(inside) == len(outside)
    return kind in (Kind.TENSOR, Kind.RAGGED) and _alike(outside, inside)


def _check_alike(name: str, values: Sequence[Any], axis: int) -> None:
    for value in values[1:]:
        if not _alike(values[0], value, axis % values[0].ndim):
            what = f"`{name}` of one dtype and one shape per sample in all views"
            both = f"{describe(values[0])} and {describe(value)}"
            raise ValueError(expected(what, both, SEPARATELY))


def _check_constant(name: str, values: Sequence[Any]) -> None:
    if getattr(values[0], "ndim", 0) and not isinstance(values[0], Tensor):
        what, advice = f"`{name}` to be a tensor or a list of one value per sample", SHARE
        raise TypeError(expected(what, describe(values[0]), advice))
    if not all(same(values[0], value) for value in values):
        raise ValueError(expected(f"one `{name}` in all views", "different values", SEPARATELY))


def _check_choice(name: str, kind: Kind, outside: Any, inside: Any, layout: Layout) -> None:
    if name in layout.ambiguous:
        what = f"one reading of `{name.rpartition('.')[0]}`"
        got = f"a list of {layout.size} tensors with {layout.size} rows for {layout.size} samples"
        raise ValueError(expected(what, got, DECLARE))
    if not _fits(kind, outside, inside):
        what = f"`{name}` to be per sample, and of the same type and shape when masked"
        raise ValueError(expected(what, f"{describe(outside)} and {describe(inside)}"))
