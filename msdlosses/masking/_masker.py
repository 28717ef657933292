"""The base class of maskers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from msdlosses._batches import Batch, batched_tensors, covering, lookup, replace
from msdlosses._checks import check_that, describe, expected
from msdlosses._masks import unsqueeze_right

Keep = int | Sequence[int] | Tensor | Callable[[Batch], Tensor]


class EntryMasker(nn.Module, ABC):
    """Base class of maskers that replace entries of a batch, except at positions to keep.

    A subclass implements `absent`.
    """

    depends_on_input = False  # whether samples without the modality differ from each other
    moves_samples = False  # whether a sample gets rows of another one
    needs_axis_0 = False  # whether samples have to be along the first axis

    def __init__(self, entries: Iterable[str], keep: Keep | None = None) -> None:
        super().__init__()
        self.entries = tuple(entries)
        check_that(f"{describe(self)} to name an entry", self.entries)
        if isinstance(keep, Tensor):
            self.register_buffer("keep", keep)
        else:
            self.keep = keep if keep is None or callable(keep) else _positions(keep)

    @abstractmethod
    def absent(self, name: str, entry: Tensor) -> Tensor:
        """Return a new tensor like `entry` that stands for an absent modality."""

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
        return covering(name, self.entries) or name

    def extra_repr(self) -> str:
        return ", ".join(self.entries)


def memory_format(entry: Tensor) -> torch.memory_format:
    """Return how to lay out a tensor like `entry`: with the channels last or not."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(entry.ndim)
    if last is None or entry.is_contiguous() or not entry.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def _keep_mask(keep: Any, batch: Batch, name: str, entry: Tensor) -> Tensor:
    """Return which positions of an entry to keep, as a mask that broadcasts over it."""
    mask = keep(batch) if callable(keep) else keep
    if isinstance(mask, tuple) and not callable(keep):
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


def _positions(keep: Any) -> tuple[int, ...]:
    """Return the positions to keep as integers, which NumPy's may stand for."""
    listed = tuple(keep) if isinstance(keep, Sequence) else (keep,)
    # A bool is an int as well, but not a position: a list of them would be a mask.
    integers = all(hasattr(p, "__index__") and not isinstance(p, bool) for p in listed)
    what = "`keep` to be positions, a boolean mask, or a function that returns one"
    check_that(what, integers, repr(keep), error=TypeError)
    return tuple(index(position) for position in listed)
