"""Building a cache: which samples are missing, and the processes that share the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from msdlosses._checks import batches_of, listing
from msdlosses.cache._records import Record, check_rows
from msdlosses.cache._shards import Array, Build, Layout, Writer
from msdlosses.masking import ModalityViews
from msdlosses.masking._batches import move

INDEX = "index"


class Builder:
    """Gives the teacher what is not on disk yet, and appends what it says."""

    def __init__(self, files: Build, ranks: Ranks, index: str, top_k: int | None) -> None:
        self.writer = Writer(files.folder, ranks.number)
        self.mark = files.mark
        self.alone = ranks.size == 1
        self.index = index
        self.top_k = top_k
        self.indexed: bool | None = None
        self.layout: Layout | None = None
        self.seen = 0
        self.claimed, self.earlier = Rows(), Rows()
        for part in files.parts():
            self.earlier.add(part.rows)

    def run(self, teacher: Any, views: ModalityViews, loader: Any, device: Any) -> None:
        """One batch late: a GPU has the next to work on while the last is waited for."""
        before: Record | None = None
        with closing(self.writer):
            for batch in batches_of(loader):
                record = self._record(teacher, views, batch, device)
                self._write(before)
                before = record
            self._write(before)

    def _record(
        self, teacher: Any, views: ModalityViews, batch: Mapping[str, Any], device: Any
    ) -> Record | None:
        rest = {name: entry for name, entry in batch.items() if name != self.index}
        size, _ = views.size(rest)
        rows = check_rows(self._rows(batch, size), size)
        missing = self._claim(rows)
        if not missing.any():
            return None
        logits = views(teacher, rest if device is None else move(rest, device))
        return Record(rows, missing, logits, self.top_k)

    def _rows(self, batch: Mapping[str, Any], size: int) -> Any:
        """The batch's index, or where its samples come in the order of the loader."""
        indexed = self.index in batch
        # A name that was asked for is no option; several loaders have no one order.
        if not indexed and not (self.index == INDEX and self.alone):
            raise KeyError(f"Expected the batch to hold `{self.index}`, got {listing(batch)}.")
        if self.indexed not in (None, indexed):
            raise KeyError(
                f"Expected `{self.index}` in all batches or in none, got it in some: samples "
                "would be told apart in two ways."
            )
        self.indexed = indexed
        self.seen += size
        return batch[self.index] if indexed else torch.arange(self.seen - size, self.seen)

    def _claim(self, rows: Array) -> Array:
        """Which of the rows an earlier build has not written."""
        if rows.size and rows.min() < 0:
            raise IndexError(f"Expected `index` of 0 or more, got {rows.min()}.")
        values, counts = np.unique(rows, return_counts=True)
        twice = values[(counts > 1) | self.claimed.has(values)]
        if len(twice):
            raise ValueError(f"Expected each index once, got {twice[0]} again.")
        self.claimed.add(rows)
        return ~self.earlier.has(rows)

    def _write(self, record: Record | None) -> None:
        if record is None:
            return
        if self.layout is None:
            self.layout = Layout(self.mark, record.shapes, self.top_k)
        for view, shape in record.shapes.items():
            if shape != self.layout.shapes[view]:
                raise ValueError(
                    f"Expected each sample's logits of shape {self.layout.shapes[view]} for "
                    f"`{view}`, as before, got {shape}."
                )
        self.writer.append(self.layout, record.rows, record.arrived(self.layout.dtype))


class Rows:
    """A set of rows."""

    def __init__(self) -> None:
        self.flags = np.zeros(0, dtype=bool)

    def add(self, rows: Array) -> None:
        top = int(rows.max(initial=-1)) + 1
        if top > len(self.flags):
            self.flags = np.concatenate([self.flags, np.zeros(2 * top, dtype=bool)])
        self.flags[rows] = True

    def has(self, rows: Array) -> Array:
        known = rows < len(self.flags)
        found: Array = known & self.flags[np.where(known, rows, 0)] if known.any() else known
        return found


@dataclass(frozen=True)
class Ranks:
    """The processes that build together: the number of this one, and how many there are."""

    number: int = 0
    size: int = 1
    group: Any = None

    def wait(self) -> None:
        """Until all have come this far."""
        if self.size > 1:
            distributed.barrier(group=self.group)


@contextmanager
def together(group: Any) -> Iterator[Ranks]:
    if not (distributed.is_available() and distributed.is_initialized()):
        yield Ranks()
        return
    # Gloo: who is done first waits for the others, for longer than NCCL would let it.
    own = group or distributed.new_group(timeout=timedelta(days=365), backend="gloo")
    try:
        yield Ranks(distributed.get_rank(own), distributed.get_world_size(own), own)
    finally:
        if own is not group:
            distributed.destroy_process_group(own)


@contextmanager
def evaluating(teacher: Any) -> Iterator[None]:
    modules = list(teacher.modules()) if isinstance(teacher, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
