"""The records of a cache as bytes: for each sample its row, its logits, and a checksum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from msdlosses._checks import check_that
from msdlosses.cache._files import seal, unseal

Array = np.ndarray[Any, Any]

NUMBERS = {"float16": "<f2", "bfloat16": "<i2", "float32": "<f4"}
"""How logits are stored. NumPy has no bfloat16."""


@dataclass(frozen=True)
class Layout:
    """The contents of a record: all logits of each view, or the largest and a rest."""

    mark: str
    """Identifies a build."""
    shapes: Mapping[str, tuple[int, ...]]
    top_k: int | None
    dtype: str
    modalities: tuple[str, ...]

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> Layout:
        """Read a layout from JSON types."""
        shapes = {view: tuple(int(n) for n in shape) for view, shape in entries["views"].items()}
        modalities = tuple(entries["modalities"])
        return cls(entries["mark"], shapes, entries["top_k"], entries["dtype"], modalities)

    @property
    def entries(self) -> dict[str, Any]:
        """The layout in JSON types."""
        views = {view: list(shape) for view, shape in self.shapes.items()}
        return {
            "mark": self.mark,
            "views": views,
            "top_k": self.top_k,
            "dtype": self.dtype,
            "modalities": list(self.modalities),
        }

    @cached_property
    def header(self) -> bytes:
        """The sealed layout, padded to whole pages."""
        line = seal(self.entries)
        return line[:-1] + b" " * (-len(line) % 4096) + b"\n"

    @cached_property
    def record(self) -> np.dtype[Any]:
        """The dtype of a record, which is a whole number of words."""
        views = np.dtype([(view, self._fields(shape)) for view, shape in self.shapes.items()])
        end = 8 + views.itemsize + -views.itemsize % 8
        return np.dtype(
            {
                "names": ["row", "views", "checksum"],
                "formats": ["<i8", views, "<u8"],
                "offsets": [0, 8, end],
                "itemsize": end + 8,
            }
        )

    def _fields(self, shape: tuple[int, ...]) -> list[Any]:
        number, positions = NUMBERS[self.dtype], shape[:-1]
        shift = [] if self.dtype == "float32" else [("shift", "<f4", positions)]
        if self.top_k is None:
            return [("logits", number, shape), *shift]
        kept = (*positions, self.top_k)
        return [
            ("logits", number, kept),
            ("classes", "<i4", kept),
            ("rest", "<f4", positions),
            *shift,
        ]

    @property
    def words(self) -> int:
        """The length of a record in words of 8 bytes."""
        return self.record.itemsize // 8

    @cached_property
    def _multipliers(self) -> Array:
        """Odd random numbers: with them, any change within 32 bits changes the checksum."""
        count = 2 * (self.words - 1) + 1
        return np.random.PCG64(int(self.mark, 16)).random_raw(count) | np.uint64(1)

    def checksums(self, words: Array) -> Array:
        """Return a multilinear hash of the records (N, words), without their last word.

        For the short records of a typical cache this is faster than a CRC of each. It takes half
        words, because changes of the highest bit of two whole words would cancel modulo 2**64.
        """
        halves = words[:, :-1].view("<u4").astype("<u8")
        sums: Array = halves @ self._multipliers[:-1] + self._multipliers[-1]
        return sums

    def intact(self, words: Array) -> Array:
        """Return which of the records (N, words) are as they were written."""
        equal: Array = self.checksums(words) == words[:, -1]
        return equal


def read_layout(path: Path) -> Layout | None:
    """Return the layout that a file starts with; None if it is another file or damaged."""
    try:
        with path.open("rb") as file:
            line = file.readline(2**20)
        layout = Layout.read(unseal(line) or {})
        return layout if layout.header == line else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def require_file(path: Path, layout: Layout, size: int) -> None:
    """Check the size and the header of a file of a finished cache."""
    check_that(f"the file {path} of a cache", path.is_file())
    header = layout.header
    size, actual = len(header) + size, path.stat().st_size
    check_that(f"{path} to be {size} bytes long", actual == size, actual)
    with path.open("rb") as file:
        same = file.read(len(header)) == header
    check_that(f"{path} to belong to this cache", same, "a file of another one")
