"""The base class of maskers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msdlosses._batches import Batch, batched_tensors, lookup, replace
from msdlosses._checks import check_that, describe, expected
from msdlosses._masks import unsqueeze_right

Keep = int | Sequence[int] | Tensor | Callable[[Batch], Tensor]


class EntryMasker(nn.Module, ABC):
    """Base class of maskers that replace entries of a batch, except at positions to keep.

    A subclass implements `absent`.
    """

    def __init__(self, entries: Iterable[str], keep: Keep | None = None) -> None:
        super().__init__()
        self.entries = tuple(entries)
        check_that(f"{describe(self)} to name an entry", self.entries)
        keep = (keep,) if isinstance(keep, int) else keep
        _check_keep(keep)
        if isinstance(keep, Tensor):
            self.register_buffer("keep", keep)
        else:
            self.keep = keep

    @abstractmethod
    def absent(self, name: str, entry: Tensor) -> Tensor:
        """Return a tensor like `entry` that stands for an absent modality."""

    def forward(self, batch: Batch) -> Batch:
        """Return the batch with the entries replaced. The argument does not change."""
        masked = batch
        for name, entry in self.targets(batch):
            absent = self.absent(name, entry)
            if self.keep is not None:
                absent = torch.where(_keep_mask(self.keep, batch, name, entry), entry, absent)
            masked = replace(masked, name, absent)
        return masked

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def targets(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors to replace: the entries, or everything nested in them."""
        for name in self.entries:
            tensors = list(batched_tensors(lookup(batch, name), name))
            what, got = f"the masked entry `{name}` to be a batched tensor", lookup(batch, name)
            check_that(what, tensors, describe(got), error=TypeError)
            yield from tensors

    def entry_of(self, name: str) -> str:
        """Return the entry of this masker that a tensor is, or is nested in."""
        entries = [entry for entry in self.entries if f"{name}.".startswith(f"{entry}.")]
        return sorted(entries, key=len)[-1]  # Dynamo in torch 2.6 does not know max(key=...)

    def extra_repr(self) -> str:
        return ", ".join(self.entries)


def _keep_mask(keep: Any, batch: Batch, name: str, entry: Tensor) -> Tensor:
    """Return which positions of an entry to keep, as a mask that broadcasts over it."""
    mask = keep(batch) if callable(keep) else keep
    # A tuple of types, because Dynamo in torch 2.6 cannot trace a union.
    if isinstance(mask, (list, tuple)) and not callable(keep):
        mask = _mask_of_positions(mask, name, entry)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(expected("`keep` to be positions or a boolean mask", describe(mask)))
    rows = mask.unsqueeze(0) if mask.ndim == 1 else mask
    fits = 1 < rows.ndim <= entry.ndim and rows.shape[0] in (1, entry.shape[0])
    if not fits or rows.shape[1:] != entry.shape[1 : rows.ndim]:
        what = f"a `keep` mask of shape (L,) or (N, L) for `{name}` of shape {tuple(entry.shape)}"
        raise ValueError(expected(what, tuple(mask.shape)))
    return unsqueeze_right(rows, entry.ndim)


def _mask_of_positions(positions: Sequence[int], name: str, entry: Tensor) -> Tensor:
    length = entry.shape[1] if entry.ndim > 1 else 0
    mask = torch.zeros(length, dtype=torch.bool, device=entry.device)
    for position in positions:
        if not -length <= position < length:
            raise IndexError(expected(f"`keep` in {length} positions of `{name}`", position))
        mask[position] = True
    return mask


def _check_keep(keep: Any) -> None:
    if keep is None or callable(keep) or isinstance(keep, Tensor):
        return
    # A bool is an int as well, but not a position: a list of them would be a mask.
    integers = isinstance(keep, list | tuple) and all(type(position) is int for position in keep)
    what = "`keep` to be positions, a boolean mask, or a function that returns one"
    check_that(what, integers, repr(keep), error=TypeError)
