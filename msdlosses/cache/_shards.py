"""The files of a cache, and reading them.

The records of a finished cache are in shards. `places` maps the row of each sample to its record,
and the manifest makes a folder a finished cache. Each file starts with the header of its build, so
that truncated files, files of another cache, and other files are recognized.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msdlosses._checks import check_that, expected

Array = np.ndarray[Any, Any]

FORMAT = "msdlosses teacher cache 2"
MANIFEST = "manifest.json"
PLACES = "places.i8"


@dataclass(frozen=True)
class Layout:
    """The contents of a record: all logits of each view, or the largest and a rest."""

    mark: str
    """Identifies a build."""
    shapes: Mapping[str, tuple[int, ...]]
    top_k: int | None

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> Layout:
        """Read a layout from JSON types."""
        shapes = {view: tuple(int(n) for n in shape) for view, shape in entries["views"].items()}
        return cls(entries["mark"], shapes, entries["top_k"])

    @property
    def entries(self) -> dict[str, Any]:
        """The layout in JSON types."""
        views = {view: list(shape) for view, shape in self.shapes.items()}
        return {"format": FORMAT, "mark": self.mark, "views": views, "top_k": self.top_k}

    @property
    def header(self) -> bytes:
        """One line of JSON, padded to whole pages."""
        line = json.dumps(self.entries).encode()
        return line + b" " * (-(len(line) + 1) % 4096) + b"\n"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a record."""
        return np.dtype([(view, self._fields(shape)) for view, shape in self.shapes.items()])

    def _fields(self, shape: tuple[int, ...]) -> list[Any]:
        if self.top_k is None:
            return [("logits", "<f2", shape)]
        kept, positions = (*shape[:-1], self.top_k), shape[:-1]
        return [("logits", "<f2", kept), ("classes", "<i4", kept), ("rest", "<f2", positions)]


class Shards:
    """The memory-mapped records of a finished cache."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.layout = Layout.read(manifest)
        self.rows = int(manifest["rows"])
        self.places = _map(folder / PLACES, self.layout, np.dtype("<i8"), self.rows)
        self.shards = [
            _map(folder / name, self.layout, self.layout.dtype, count)
            for name, count in manifest["shards"].items()
        ]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])

    def take(self, rows: Array) -> Array:
        """Return the records of some rows."""
        if rows.size and not 0 <= rows.min() <= rows.max() < self.rows:
            wrong = rows[(rows < 0) | (rows >= self.rows)][0]
            raise IndexError(expected(f"`index` in [0, {self.rows})", wrong))
        places = self.places.take(rows)
        if rows.size and places.min() < 0:
            raise IndexError(expected("`index` of rows that were written", rows[places < 0][0]))
        if len(self.shards) == 1:
            return self.shards[0].take(places)
        records = np.empty(len(rows), self.layout.dtype)
        shards = np.searchsorted(self.starts, places, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            records[here] = self.shards[shard].take(places[here] - self.starts[shard])
        return records


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished cache."""
    path = folder / MANIFEST
    if not path.is_file():
        what, advice = f"a finished cache at {folder}", "Call `TeacherCache.build` first."
        raise FileNotFoundError(expected(what, f"no {MANIFEST}", advice))
    manifest = read_json(path)
    known = manifest is not None and manifest.get("format") == FORMAT
    check_that(f"a manifest of {FORMAT!r} at {path}", known, "something else")
    return manifest or {}


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; return None if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, completely or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(path)


def _map(path: Path, layout: Layout, dtype: np.dtype[Any], count: int) -> Array:
    check_that(f"the file {path} of a cache", path.is_file())
    header = layout.header
    size, actual = len(header) + dtype.itemsize * count, path.stat().st_size
    check_that(f"{path} to be {size} bytes long", actual == size, actual)
    with path.open("rb") as file:
        same = file.read(len(header)) == header
        check_that(f"{path} to belong to this cache", same, "a file of another one")
    # A plain array over the map, because indexing a memmap is slower.
    return np.asarray(np.memmap(path, dtype, "r", len(header), (count,)))
