"""Files of records that only grow: what a build that was killed has written is kept.

A build appends each batch to a shard of its own process: the records, and behind them in a
second file their rows. Once all is written, `places` says where each row is, and the manifest,
renamed into place last, makes the folder a finished cache. Every file begins with the build's own
header, so that one that is cut short, left from another cache or not ours at all is told apart.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, Any]

FORMAT = "msdlosses teacher cache 2"
MANIFEST = "manifest.json"
BUILD = "build.json"
PLACES = "places.i8"
RECORDS, ROWS = ".records", ".rows"
SHARD = 2**30  # bytes after which a new shard is begun


@dataclass(frozen=True)
class Layout:
    """What a record holds: of every view all logits, or the largest and what the rest adds."""

    mark: str
    shapes: Mapping[str, tuple[int, ...]]
    top_k: int | None

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> Layout:
        shapes = {view: tuple(int(n) for n in shape) for view, shape in entries["views"].items()}
        return cls(entries["mark"], shapes, entries["top_k"])

    @property
    def entries(self) -> dict[str, Any]:
        """The layout in JSON's types."""
        views = {view: list(shape) for view, shape in self.shapes.items()}
        return {"format": FORMAT, "mark": self.mark, "views": views, "top_k": self.top_k}

    @property
    def header(self) -> bytes:
        """One line of JSON, as long as a number of pages."""
        line = json.dumps(self.entries).encode()
        return line + b" " * (-(len(line) + 1) % 4096) + b"\n"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype([(view, self._fields(shape)) for view, shape in self.shapes.items()])

    def _fields(self, shape: tuple[int, ...]) -> list[Any]:
        if self.top_k is None:
            return [("logits", "<f2", shape)]
        kept, positions = (*shape[:-1], self.top_k), shape[:-1]
        return [("logits", "<f2", kept), ("classes", "<i4", kept), ("rest", "<f2", positions)]


class Shards:
    """The records of a finished cache, read by their rows."""

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
        """The records of some rows."""
        if rows.size and not 0 <= rows.min() <= rows.max() < self.rows:
            wrong = rows[(rows < 0) | (rows >= self.rows)][0]
            raise IndexError(f"Expected `index` in [0, {self.rows}), got {wrong}.")
        places = self.places.take(rows)
        if rows.size and places.min() < 0:
            raise IndexError(f"Expected rows that were written, got {rows[places < 0][0]}.")
        if len(self.shards) == 1:
            return self.shards[0].take(places)
        records = np.empty(len(rows), self.layout.dtype)
        shards = np.searchsorted(self.starts, places, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            records[here] = self.shards[shard].take(places[here] - self.starts[shard])
        return records


class Build:
    """A cache that is being written, by one process or by several."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Keep what an interrupted build of the same has written, or nothing of what is there.

        Without a fingerprint nothing says that it was the same.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = {"format": FORMAT, **asked}
        found = _json(self.folder / BUILD)
        if asked["fingerprint"] is not None and found is not None and found == {**found, **asked}:
            for part in self.parts():
                part.trim()
            return
        for path in self._files(BUILD, PLACES, f"*{RECORDS}", f"*{ROWS}"):
            path.unlink()
        _write_json(self.folder / BUILD, {**asked, "mark": uuid.uuid4().hex})

    @property
    def mark(self) -> str:
        return str((_json(self.folder / BUILD) or {})["mark"])

    def parts(self) -> list[Part]:
        """What is on disk so far."""
        mark = self.mark
        found = (_part(path) for path in sorted(self._files(f"*{RECORDS}")))
        return [part for part in found if part is not None and part.layout.mark == mark]

    def finish(self, fingerprint: str | None) -> None:
        """Say where each row is, and that all is there."""
        parts = self.parts()
        if not parts:
            raise ValueError("Expected samples to build a cache of, got none.")
        layout = parts[0].layout
        for part in parts:
            if part.layout != layout:
                raise ValueError(
                    "Expected each sample's logits of one shape in all processes, got "
                    f"{layout.shapes} and {part.layout.shapes}."
                )
        rows = 1 + max(int(part.rows.max()) for part in parts)
        _write_places(self.folder / PLACES, layout, rows, (part.rows for part in parts))
        shards = {part.records.name: part.count for part in parts}
        manifest = {**layout.entries, "fingerprint": fingerprint, "rows": rows, "shards": shards}
        _write_json(self.folder / MANIFEST, manifest)
        for path in self._files(BUILD, f"*{ROWS}"):
            path.unlink()

    def _files(self, *patterns: str) -> Iterator[Path]:
        for pattern in patterns:
            yield from self.folder.glob(pattern)


@dataclass(frozen=True)
class Part:
    """A shard of the build under way."""

    records: Path
    layout: Layout
    count: int

    @property
    def rows(self) -> Array:
        file, start = self.records.with_suffix(ROWS), len(self.layout.header)
        return np.fromfile(file, "<i8", self.count, offset=start)

    def trim(self) -> None:
        """Cut off what a kill has left half written."""
        start = len(self.layout.header)
        os.truncate(self.records, start + self.count * self.layout.dtype.itemsize)


class Writer:
    """Appends one process's records, in shards of its own."""

    def __init__(self, folder: Path, prefix: int) -> None:
        self.folder = folder
        self.prefix = prefix
        self.size = SHARD
        self.files: tuple[BinaryIO, ...] = ()

    def append(self, layout: Layout, rows: Array, records: Array) -> None:
        if self.size >= SHARD:
            self._begin(layout)
        # Rows go last: those that are there have their records.
        for file, array in zip(self.files, (records, rows.astype("<i8")), strict=True):
            file.write(array.tobytes())
            file.flush()
        self.size += records.nbytes

    def _begin(self, layout: Layout) -> None:
        self.close()
        taken = len(list(self.folder.glob(f"{self.prefix:04}-*{RECORDS}")))
        stem = f"{self.prefix:04}-{taken:04}"
        self.files = tuple((self.folder / f"{stem}{end}").open("xb") for end in (RECORDS, ROWS))
        for file in self.files:
            file.write(layout.header)
        self.size = 0

    def close(self) -> None:
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self.files, self.size = (), SHARD


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a finished cache at {folder}, got no {MANIFEST}: build it first."
        )
    manifest = _json(path)
    if manifest is None or manifest.get("format") != FORMAT:
        raise ValueError(f"Expected a manifest of {FORMAT!r} at {path}, got something else.")
    return manifest


def _write_places(path: Path, layout: Layout, total: int, shards: Iterable[Array]) -> None:
    """Of every row the number of its record, -1 where there is none."""
    path.write_bytes(layout.header)
    os.truncate(path, len(layout.header) + 8 * total)
    places = np.memmap(path, "<i8", "r+", len(layout.header), (total,))
    places[:] = -1
    start = 0
    for rows in shards:
        places[rows] = np.arange(start, start + len(rows))
        start += len(rows)
    places.flush()


def _map(path: Path, layout: Layout, dtype: np.dtype[Any], count: int) -> Array:
    if not path.is_file():
        raise ValueError(f"Expected the file {path} of a cache, got none.")
    header = layout.header
    expected, found = len(header) + dtype.itemsize * count, path.stat().st_size
    if found != expected:
        raise ValueError(f"Expected {path} to be {expected} bytes long, got {found}.")
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise ValueError(f"Expected {path} to belong to the cache, got a file of another.")
    # A plain array over the map: memmap's own indexing is slower.
    return np.asarray(np.memmap(path, dtype, "r", len(header), (count,)))


def _part(records: Path) -> Part | None:
    """A shard and how many records it holds whole; None where it has none."""
    rows = records.with_suffix(ROWS)
    try:
        with records.open("rb") as file:
            layout = Layout.read(json.loads(file.readline()))
        sizes = ((rows, 8), (records, layout.dtype.itemsize))
        start = len(layout.header)
        count = min((path.stat().st_size - start) // size for path, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Part(records, layout, count) if count > 0 else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(path)
