"""A masker that replaces a modality by its mean."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import batches_of, check_floating, check_that
from msdlosses._fitted import FittedBuffers
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

    def __init__(self, *entries: str, keep: Keep | None = None) -> None:
        super().__init__(entries, keep)

    def fit(self, batches: object) -> MeanFill:
        """Compute the mean over an iterable of batches, or of pairs (batch, target)."""
        totals: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for batch in batches_of("batches", batches):
            for name, entry in self.targets(batch):
                check_floating(name, entry)
                totals[name] = totals.get(name, 0) + entry.detach().double().sum(0)
                counts[name] = counts.get(name, 0) + len(entry)
        check_that("samples to fit MeanFill to", counts and min(counts.values()))
        self.set_fitted({name: (totals[name] / counts[name]).float() for name in totals})
        return self

    def absent(self, name: str, entry: Tensor) -> Tensor:
        return broadcast(name, self.get_fitted(name), entry)
