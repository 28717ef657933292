"""A masker that replaces a modality by its mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from msdlosses._batches import Batch
from msdlosses._checks import (
    batches_of,
    check_callable,
    check_floating,
    check_mask,
    check_that,
    expected,
)
from msdlosses._fitted import FittedBuffers
from msdlosses._masks import zero_invalid
from msdlosses.masking._fill import broadcast
from msdlosses.masking._masker import EntryMasker, Keep


class MeanFill(EntryMasker, FittedBuffers):
    """Replace a modality by its mean over the data. Call `fit` before training.

    Args:
        entries: the modality's entries.
        keep: positions to keep, as in `Fill`.

    Shape:
        Takes a batch and returns a batch of the same shapes.

    Raises:
        TypeError: an entry is not floating-point.
        RuntimeError: `fit` was not called.
        KeyError: the batch has no such entry.

    Example:
        >>> mask = MeanFill("pixels").fit([{"pixels": torch.tensor([[1.0], [3.0]])}])
        >>> mask({"pixels": torch.zeros(1, 1)})
        {'pixels': tensor([[2.]])}

    Source: [ours].
    """

    needs_axis_0 = True

    def __init__(self, *entries: str, keep: Keep | None = None) -> None:
        super().__init__(entries, keep)

    def fit(self, batches: object, present: Callable[[Batch], Tensor] | None = None) -> MeanFill:
        """Compute the mean over an iterable of batches, or of pairs (batch, target).

        Args:
            batches: the data.
            present: a function ``batch -> (N,)`` of bool: which samples have the modality. The
                others do not count. By default all samples count.
        """
        check_callable("present", present, optional=True)
        totals: dict[str, Tensor] = {}
        counts: dict[str, Any] = {}
        for batch in batches_of("batches", batches):
            for name, entry in self.targets(batch):
                check_floating(name, entry)
                total, count = _total(entry.detach().double(), present and present(batch))
                check_same_shape(name, total, totals.get(name, total))
                totals[name] = totals.get(name, 0) + total
                counts[name] = counts.get(name, 0) + count
        check_that("samples to fit MeanFill to", counts and min(counts.values()))
        self.set_fitted({name: (totals[name] / counts[name]).float() for name in totals})
        return self

    def absent(self, name: str, entry: Tensor) -> Tensor:
        return broadcast(name, self.get_fitted(name), entry)


def _total(entry: Tensor, present: Tensor | None) -> tuple[Tensor, Any]:
    """Return the sum over the samples that are present, and how many there are."""
    if present is None:
        return entry.sum(0), len(entry)
    check_mask("present(batch)", present, entry.new_empty(len(entry), 1))
    return zero_invalid(entry, present).sum(0), present.sum()


def check_same_shape(name: str, total: Tensor, other: Tensor) -> None:
    """Check that the entry has one shape per sample in all batches."""
    if total.shape != other.shape:
        what = f"`{name}` of one shape per sample in all batches, such as padded to one length"
        raise ValueError(expected(what, f"{tuple(other.shape)} and {tuple(total.shape)}"))
