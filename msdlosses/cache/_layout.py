"""The records of a cache as bytes.

There is one for each sample, or for each position that is kept: its row, its logits or hidden
states, and a checksum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_that
from msdlosses.cache._files import seal, unseal

Array = np.ndarray[Any, Any]

NUMBERS = {"float16": "<f2", "bfloat16": "<i2", "float32": "<f4"}
"""How logits are stored. NumPy has no bfloat16."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of its own."""

    digest: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> StoredTensor:
        """Read the description of a tensor from JSON types."""
        return cls(entries["digest"], entries["dtype"], tuple(entries["shape"]))

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True)
class Head:
    """What turns the hidden states of a view into logits."""

    weight: StoredTensor
    bias: StoredTensor | None
    scale: float
    softcap: float | None
    classes: int

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> Head:
        """Read a head from JSON types."""
        bias = None if entries["bias"] is None else StoredTensor.read(entries["bias"])
        options = (entries[name] for name in ("scale", "softcap", "classes"))
        return cls(StoredTensor.read(entries["weight"]), bias, *options)


@dataclass(frozen=True)
class Layout:
    """The contents of a record: of each view all logits, the largest and a rest, or hidden states.

    Shapes are those of one record.
    """

    mark: str
    """Identifies a build."""
    shapes: Mapping[str, tuple[int, ...]]
    top_k: int | None
    dtype: str
    modalities: tuple[str, ...]
    positions: bool = False
    """Whether there is a record for each position that is kept."""
    heads: Mapping[str, Head] = field(default_factory=dict)
    """The heads of the views whose hidden states are stored."""

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> Layout:
        """Read a layout from JSON types."""
        shapes = {view: tuple(int(n) for n in shape) for view, shape in entries["views"].items()}
        modalities = tuple(entries["modalities"])
        heads = {view: Head.read(head) for view, head in entries["heads"].items()}
        top_k, dtype, positions = (entries[name] for name in ("top_k", "dtype", "positions"))
        return cls(entries["mark"], shapes, top_k, dtype, modalities, positions, heads)

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
            "positions": self.positions,
            "heads": {view: asdict(head) for view, head in self.heads.items()},
        }

    @cached_property
    def header(self) -> bytes:
        """The sealed layout, padded to whole pages."""
        line = seal(self.entries)
        return line[:-1] + b" " * (-len(line) % 4096) + b"\n"

    @cached_property
    def record(self) -> np.dtype[Any]:
        """The dtype of a record, which is a whole number of words."""
        views = np.dtype([(view, self._fields(view)) for view in self.shapes])
        start = 8 * len(self.counters)
        end = start + views.itemsize + -views.itemsize % 8
        return np.dtype(
            {
                "names": [*self.counters, "views", "checksum"],
                "formats": ["<i8"] * len(self.counters) + [views, "<u8"],
                "offsets": [*range(0, start, 8), start, end],
                "itemsize": end + 8,
            }
        )

    @property
    def counters(self) -> tuple[str, ...]:
        """The row of a sample, and which of how many positions a record holds."""
        return ("row", "position", "count") if self.positions else ("row",)

    def _fields(self, view: str) -> list[Any]:
        number, shape = NUMBERS[self.dtype], self.shapes[view]
        positions = shape[:-1]
        shifted = self.dtype != "float32" and view not in self.heads
        shift = [("shift", "<f4", positions)] if shifted else []
        if self.top_k is None:
            return [("values", number, shape), *shift]
        kept = (*positions, self.top_k)
        return [
            ("values", number, kept),
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


def numbered(counts: Array) -> Array:
    """Return 0, 1, ... for each count: [2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    numbers: Array = np.arange(total) - (ends - counts).repeat(counts)
    return numbers


def spans(starts: Array, counts: Array) -> Array:
    """Return the places of some records that follow each start."""
    places: Array = starts.repeat(counts) + numbered(counts)
    return places


def bytes_of(tensor: Tensor) -> Array:
    """Return a tensor as bytes."""
    data: Array = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return data
