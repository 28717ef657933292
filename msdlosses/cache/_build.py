"""Building a cache: finding the samples that are missing, in one process or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from msdlosses._batches import move
from msdlosses._checks import batches_of, check_holds, check_that, expected
from msdlosses.cache._records import Record, as_rows
from msdlosses.cache._shards import Array, Layout
from msdlosses.cache._writing import BuildFolder, ShardWriter
from msdlosses.masking import ModalityViews

INDEX = "index"


class Builder:
    """Runs the teacher on samples that are not on disk yet, and appends its logits."""

    def __init__(
        self, files: BuildFolder, processes: Processes, index: str, top_k: int | None
    ) -> None:
        self.writer = ShardWriter(files.folder, processes.rank)
        self.mark = files.mark
        self.several = processes.size > 1
        self.index = index
        self.top_k = top_k
        self.indexed: bool | None = None
        self.layout: Layout | None = None
        self.seen = 0
        self.claimed, self.earlier = RowSet(), RowSet()
        for part in files.parts():
            self.earlier.add(part.rows)

    def run(self, teacher: Any, views: ModalityViews, loader: Any, device: Any) -> None:
        """Write each batch while a GPU already works on the next one."""
        previous: Record | None = None
        with closing(self.writer):
            for batch in batches_of("loader", loader):
                record = self._record(teacher, views, batch, device)
                self._write(previous)
                previous = record
            self._write(previous)

    def _record(
        self, teacher: Any, views: ModalityViews, batch: Mapping[str, Any], device: Any
    ) -> Record | None:
        inputs = {name: entry for name, entry in batch.items() if name != self.index}
        size, _ = views.size_and_device(inputs)
        rows = as_rows(self._rows(batch, size), size)
        missing = self._claim(rows)
        if not missing.any():
            return None
        logits = views(teacher, inputs if device is None else move(inputs, device))
        return Record(rows, missing, logits, self.top_k)

    def _rows(self, batch: Mapping[str, Any], size: int) -> Any:
        """Return the batch's index, or the positions of its samples in the loader."""
        indexed = self.index in batch
        # An explicit `index` must exist in the batch; with several loaders there is no common
        # order to fall back on.
        if self.index != INDEX or self.several:
            check_holds("batch", batch, self.index)
        same = self.indexed in (None, indexed)
        check_that(f"`{self.index}` in all batches or in none", same, "some", error=KeyError)
        self.indexed = indexed
        self.seen += size
        return batch[self.index] if indexed else torch.arange(self.seen - size, self.seen)

    def _claim(self, rows: Array) -> Array:
        """Return which of the rows an earlier build has not written."""
        if rows.size and rows.min() < 0:
            raise IndexError(expected("`index` of 0 or more", rows.min()))
        values, counts = np.unique(rows, return_counts=True)
        repeated = values[(counts > 1) | self.claimed.contains(values)]
        again = f"{', '.join(map(str, repeated[:1]))} again"
        check_that("each `index` once", not len(repeated), again)
        self.claimed.add(rows)
        return ~self.earlier.contains(rows)

    def _write(self, record: Record | None) -> None:
        if record is None:
            return
        if self.layout is None:
            self.layout = Layout(self.mark, record.shapes, self.top_k)
        for view, shape in record.shapes.items():
            before = self.layout.shapes[view]
            check_that(f"logits of shape {before} for `{view}`, as before", shape == before, shape)
        self.writer.append(self.layout, record.rows, record.wait(self.layout.dtype))


class RowSet:
    """A set of rows."""

    def __init__(self) -> None:
        self.flags = np.zeros(0, dtype=bool)

    def add(self, rows: Array) -> None:
        """Add rows."""
        end = int(rows.max(initial=-1)) + 1
        if end > len(self.flags):
            self.flags = np.concatenate([self.flags, np.zeros(2 * end, dtype=bool)])
        self.flags[rows] = True

    def contains(self, rows: Array) -> Array:
        """Return which of the rows are in the set."""
        within = rows < len(self.flags)
        if not within.any():
            return within
        contained: Array = within & self.flags[np.where(within, rows, 0)]
        return contained


@dataclass(frozen=True)
class Processes:
    """The processes that build a cache together."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier(group=self.group)


@contextmanager
def all_processes(group: Any) -> Iterator[Processes]:
    """Join the processes of a group, by default all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        yield Processes()
        return
    # Gloo, because the first process to finish may wait for longer than NCCL allows.
    own = group or distributed.new_group(timeout=timedelta(days=365), backend="gloo")
    try:
        yield Processes(distributed.get_rank(own), distributed.get_world_size(own), own)
    finally:
        if own is not group:
            distributed.destroy_process_group(own)


@contextmanager
def evaluation_mode(teacher: Any) -> Iterator[None]:
    """Put the teacher's modules into evaluation mode, and back into their own modes."""
    modules = list(teacher.modules()) if isinstance(teacher, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
