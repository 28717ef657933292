"""Which parts of a batch belong to which sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from msdlosses._batches._containers import Batch, is_list, items, join
from msdlosses._batches._names import covering, entries
from msdlosses._checks import any_violated, check_that, check_type, describe, expected

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Counts = Callable[[Batch], Tensor]


class Kind(Enum):
    """How an entry belongs to the samples of a batch."""

    TENSOR = "one sample per index of the batch axis"
    RAGGED = "several rows per sample"
    LIST = "one value per sample"
    CONSTANT = "the same for all samples"
    SHARED = "passed on untouched"


@dataclass(frozen=True)
class Rules:
    """What users say about the entries of all batches. A name covers what is nested in it."""

    ignore: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    ragged: Mapping[str, Counts] = field(default_factory=dict)
    batch_axis: Mapping[str, int] = field(default_factory=dict)

    def layout(self, batch: Any) -> Layout:
        """Return the layout of a batch, whose entries have to be of one length."""
        check_type("batch", batch, Mapping, "a mapping")
        skipped = self.ignore + self.shared
        tensors = {
            name: entry
            for name, entry in entries(batch, whole=skipped)
            if isinstance(entry, Tensor) and entry.ndim and not covering(name, skipped)
        }
        check_that("`batch` to hold a batched tensor", tensors)
        sizes = {n: _length(n, t, self.axis(n)) for n, t in tensors.items() if not self._counted(n)}
        ragged = {name: entry for name, entry in tensors.items() if self._counted(name)}
        counts = self._counts(batch, ragged)
        for name, count in counts.items():
            sizes[f"the counts of {name}"] = len(count)
        first = next(iter(sizes))
        for name, size in sizes.items():
            if size != sizes[first]:
                raise ValueError(_unequal(first, sizes[first], name, size))
        device = next(iter(tensors.values())).device
        return Layout(self, sizes[first], device, counts, self._ambiguous(batch, sizes[first]))

    def axis(self, name: str) -> int:
        """Return the batch axis of a tensor."""
        return self.batch_axis.get(covering(name, self.batch_axis) or "", 0)

    def _counted(self, name: str) -> bool:
        return covering(name, self.ragged) is not None

    def _counts(self, batch: Batch, ragged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counts: dict[str, Tensor] = {}
        for name, entry in ragged.items():
            key = covering(name, self.ragged) or name
            if key not in counts:
                counts[key] = torch.as_tensor(self.ragged[key](batch))
            check_counts(name, entry, counts[key])
        return counts

    def _ambiguous(self, batch: Batch, size: int) -> frozenset[str]:
        """Return the tensors in lists of N tensors with N rows, which could be one per sample."""
        declared = (*self.batch_axis, *self.ragged, *self.shared, *self.ignore)
        lists = [n for n, rows in _lists_of_tensors(batch) if rows == [size] * size and size > 1]
        names = (join(name, index) for name in lists for index in range(size))
        return frozenset(name for name in names if not covering(name, declared))


@dataclass(frozen=True)
class Layout:
    """Which parts of one batch belong to which sample."""

    rules: Rules
    size: int
    device: torch.device
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    ambiguous: frozenset[str] = frozenset()

    def kind(self, name: str, value: Any) -> Kind:
        """Return how an entry belongs to the samples."""
        if covering(name, self.rules.shared):
            return Kind.SHARED
        if isinstance(value, Tensor) and value.ndim:
            return self._kind_of_tensor(name, value)
        per_sample = is_list(value) and len(value) == self.size
        return Kind.LIST if per_sample else Kind.CONSTANT

    def axis(self, name: str) -> int:
        """Return the batch axis of a tensor."""
        return self.rules.axis(name)

    def counts_of(self, name: str) -> Tensor:
        """Return how many rows of a ragged tensor belong to each sample."""
        return self.counts[covering(name, self.counts) or name]

    def _kind_of_tensor(self, name: str, value: Tensor) -> Kind:
        if covering(name, self.counts):
            return Kind.RAGGED
        if not covering(name, self.rules.ignore):
            return Kind.TENSOR
        axis = self.axis(name)  # ignored entries may have any length
        fits = axis < value.ndim and value.shape[axis] == self.size
        return Kind.TENSOR if fits else Kind.CONSTANT


def check_counts(name: str, entry: Tensor, counts: Tensor) -> None:
    """Check for integers (N,) that add up to the length of a ragged entry."""
    if counts.ndim != 1 or counts.dtype not in INTEGERS:
        what = f"`ragged[{name!r}]` to return integers of shape (N,)"
        raise TypeError(expected(what, describe(counts)))
    if any_violated((counts >= 0).all() & (counts.sum() == len(entry))):
        what = f"the counts of `{name}` to be 0 or more and to add up to its {len(entry)} rows"
        raise ValueError(expected(what, counts.tolist()))


def _length(name: str, entry: Tensor, axis: int) -> int:
    if not -entry.ndim <= axis < entry.ndim:
        shape = tuple(entry.shape)
        raise IndexError(expected(f"`batch_axis[{name!r}]` to be an axis of {shape}", axis))
    return entry.shape[axis]


def _lists_of_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, list[int]]]:
    """Yield the names of lists of tensors, and the lengths of the tensors."""
    held = items(tree)
    if is_list(tree):
        tensors = [value for _, value in held if isinstance(value, Tensor) and value.ndim]
        if len(tensors) == len(tree):
            yield name, [len(tensor) for tensor in tensors]
    for key, value in held:
        yield from _lists_of_tensors(value, join(name, key))


def _unequal(one: str, length: int, other: str, other_length: int) -> str:
    got = f"{length} for `{one}` and {other_length} for `{other}`"
    advice = (
        "Name entries that are not batched in `shared` or `ignore`, those with several rows per "
        "sample in `ragged`, and other batch axes in `batch_axis`."
    )
    return expected("batched entries of equal length", got, advice)
