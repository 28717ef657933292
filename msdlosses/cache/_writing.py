"""Writing the files of a cache, so that an interrupted build can be resumed.

Each process of a build appends its batches to shards of its own: the records to one file, and then
their rows to a second one. At the end `places` is written, and the manifest is renamed into place.
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

from msdlosses._checks import check_that
from msdlosses.cache._shards import (
    FORMAT,
    MANIFEST,
    PLACES,
    Array,
    Layout,
    read_json,
    write_json,
)

BUILD = "build.json"
RECORDS, ROWS = ".records", ".rows"
MAX_SHARD = 2**30
"""The number of bytes after which a new shard starts."""


class BuildFolder:
    """The folder of a cache that one or several processes are writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, request: Mapping[str, Any]) -> None:
        """Resume an interrupted build of the same request, or remove its files.

        Without a fingerprint a build cannot be known to be the same.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        request = {"format": FORMAT, **request}
        earlier = read_json(self.folder / BUILD)
        same = earlier is not None and earlier == {**earlier, **request}
        if request["fingerprint"] is not None and same:
            for part in self.parts():
                part.truncate()
            return
        for path in self._files(BUILD, PLACES, f"*{RECORDS}", f"*{ROWS}"):
            path.unlink()
        write_json(self.folder / BUILD, {**request, "mark": uuid.uuid4().hex})

    @property
    def mark(self) -> str:
        """Identifies this build."""
        return str((read_json(self.folder / BUILD) or {})["mark"])

    def parts(self) -> list[Part]:
        """Return the shards on disk."""
        mark = self.mark
        parts = (_read_part(path) for path in sorted(self._files(f"*{RECORDS}")))
        return [part for part in parts if part is not None and part.layout.mark == mark]

    def finish(self, fingerprint: str | None) -> None:
        """Write where each row is, and then the manifest."""
        parts = self.parts()
        check_that("samples in `loader`", parts)
        layout = parts[0].layout
        for part in parts:
            what, got = "logits of the same shapes in all processes", part.layout.shapes
            check_that(f"{what}, {layout.shapes}", part.layout == layout, got)
        rows = 1 + max(int(part.rows.max()) for part in parts)
        _write_places(self.folder / PLACES, layout, rows, (part.rows for part in parts))
        shards = {part.records.name: part.count for part in parts}
        manifest = {**layout.entries, "fingerprint": fingerprint, "rows": rows, "shards": shards}
        write_json(self.folder / MANIFEST, manifest)
        for path in self._files(BUILD, f"*{ROWS}"):
            path.unlink()

    def _files(self, *patterns: str) -> Iterator[Path]:
        for pattern in patterns:
            yield from self.folder.glob(pattern)


@dataclass(frozen=True)
class Part:
    """A shard of a build."""

    records: Path
    layout: Layout
    count: int
    """The number of complete records."""

    @property
    def rows(self) -> Array:
        """The row of each record."""
        file, start = self.records.with_suffix(ROWS), len(self.layout.header)
        return np.fromfile(file, "<i8", self.count, offset=start)

    def truncate(self) -> None:
        """Cut off a record that an interrupted build wrote in part."""
        start = len(self.layout.header)
        os.truncate(self.records, start + self.count * self.layout.dtype.itemsize)


class ShardWriter:
    """Appends the records of one process to shards of its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.rank = rank
        self.size = MAX_SHARD
        self.files: tuple[BinaryIO, ...] = ()

    def append(self, layout: Layout, rows: Array, records: Array) -> None:
        """Write some records and their rows."""
        if self.size >= MAX_SHARD:
            self._begin(layout)
        # Rows come last, so that each row on disk has a complete record.
        for file, array in zip(self.files, (records, rows.astype("<i8")), strict=True):
            file.write(array.tobytes())
            file.flush()
        self.size += records.nbytes

    def _begin(self, layout: Layout) -> None:
        self.close()
        count = len(list(self.folder.glob(f"{self.rank:04}-*{RECORDS}")))
        stem = f"{self.rank:04}-{count:04}"
        self.files = tuple((self.folder / f"{stem}{end}").open("xb") for end in (RECORDS, ROWS))
        for file in self.files:
            file.write(layout.header)
        self.size = 0

    def close(self) -> None:
        """Write everything to disk."""
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self.files, self.size = (), MAX_SHARD


def _read_part(records: Path) -> Part | None:
    """Return a shard; None if it has no complete record."""
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


def _write_places(path: Path, layout: Layout, total: int, shards: Iterable[Array]) -> None:
    """Write the number of the record of each row; -1 for a row without one."""
    path.write_bytes(layout.header)
    os.truncate(path, len(layout.header) + 8 * total)
    places = np.memmap(path, "<i8", "r+", len(layout.header), (total,))
    places[:] = -1
    start = 0
    for rows in shards:
        places[rows] = np.arange(start, start + len(rows))
        start += len(rows)
    places.flush()
