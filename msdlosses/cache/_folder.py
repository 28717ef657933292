"""The folder of a cache that one or several processes are building."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msdlosses._checks import check_that, expected
from msdlosses.cache._duplicates import distinct_rows
from msdlosses.cache._files import (
    BUILD,
    HEAD,
    MANIFEST,
    PART,
    RECORDS,
    ROWS,
    START,
    is_ours,
    seal,
    unseal,
    unused_path,
    write_atomically,
)
from msdlosses.cache._fingerprint import same_json
from msdlosses.cache._heads import heads_are_intact
from msdlosses.cache._layout import Array, Layout
from msdlosses.cache._lock import LockedFile
from msdlosses.cache._parts import Part, read_parts
from msdlosses.cache._shards import Shards


@dataclass(frozen=True)
class Progress:
    """What an interrupted build has left."""

    mark: str
    """Identifies the build."""
    layout: Layout | None
    rows: Array
    """The rows that are on disk, in order."""
    counts: Mapping[str, int]
    """The number of records in each shard."""


class BuildFolder:
    """Begins or resumes a build, and finishes it. Its first process holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.locks: list[LockedFile] = []
        self.request: dict[str, Any] = {}

    def begin(self, request: Mapping[str, Any], views: Mapping[str, str]) -> Progress:
        """Resume an interrupted build of the same request, or remove its files.

        Without a fingerprint a build cannot be known to be the same.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_folder(self.folder)
        lock = LockedFile(self.folder / BUILD)
        self.locks.append(lock)
        self._check_unfinished(lock)
        self._remove(ROWS, PART)
        earlier = unseal(lock.read())
        self.request = {**request}
        same = same_json({key: (earlier or {}).get(key) for key in request}, request)
        if earlier and same and request["fingerprint"] is not None:
            _check_views(self.folder, earlier["definition"], views)
            parts = [*read_parts(self.folder, earlier["mark"])]
            if parts and heads_are_intact(self.folder, parts[0].layout):
                return _resume(parts, earlier["mark"])
        return self._start(views, lock)

    def _start(self, views: Mapping[str, str], lock: LockedFile) -> Progress:
        self._remove(RECORDS, HEAD)
        mark = uuid.uuid4().hex
        lock.write(seal({**self.request, "definition": dict(views), "mark": mark}))
        return Progress(mark, None, np.empty(0, np.int64), {})

    def _check_unfinished(self, lock: LockedFile) -> None:
        """Check that no build has finished since the folder was looked at."""
        if (self.folder / MANIFEST).exists():
            lock.remove()
            _check_folder(self.folder)

    def finish(self, mark: str, counts: Mapping[str, int]) -> None:
        """Check that all records are on disk, and write where they are, and the manifest."""
        check_that("samples in `loader`", any(counts.values()))
        found = {part.path.name: part for part in read_parts(self.folder, mark)}
        parts = [_intact(self.folder / name, found.get(name), n) for name, n in counts.items() if n]
        layout = parts[0].layout
        for part in parts:
            what, got = "logits of the same shapes and heads in all processes", part.layout.shapes
            check_that(f"{what}, {layout.shapes}", part.layout == layout, got)
        if not heads_are_intact(self.folder, layout):
            raise OSError(_damaged(f"each head in {self.folder}"))
        shards = {part.path.name: part.count for part in parts}
        starts = np.cumsum([0, *shards.values()])[:-1]
        places = [start + part.places for start, part in zip(starts, parts, strict=True)]
        rows = np.concatenate([part.rows for part in parts])
        index = distinct_rows(rows, np.concatenate(places), Shards(self.folder, layout, shards))
        entry = index.write(unused_path(self.folder, f"{{:04}}{ROWS}"), layout)
        fingerprint = self.request["fingerprint"]
        manifest = {**layout.entries, "fingerprint": fingerprint, "index": entry, "shards": shards}
        write_atomically(self.folder / MANIFEST, seal(manifest))
        for lock in self.locks:
            lock.remove()

    def _remove(self, *suffixes: str) -> None:
        for path in self._files(suffixes):
            path.unlink()

    def _files(self, suffixes: tuple[str, ...]) -> Iterator[Path]:
        """Yield files of a cache, and never any other file."""
        paths = (path for suffix in suffixes for path in self.folder.glob(f"*{suffix}"))
        yield from (path for path in paths if is_ours(path))

    def close(self) -> None:
        """Release the lock."""
        for lock in self.locks:
            lock.close()


def _check_folder(folder: Path) -> None:
    """Check that a folder is empty, or was left by an interrupted build."""
    manifest, build = folder / MANIFEST, folder / BUILD
    if is_ours(manifest):
        raise FileExistsError(
            f"{folder} already holds a finished cache. Use `TeacherCache.open` or another path."
        )
    # An interrupt may have left a part of the line, or nothing.
    left = build.is_file() and START.startswith(build.read_bytes()[: len(START)])
    if manifest.exists() or not (left or not any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} holds files that are not of a cache, or a damaged cache. Empty it or use "
            "another path."
        )


def _resume(parts: Sequence[Part], mark: str) -> Progress:
    for part in parts:
        part.truncate()
    rows = np.concatenate([part.rows for part in parts])
    counts = {part.path.name: part.count for part in parts}
    return Progress(mark, parts[0].layout, np.unique(rows), counts)


def _check_views(folder: Path, earlier: Mapping[str, str], views: Mapping[str, str]) -> None:
    changed = sorted(name for name in {**earlier, **views} if earlier.get(name) != views.get(name))
    what = f"the views that the interrupted build in {folder} has under the same fingerprint"
    advice = "Use another fingerprint, which starts again, or another path."
    check_that(what, not changed, f"a change of {', '.join(changed)}", advice)


def _intact(path: Path, part: Part | None, count: int) -> Part:
    """Return a shard, in which all records must be as they were written."""
    if part is None or part.count != count or path.stat().st_size != part.size:
        raise OSError(_damaged(str(path)))
    return part


def _damaged(what: str) -> str:
    advice = "Build again with the same fingerprint, which resumes the build."
    return expected(f"{what} as it was written", "a damaged file or none", advice)
