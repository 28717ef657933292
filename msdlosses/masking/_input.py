"""The input of one view while maskers work on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from msdlosses._batches import Batch, Layout, drop_entries, own_entries, restore_constants
from msdlosses._checks import check_that, describe
from msdlosses.masking._masker import EntryMasker

Masker = Callable[[Batch], Batch]


class ViewInput:
    """The input of one view, and which of its entries no other view reads.

    A masker or a model may write to its input in place, so both get entries of their own. Each
    entry is copied only once: `owned` holds those that need no other copy.
    """

    def __init__(self, batch: Batch, layout: Layout) -> None:
        self.batch = batch
        self.layout = layout
        self.owned: dict[str, Any] = {}

    def mask(self, modality: str, masker: nn.Module) -> None:
        """Mask a modality."""
        if isinstance(masker, EntryMasker):  # returns new tensors and writes to none
            self.batch = masker(self.batch)
            self.owned.update(masker.targets(self.batch))
            return
        original = self.batch
        copied = own_entries(original, self.layout, self.owned)
        masked = masker(copied)
        what, is_mapping = f"a mapping from the masker of `{modality}`", isinstance(masked, Mapping)
        check_that(what, is_mapping, describe(masked), error=TypeError)
        # The masker may have put entries into the containers that it got.
        self.batch = restore_constants(masked, self.owned, original, self.layout)

    def drop(self, names: Collection[str]) -> None:
        """Leave out entries."""
        self.batch = drop_entries(self.batch, names)

    def own(self) -> Batch:
        """Return the input for a model that no other view shares."""
        return own_entries(self.batch, self.layout, self.owned)
