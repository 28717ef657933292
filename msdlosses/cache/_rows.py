"""Where the record of each row is: the sorted rows, and the places of their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from msdlosses._checks import check_that, expected
from msdlosses.cache._files import write_new
from msdlosses.cache._layout import Array, Layout, require_file


class RowIndex:
    """Finds the places of rows by binary search, or directly if no row is left out."""

    def __init__(self, rows: Array, places: Array) -> None:
        self.rows = rows
        self.places = places
        self.first, self.last = int(rows[0]), int(rows[-1])
        self.contiguous = self.last - self.first + 1 == len(rows)

    @classmethod
    def open(cls, path: Path, layout: Layout, count: int, checksum: int) -> RowIndex:
        """Map the index of a finished cache, and check it."""
        require_file(path, layout, 16 * count)
        arrays = np.asarray(np.memmap(path, "<i8", "r", len(layout.header), (2, count)))
        check_that(f"{path} to be intact", crc32(arrays.data) == checksum, "a damaged file")
        return cls(*arrays)

    def write(self, path: Path, layout: Layout) -> dict[str, Any]:
        """Write a new file, and return what `open` needs."""
        arrays = np.stack([self.rows, self.places]).astype("<i8", copy=False)
        write_new(path, layout.header, arrays.data)
        return {"name": path.name, "count": len(self.rows), "crc32": crc32(arrays.data)}

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, rows: Array) -> Array:
        """Return the places of some rows."""
        if not rows.size:
            return rows
        low, high = rows.min(), rows.max()
        if low < 0 or high > self.last:
            wrong = low if low < 0 else high
            raise IndexError(expected(f"`index` in [0, {self.last + 1})", wrong))
        if self.contiguous and low >= self.first:
            return self.places.take(rows - self.first)
        at = np.searchsorted(self.rows, rows)
        missing = self.rows.take(at) != rows
        if missing.any():
            raise IndexError(expected("`index` of rows that were written", rows[missing][0]))
        return self.places.take(at)
