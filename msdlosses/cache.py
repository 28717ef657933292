"""The teacher's logits, computed once and read from disk.

A cache is a folder: one file of fp16 logits per view, one that says which rows were written, and
a manifest, renamed into place last. Each file begins with the cache's own mark, so that one
that is cut short, left from another cache or not ours at all is told apart.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msdlosses._checks import batches_of, describe, listing
from msdlosses.masking import ModalityViews, Shuffle

__all__ = ["TeacherCache"]

FORMAT = "msdlosses teacher cache 1"
MANIFEST = "manifest.json"
WRITTEN = "written.bool"
INDEX = "index"
HEADER = 64  # bytes: the format and the cache's mark


class TeacherCache:
    """The teacher's logits of every view, by the sample's index: `cache[index]`.

    Make one with `build` or `open`. It is memory-mapped: only what is read is loaded, workers of
    a DataLoader share it, and pickling hands on the path alone.

    Example:
        >>> import tempfile
        >>> views = ModalityViews(image=lambda batch: batch, text=lambda batch: batch)
        >>> batch = {"index": torch.tensor([1, 0]), "x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
        >>> with tempfile.TemporaryDirectory() as path:
        ...     cache = TeacherCache.build(lambda x: x, views, [batch], path)
        ...     cache[torch.tensor([0])]["text"]
        tensor([[3., 4.]])
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.fingerprint: str | None = manifest["fingerprint"]
        self._rows = int(manifest["rows"])
        self._written = _map(path / WRITTEN, manifest["mark"], np.dtype(bool), (self._rows,))
        self._logits = {
            view: _map(
                path / entry["file"],
                manifest["mark"],
                np.dtype("<f2"),
                (self._rows, *entry["shape"]),
            )
            for view, entry in manifest["views"].items()
        }

    @classmethod
    def build(
        cls,
        teacher: Any,
        views: ModalityViews,
        loader: Any,
        path: str | os.PathLike[str],
        *,
        index: str = INDEX,
        fingerprint: str | None = None,
    ) -> TeacherCache:
        """Run the teacher over the data, once, in evaluation mode, and keep its logits in fp16.

        Args:
            teacher: the model, left in the mode in which it came.
            views: which views of it to keep.
            loader: any iterable of batch mappings, or of pairs ``(batch, target)``;
                ``tqdm(loader)`` shows progress.
            path: the folder; one that holds what an interrupted build left is built anew.
            index: the entry that gives each sample's row; the teacher is not given it. Without
                an entry ``"index"`` samples count in the order of the loader.
            fingerprint: says what the logits are of, for `open` to compare: the teacher's
                version, the data's.

        Raises:
            FileExistsError: the folder holds a finished cache.
            TypeError: views, a loader or an index of the wrong kind.
            KeyError: a batch without the index that was named, or that earlier batches had.
            IndexError: an index below 0.
            ValueError: logits that are NaN or that fp16 can't hold, whose shape changes, an index
                that comes twice, a masker that takes values from other samples, no data.
        """
        if not isinstance(views, ModalityViews):
            raise TypeError(f"Expected `views` to be a ModalityViews, got {describe(views)}.")
        folder = Path(path)
        if (folder / MANIFEST).exists():
            raise FileExistsError(f"Expected no cache at {folder}, got a finished one: open it.")
        if any(isinstance(module, Shuffle) for module in views.modules()):
            raise ValueError(
                "Expected maskers that need the sample alone, got Shuffle: the student's batches "
                "will not be those of the cache."
            )
        writer = _Writer(folder)
        with _evaluating(teacher), torch.no_grad():
            for batch in batches_of(loader):
                rest = {name: entry for name, entry in batch.items() if name != index}
                size, _ = views.size(rest)
                rows = writer.rows_of(batch, index, size)
                writer.write(_check_rows(rows, size), views(teacher, rest))
        writer.finish(fingerprint)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, fingerprint: str | None = None) -> TeacherCache:
        """Open a finished cache.

        Args:
            path: the folder that `build` filled.
            fingerprint: the one that the cache must have; None takes any.

        Raises:
            FileNotFoundError: no finished cache is there.
            ValueError: another fingerprint; a file that is cut short or not of this cache.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        found = manifest.get("fingerprint")
        if fingerprint is not None and found != fingerprint:
            raise ValueError(
                f"Expected a cache of fingerprint {fingerprint!r} at {folder}, got {found!r}."
            )
        try:
            return cls(folder, manifest)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected a whole manifest of {FORMAT!r} at {folder}, got one that lacks "
                f"or garbles {error}."
            ) from None

    @property
    def names(self) -> tuple[str, ...]:
        """The views."""
        return tuple(self._logits)

    def __len__(self) -> int:
        """The number of rows: one more than the largest index."""
        return self._rows

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """The logits of some samples: view -> (N, ...) in float32, on the index's device.

        Args:
            index: (N,) of integers.

        Raises:
            TypeError: an index that is no tensor of integers.
            ValueError: an index of another shape.
            IndexError: a row out of range, or one that was never written.
        """
        rows = _check_rows(index)
        if rows.size and not 0 <= rows.min() <= rows.max() < self._rows:
            wrong = rows[(rows < 0) | (rows >= self._rows)][0]
            raise IndexError(f"Expected `index` in [0, {self._rows}), got {wrong}.")
        written = self._written[rows]
        if not written.all():
            raise IndexError(f"Expected rows that were written, got {rows[~written][0]}.")
        return {
            view: torch.from_numpy(logits[rows].astype(np.float32)).to(index.device)
            for view, logits in self._logits.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherCache.open, (self.path,)

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.path)!r}, views={self.names}, rows={self._rows})"


class _Writer:
    """Files that grow while rows come in any order."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.indexed: bool | None = None
        self.seen = 0
        self.rows = 0
        self.written = np.zeros(0, dtype=bool)
        self.logits: dict[str, np.memmap[Any, Any]] = {}

    def rows_of(self, batch: Mapping[str, Any], index: str, size: int) -> Any:
        """The batch's index, or where its samples come in the order of the loader."""
        indexed = index in batch
        if not indexed and index != INDEX:  # a name that was asked for is no option
            raise KeyError(f"Expected the batch to hold `{index}`, got {listing(batch)}.")
        if self.indexed not in (None, indexed):
            raise KeyError(
                f"Expected `{index}` in all batches or in none, got it in some: samples would "
                "be told apart in two ways."
            )
        self.indexed = indexed
        return batch[index] if indexed else torch.arange(self.seen, self.seen + size)

    def write(self, rows: np.ndarray[Any, Any], logits: Mapping[str, Tensor]) -> None:
        self.seen += len(rows)
        if not len(rows):
            return
        if rows.min() < 0:
            raise IndexError(f"Expected `index` of 0 or more, got {rows.min()}.")
        self.rows = max(self.rows, int(rows.max()) + 1)
        if self.rows > len(self.written):
            self.written = np.concatenate([self.written, np.zeros(self.rows * 2, dtype=bool)])
        self._claim(rows)
        for view, values in logits.items():
            self._grown(view, tuple(values.shape[1:]))[rows] = _half(view, values)

    def _claim(self, rows: np.ndarray[Any, Any]) -> None:
        values, counts = np.unique(rows, return_counts=True)
        twice = values[(counts > 1) | self.written[values]]
        if len(twice):
            raise ValueError(f"Expected each index once, got {twice[0]} again.")
        self.written[rows] = True

    def _grown(self, view: str, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
        """The view's array, of at least as many rows as are needed."""
        array = self.logits.get(view)
        if array is not None and array.shape[1:] != shape:
            raise ValueError(
                f"Expected each sample's logits of shape {array.shape[1:]} for `{view}`, as "
                f"before, got {shape}."
            )
        if array is None or len(array) < self.rows:
            path = self.folder / self._file(view)
            if array is None:
                path.write_bytes(_header(self.mark))
            array = self._resized(path, (len(self.written), *shape))
            self.logits[view] = array
        return array

    def _resized(self, path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
        os.truncate(path, HEADER + 2 * int(np.prod(shape)))
        return np.memmap(path, dtype="<f2", mode="r+", offset=HEADER, shape=shape)

    def _file(self, view: str) -> str:
        names = [*self.logits] if view in self.logits else [*self.logits, view]
        return f"view{names.index(view)}.f2"

    def finish(self, fingerprint: str | None) -> None:
        if not self.rows:
            raise ValueError("Expected samples to build a cache of, got none.")
        entries = {}
        for view, array in self.logits.items():
            shape = array.shape[1:]
            array.flush()
            self._resized(self.folder / self._file(view), (self.rows, *shape))
            entries[view] = {"file": self._file(view), "shape": shape}
        written = _header(self.mark) + self.written[: self.rows].tobytes()
        (self.folder / WRITTEN).write_bytes(written)
        manifest = {
            "format": FORMAT,
            "mark": self.mark,
            "fingerprint": fingerprint,
            "rows": self.rows,
            "views": entries,
        }
        part = self.folder / f"{MANIFEST}.part"
        part.write_text(json.dumps(manifest, indent=1))
        part.replace(self.folder / MANIFEST)


def _half(view: str, logits: Tensor) -> np.ndarray[Any, Any]:
    half = logits.half()
    if bool(logits.isnan().any()):
        raise ValueError(f"Expected teacher logits that are numbers, got NaN in `{view}`.")
    beyond = logits[half.isinf() & (logits != -torch.inf)]
    if len(beyond):
        raise ValueError(
            "Expected teacher logits within 65504, the largest number of fp16, got "
            f"{beyond[0].item():g} in `{view}`."
        )
    array: np.ndarray[Any, Any] = half.cpu().numpy()
    return array


def _check_rows(index: Any, size: int | None = None) -> np.ndarray[Any, Any]:
    whole = isinstance(index, Tensor) and not (
        index.is_floating_point() or index.is_complex() or index.dtype == torch.bool
    )
    if not whole:
        raise TypeError(f"Expected `index` to be a tensor of integers, got {describe(index)}.")
    if index.ndim != 1 or (size is not None and len(index) != size):
        wanted = "N" if size is None else size
        raise ValueError(f"Expected `index` of shape ({wanted},), got {tuple(index.shape)}.")
    rows: np.ndarray[Any, Any] = index.detach().cpu().long().numpy()
    return rows


def _header(mark: str) -> bytes:
    return f"{FORMAT} {mark}".encode().ljust(HEADER, b"\n")


def _map(
    path: Path, mark: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.memmap[Any, Any]:
    if not path.is_file():
        raise ValueError(f"Expected the file {path} of a cache, got none.")
    expected = HEADER + dtype.itemsize * int(np.prod(shape))
    found = path.stat().st_size
    if found != expected:
        raise ValueError(f"Expected {path} to be {expected} bytes long, got {found}.")
    with path.open("rb") as file:
        if file.read(HEADER) != _header(mark):
            raise ValueError(f"Expected {path} to belong to the cache, got a file of another.")
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER, shape=shape)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a finished cache at {folder}, got no {MANIFEST}: build it first."
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"Expected a manifest of {FORMAT!r} at {path}, got something else.")
    return manifest


@contextmanager
def _evaluating(teacher: Any) -> Iterator[None]:
    modules = list(teacher.modules()) if isinstance(teacher, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
