"""Building a cache: running the teacher on the samples that are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from msdlosses._batches import drop_entries, move
from msdlosses._checks import batches_of, check_holds, check_that, expected
from msdlosses._views import modalities_of
from msdlosses.cache._folder import Progress
from msdlosses.cache._heads import HeadWriter
from msdlosses.cache._index import as_rows
from msdlosses.cache._layout import Array, Head, Layout
from msdlosses.cache._order import check_order
from msdlosses.cache._processes import Processes
from msdlosses.cache._records import Record
from msdlosses.cache._selection import Selection, select_positions, select_samples
from msdlosses.cache._writing import ShardWriter
from msdlosses.masking import ModalityViews

INDEX = "index"


@dataclass(frozen=True)
class Options:
    """What a user chooses for a build."""

    index: str
    top_k: int | None
    positions: Callable[[Any], Tensor] | None
    dtype: str
    device: Any


class Builder:
    """Runs the teacher on samples that are not on disk yet, and appends its logits."""

    def __init__(
        self, folder: Path, progress: Progress, processes: Processes, options: Options
    ) -> None:
        self.writer = ShardWriter(folder, processes.rank, progress.counts)
        self.heads = HeadWriter(folder)
        self.progress = progress
        self.layout = progress.layout
        self.several = processes.size > 1
        self.options = options
        self.indexed: bool | None = None
        self.seen = 0

    def run(self, teacher: Any, views: ModalityViews, loader: Any) -> None:
        """Write each batch while a GPU already works on the next one."""
        previous: Record | None = None
        with closing(self.writer):
            for batch in batches_of("loader", loader):
                self._check_index(batch, loader)
                record = self._record(teacher, views, batch)
                self._write(previous)
                previous = record
            self._write(previous)
        self.heads.check_unchanged()

    def _check_index(self, batch: Mapping[str, Any], loader: Any) -> None:
        """Check that there is an index, or an order of the samples to number them by."""
        name = self.options.index
        indexed = name in batch
        # An explicit `index` must exist in the batch; with several loaders there is no common
        # order to fall back on.
        if name != INDEX or self.several:
            check_holds("batch", batch, name)
        same = self.indexed in (None, indexed)
        check_that(f"`{name}` in all batches or in none", same, "some", error=KeyError)
        if self.indexed is None and not indexed:
            check_order(loader)
        self.indexed = indexed

    def _record(
        self, teacher: Any, views: ModalityViews, batch: Mapping[str, Any]
    ) -> Record | None:
        inputs = drop_entries(batch, (self.options.index,))
        size, _ = views.size_and_device(inputs)
        rows = self._rows(batch, size)
        missing = ~_contains(self.progress.rows, rows)
        if not missing.any():
            return None
        selection = self._selection(batch, rows, missing)
        device = self.options.device
        logits = views(teacher, inputs if device is None else move(inputs, device))
        values = {view: selection.take(view, x) for view, x in logits.items()}
        return Record(selection, values, self._layout_of(logits, values))

    def _selection(self, batch: Mapping[str, Any], rows: Array, missing: Array) -> Selection:
        positions = self.options.positions
        if positions is None:
            return select_samples(rows, missing)
        return select_positions(rows, missing, positions(batch))

    def _rows(self, batch: Mapping[str, Any], size: int) -> Array:
        """Return the batch's index, or the positions of its samples in the loader."""
        self.seen += size
        if not self.indexed:
            return np.arange(self.seen - size, self.seen)
        rows = as_rows(batch[self.options.index], size)
        if rows.size and rows.min() < 0:
            raise IndexError(expected("`index` of 0 or more", rows.min()))
        return rows

    def _layout_of(self, logits: Mapping[str, Any], values: Mapping[str, Tensor]) -> Layout:
        """Return the layout of the records, which is that of the first batch."""
        shapes = {view: tuple(x.shape[1:]) for view, x in values.items()}
        heads = self.heads.describe(logits)
        if self.layout is None:
            self.layout = self._new_layout(shapes, heads, modalities_of(logits))
        self._check_same(self.layout, shapes, heads)
        if self.writer.file is None:
            self.heads.write(self.layout)
        return self.layout

    def _new_layout(
        self, shapes: Mapping[str, Any], heads: Mapping[str, Head], modalities: tuple[str, ...]
    ) -> Layout:
        for view, shape in shapes.items():
            check_that(f"at least one class in `{view}`", 0 not in shape, shape)
        options = self.options
        what, advice = "logits for `top_k`", "Hidden states are smaller already."
        check_that(what, options.top_k is None or not heads, "LinearLogits", advice)
        by_position = options.positions is not None
        stored = (options.top_k, options.dtype, modalities, by_position, heads)
        return Layout(self.progress.mark, shapes, *stored)

    def _check_same(
        self, layout: Layout, shapes: Mapping[str, Any], heads: Mapping[str, Head]
    ) -> None:
        """Check that all batches have the shapes and heads of the first one."""
        advice = "Pad to one length."
        if self.progress.layout is not None:
            advice = "The earlier ones are on disk. Use another fingerprint to start again."
        for view, shape in shapes.items():
            before = layout.shapes[view]
            what = f"logits of shape {before} for `{view}`, as before"
            check_that(what, shape == before, shape, advice)
            what = f"the same head for `{view}` as before"
            check_that(what, heads.get(view) == layout.heads.get(view), "another one")

    def _write(self, record: Record | None) -> None:
        if record is not None:
            self.writer.append(record.layout, record.wait())


def _contains(rows: Array, values: Array) -> Array:
    """Return which values are among sorted rows."""
    at = np.searchsorted(rows, values).clip(max=max(len(rows) - 1, 0))
    return rows[at] == values if len(rows) else np.zeros(len(values), dtype=bool)
