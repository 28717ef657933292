"""The teacher's logits, computed once and read from disk."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from msdlosses._checks import batches_of, check_size, describe, listing
from msdlosses._shards import FORMAT, MANIFEST, Array, Build, Layout, Shards, Writer, read_manifest
from msdlosses.masking import ModalityViews, Shuffle
from msdlosses.masking._batches import move

__all__ = ["TeacherCache"]

INDEX = "index"


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
        self._shards = Shards(path, manifest)

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
        device: torch.device | str | None = None,
        top_k: int | None = None,
        group: Any = None,
    ) -> TeacherCache:
        """Run the teacher over the data, once, in evaluation mode, and keep its logits in fp16.

        A build that was killed goes on where it stopped when it is started again with the same
        fingerprint: batches that are on disk are not given to the teacher. Without a fingerprint
        nothing says that the teacher is the same one, and all is built anew.

        Under `torch.distributed` every process of the group calls `build`, with a folder that all
        of them see and its own part of the data, such as a `DistributedSampler` gives it. The
        batches need an index then; a sample that several processes were given is kept once.

        Args:
            teacher: the model, left in the mode in which it came.
            views: which views of it to keep.
            loader: any iterable of batch mappings, or of pairs ``(batch, target)``;
                ``tqdm(loader)`` shows progress.
            path: the folder.
            index: the entry that gives each sample's row; the teacher is not given it. Without
                an entry ``"index"`` samples count in the order of the loader.
            fingerprint: says what the logits are of, for a later `build` or `open` to compare:
                the teacher's version, the data's.
            device: where batches are moved to; None leaves them where they are. Those in pinned
                memory (a DataLoader's ``pin_memory=True``) are moved while the teacher works.
            top_k: keep the k largest logits alone, with their classes, and how much
                probability the others have together: for vocabularies whose logits would not
                fit on a disk. **What is lost**: which of the other classes are likely. They are
                read as equally likely, so distillation is nearly right for a temperature near 1
                and a divergence of softmax; at a temperature of 2, with few classes kept, the
                gradient can be wrong by half.
            group: the processes that build together; by default all of them. They wait for each
                other, which a group of gloo with a long timeout can do best.

        Raises:
            FileExistsError: the folder holds a finished cache.
            TypeError: views, a loader, an index or ``top_k`` of the wrong kind.
            KeyError: a batch without the index that was named, that earlier batches had, or that
                several processes need.
            IndexError: an index below 0.
            ValueError: logits that are NaN or that fp16 can't hold, whose shape changes, an index
                that comes twice, a masker that takes values from other samples, no data, no more
                than ``top_k`` classes.
        """
        _check_build(views, top_k)
        folder, files = Path(path), Build(Path(path))
        with _together(group) as ranks:
            if (folder / MANIFEST).exists():
                raise FileExistsError(
                    f"Expected no cache at {folder}, got a finished one: open it."
                )
            ranks.wait()
            if ranks.number == 0:
                names = list(views.names)
                files.begin({"fingerprint": fingerprint, "names": names, "top_k": top_k})
            ranks.wait()
            builder = _Builder(files, ranks, index, top_k)
            ranks.wait()  # all have read what was there, before any adds to it
            with _evaluating(teacher), torch.no_grad():
                builder.run(teacher, views, loader, device)
            ranks.wait()
            if ranks.number == 0:
                files.finish(fingerprint)
            ranks.wait()
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
        manifest = read_manifest(folder)
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
        return tuple(self._shards.layout.shapes)

    def __len__(self) -> int:
        """The number of rows: one more than the largest index."""
        return self._shards.rows

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """The logits of some samples: view -> (N, ...) in float32, on the index's device.

        An index on a GPU has to be waited for: where the loop must not wait, read in the
        loader's workers.

        Args:
            index: (N,) of integers.

        Raises:
            TypeError: an index that is no tensor of integers.
            ValueError: an index of another shape.
            IndexError: a row out of range, or one that was never written.
        """
        records = self._shards.take(_check_rows(index))
        return {
            view: _expand(_to_device(records[view], index.device), shape)
            for view, shape in self._shards.layout.shapes.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherCache.open, (self.path,)

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.path)!r}, views={self.names}, rows={len(self)})"


class _Builder:
    """Gives the teacher what is not on disk yet, and appends what it says."""

    def __init__(self, files: Build, ranks: _Ranks, index: str, top_k: int | None) -> None:
        self.writer = Writer(files.folder, ranks.number)
        self.mark = files.mark
        self.alone = ranks.size == 1
        self.index = index
        self.top_k = top_k
        self.indexed: bool | None = None
        self.layout: Layout | None = None
        self.seen = 0
        self.claimed, self.earlier = _Rows(), _Rows()
        for part in files.parts():
            self.earlier.add(part.rows)

    def run(self, teacher: Any, views: ModalityViews, loader: Any, device: Any) -> None:
        """One batch late: a GPU has the next to work on while the last is waited for."""
        before: _Record | None = None
        with closing(self.writer):
            for batch in batches_of(loader):
                record = self._record(teacher, views, batch, device)
                self._write(before)
                before = record
            self._write(before)

    def _record(
        self, teacher: Any, views: ModalityViews, batch: Mapping[str, Any], device: Any
    ) -> _Record | None:
        rest = {name: entry for name, entry in batch.items() if name != self.index}
        size, _ = views.size(rest)
        rows = _check_rows(self._rows(batch, size), size)
        missing = self._claim(rows)
        if not missing.any():
            return None
        logits = views(teacher, rest if device is None else move(rest, device))
        return _Record(rows, missing, logits, self.top_k)

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

    def _write(self, record: _Record | None) -> None:
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


class _Record:
    """What is kept of a batch, on its way from the device."""

    def __init__(
        self, rows: Array, missing: Array, logits: Mapping[str, Tensor], top_k: int | None
    ) -> None:
        self.rows = rows[missing]
        self.missing = missing
        self.shapes = {view: tuple(values.shape[1:]) for view, values in logits.items()}
        self.exact = {view: _compress(view, values, top_k) for view, values in logits.items()}
        self.host = {view: _to_host(fields) for view, fields in self.exact.items()}
        device = next(iter(logits.values())).device
        self.arrival = (
            torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        )

    def arrived(self, dtype: np.dtype[Any]) -> Array:
        """The records, once they have arrived."""
        if self.arrival is not None:
            self.arrival.synchronize()
        records = np.empty(len(self.rows), dtype)
        for view, fields in self.host.items():
            for field, values in fields.items():
                _check_half(view, values, self.exact[view][field])
                records[view][field] = values.numpy()[self.missing]
        return records


class _Rows:
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
class _Ranks:
    """The processes that build together: the number of this one, and how many there are."""

    number: int = 0
    size: int = 1
    group: Any = None

    def wait(self) -> None:
        """Until all have come this far."""
        if self.size > 1:
            distributed.barrier(group=self.group)


@contextmanager
def _together(group: Any) -> Iterator[_Ranks]:
    if not (distributed.is_available() and distributed.is_initialized()):
        yield _Ranks()
        return
    # Gloo: who is done first waits for the others, for longer than NCCL would let it.
    own = group or distributed.new_group(timeout=timedelta(days=365), backend="gloo")
    try:
        yield _Ranks(distributed.get_rank(own), distributed.get_world_size(own), own)
    finally:
        if own is not group:
            distributed.destroy_process_group(own)


def _compress(view: str, logits: Tensor, top_k: int | None) -> dict[str, Tensor]:
    """What is kept of logits (N, ..., C), before it is rounded."""
    if top_k is None:
        return {"logits": logits}
    count = logits.shape[-1] - top_k if logits.ndim > 1 else 0
    if count < 1:
        raise ValueError(
            f"Expected more classes than `top_k` = {top_k} in `{view}`, got logits of shape "
            f"{tuple(logits.shape)}."
        )
    logits = logits.float()
    largest, classes = logits.topk(top_k)
    others = logits.scatter(-1, classes, -torch.inf).logsumexp(-1)
    return {"logits": largest, "classes": classes.int(), "rest": others - math.log(count)}


def _expand(kept: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Logits (N, ..., C) in float32; those of the other classes are alike."""
    logits = kept["logits"].float()
    if "classes" not in kept:
        return logits
    others = kept["rest"].float().unsqueeze(-1).expand(-1, *shape)
    return others.scatter(-1, kept["classes"].long(), logits)


def _to_host(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounded to fp16 where it floats; from a GPU into pinned memory, and not waited for."""
    halves = {f: v.half() if v.is_floating_point() else v for f, v in fields.items()}
    return {f: v.to("cpu", non_blocking=v.is_cuda) for f, v in halves.items()}


def _to_device(records: Array, device: torch.device) -> dict[str, Tensor]:
    """The fields of one view's records, transferred in fp16."""
    fields = {f: torch.from_numpy(np.ascontiguousarray(records[f])) for f in records.dtype.names}
    if device.type != "cuda":
        return {f: v.to(device) for f, v in fields.items()}
    return {f: v.pin_memory().to(device, non_blocking=True) for f, v in fields.items()}


def _check_half(view: str, half: Tensor, exact: Tensor) -> None:
    if not half.is_floating_point():
        return
    if bool(half.isnan().any()):
        raise ValueError(f"Expected teacher logits that are numbers, got NaN in `{view}`.")
    infinite = half.isinf()
    if not bool(infinite.any()):
        return
    beyond = exact[infinite.to(exact.device) & (exact != -torch.inf)]
    if len(beyond):
        raise ValueError(
            "Expected teacher logits within 65504, the largest number of fp16, got "
            f"{beyond[0].item():g} in `{view}`."
        )


def _check_build(views: Any, top_k: Any) -> None:
    if not isinstance(views, ModalityViews):
        raise TypeError(f"Expected `views` to be a ModalityViews, got {describe(views)}.")
    if any(isinstance(module, Shuffle) for module in views.modules()):
        raise ValueError(
            "Expected maskers that need the sample alone, got Shuffle: the student's batches "
            "will not be those of the cache."
        )
    if top_k is not None:
        check_size("top_k", top_k)


def _check_rows(index: Any, size: int | None = None) -> Array:
    whole = isinstance(index, Tensor) and not (
        index.is_floating_point() or index.is_complex() or index.dtype == torch.bool
    )
    if not whole:
        raise TypeError(f"Expected `index` to be a tensor of integers, got {describe(index)}.")
    if index.ndim != 1 or (size is not None and len(index) != size):
        wanted = "N" if size is None else size
        raise ValueError(f"Expected `index` of shape ({wanted},), got {tuple(index.shape)}.")
    rows: Array = index.detach().cpu().long().numpy()
    return rows


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
