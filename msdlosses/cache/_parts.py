"""The shards of a build that has not finished: which of their records are intact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msdlosses.cache._files import RECORDS
from msdlosses.cache._layout import Array, Layout, read_layout
from msdlosses.cache._shards import CHUNK


@dataclass(frozen=True)
class Part:
    """A shard of a build."""

    path: Path
    layout: Layout
    rows: Array
    """The rows of its samples, up to the first that is incomplete or damaged."""
    places: Array
    """The first record of each."""
    count: int
    """The number of their records."""

    @property
    def size(self) -> int:
        """The bytes of the intact records and their header."""
        return len(self.layout.header) + self.count * self.layout.record.itemsize

    def truncate(self) -> None:
        """Cut off what is damaged, such as a record that was written in part."""
        if self.path.stat().st_size != self.size:
            os.truncate(self.path, self.size)


def read_parts(folder: Path, mark: str) -> Iterator[Part]:
    """Yield the shards of a build, in the order of their names."""
    for path in sorted(folder.glob(f"*{RECORDS}")):
        layout = read_layout(path)
        if layout is not None and layout.mark == mark:
            yield _part(path, layout)


def _part(path: Path, layout: Layout) -> Part:
    """Find the complete samples, which may lack none of their positions."""
    row, *position = np.concatenate([*_intact_counters(path, layout)], axis=1)
    if not layout.positions:
        return Part(path, layout, row, np.arange(len(row)), len(row))
    at, count = position
    places = np.flatnonzero(at == 0)
    ends = places + count[places].clip(min=1)
    complete = ends <= len(row)
    places, ends = places[complete], ends[complete]
    return Part(path, layout, row[places], places, int(ends.max(initial=0)))


def _intact_counters(path: Path, layout: Layout) -> Iterator[Array]:
    """Yield the counters (n, records) of records up to the first that is damaged."""
    size = layout.record.itemsize
    yield np.empty((len(layout.counters), 0), np.int64)
    with path.open("rb") as file:
        file.seek(len(layout.header))
        while len(data := file.read(max(1, CHUNK // size) * size)) >= size:
            words = np.frombuffer(data, "<u8", len(data) // size * layout.words)
            words = words.reshape(-1, layout.words)
            intact = layout.intact(words)
            end = len(intact) if intact.all() else int(intact.argmin())
            yield words[:end, : len(layout.counters)].view("<i8").T.copy()
            if end < len(intact):
                return
