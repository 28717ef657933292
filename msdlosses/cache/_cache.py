"""The teacher's logits, computed once and read from disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_choice, check_integer, check_that, check_type, expected
from msdlosses._views import with_modalities
from msdlosses.cache._build import INDEX, Builder, Options
from msdlosses.cache._definition import definition
from msdlosses.cache._evaluation import evaluation_mode
from msdlosses.cache._files import FORMAT, MANIFEST, unseal
from msdlosses.cache._fingerprint import canonical, same_json
from msdlosses.cache._folder import BuildFolder
from msdlosses.cache._index import is_single, requested_rows
from msdlosses.cache._layout import NUMBERS, Layout
from msdlosses.cache._processes import all_processes
from msdlosses.cache._records import decode, expand
from msdlosses.cache._rows import RowIndex
from msdlosses.cache._shards import Shards
from msdlosses.masking import ModalityViews, Shuffle


class TeacherCache:
    """The teacher's logits on every view, indexed by sample: ``cache[index]``.

    Create one by `build` or `open`. The cache is memory-mapped: only what is read is loaded,
    workers of a DataLoader share it, and pickling it stores only the path. Each record has a
    checksum, which is verified when the record is read: damaged files raise an error.

    Shape:
        ``index``: (N,) of integers. Each view: (N, ...), as the teacher returned it, in float32.

    Example:
        >>> import tempfile
        >>> views = ModalityViews(image=lambda batch: batch, text=lambda batch: batch)
        >>> batch = {"index": torch.tensor([1, 0]), "x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
        >>> with tempfile.TemporaryDirectory() as path:
        ...     cache = TeacherCache.build(lambda x: x, views, [batch], path)
        ...     cache[0]["text"]
        tensor([3., 4.])

    Source: [ours].
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.fingerprint: Any = manifest["fingerprint"]
        self._layout = Layout.read(manifest)
        self._shards = Shards(path, self._layout, manifest["shards"])
        index = manifest["index"]
        what, count = f"records in the manifest at {path}", index["count"]
        check_that(what, 0 < count <= len(self._shards), f"{len(self._shards)} of {count}")
        self._rows = RowIndex.open(path / index["name"], self._layout, count, index["crc32"])

    @classmethod
    def build(
        cls,
        teacher: Any,
        views: ModalityViews,
        loader: Any,
        path: str | os.PathLike[str],
        *,
        index: str = INDEX,
        fingerprint: Any = None,
        device: torch.device | str | None = None,
        top_k: int | None = None,
        dtype: str = "float16",
        group: Any = None,
    ) -> TeacherCache:
        """Run the teacher over the data once, in evaluation mode, and store its logits.

        Start an interrupted build again with the same fingerprint to resume it: the teacher does
        not see batches that are on disk. Without a fingerprint the teacher cannot be known to be
        the same, and everything is built again. A build locks its folder, and writes only to an
        empty folder or to that of an interrupted build. It never changes files of others.

        A sample may occur again, as in loaders that fill their last batch. The first of its records
        counts, and the others must agree with it up to rounding.

        Under `torch.distributed` every process of the group calls `build`, with a folder that all
        of them can access and with its own part of the data, for instance from a
        `DistributedSampler`. The batches then need an index.

        Args:
            teacher: the model, or any callable. Modules that it is, holds, or uses are put into
                evaluation mode, and back into their own modes afterwards.
            views: the views to store.
            loader: any iterable of batch mappings, or of pairs ``(batch, target)``;
                ``tqdm(loader)`` shows progress.
            path: the folder.
            index: the entry with the row of each sample, which the teacher does not get. Without
                an entry ``"index"``, samples are numbered in the order of the loader, which must
                not shuffle.
            fingerprint: identifies the logits, such as by the versions of teacher and data:
                anything that JSON can hold, or paths. A later `build` or `open` compares it.
            device: the device to move batches to; None does not move them. Batches in pinned memory
                (``pin_memory=True`` of a DataLoader) move while the teacher is working.
            top_k: store only the k largest logits, with their classes, and the sum of the others:
                for vocabularies whose logits do not fit on a disk. **This loses** which of the
                other classes are likely. They are read as equally likely, even classes at
                ``-inf``. Only `KDLoss` at temperature 1 is then nearly right. The gradients of
                `ReverseKDLoss`, `JSDLoss`, and of `KDLoss` at higher temperatures can be more wrong
                than right.
            dtype: how to store logits: ``"float16"``, ``"bfloat16"`` with a wider range, or
                ``"float32"``. In the first two, large logits are stored relative to the maximum of
                their position, so that their differences are kept.
                Logits at the lowest number of their dtype, by which models mask classes, are stored
                as ``-inf``.
            group: the processes that build together; by default all of them. They have a minute to
                meet, and then wait for each other for as long as it takes.

        Raises:
            FileExistsError: the folder holds a finished cache or other files, or another process
                is building there. Builds do not see each other on file systems without locks.
            TypeError: views, a loader, an index, logits, ``top_k``, or the fingerprint has the
                wrong type.
            KeyError: a batch lacks the index that was requested, that earlier batches had, or that
                several processes need.
            IndexError: an index is negative.
            ValueError: logits are NaN, too large for ``dtype``, or change their shape; an index is
                repeated with other logits; a masker uses other samples; the loader shuffles and its
                batches have no index; the interrupted build had other views; there are no samples,
                no classes, or no more than ``top_k`` classes.
            RuntimeError: a process of the group does not call `build`.
            OSError: a file cannot be written. The build can be resumed.

        Warns:
            UserWarning: no module is found in a teacher that is neither a module nor a function.
        """
        check_type("views", views, ModalityViews, "a ModalityViews")
        shuffled = any(isinstance(module, Shuffle) for module in views.modules())
        check_that("`views` whose maskers depend on one sample only", not shuffled, "Shuffle")
        if top_k is not None:
            check_integer("top_k", top_k, least=1)
        check_choice("dtype", dtype, [*NUMBERS])
        folder, options = Path(path).absolute(), Options(index, top_k, dtype, device)
        request = {"fingerprint": canonical(fingerprint), "names": list(views.names)}
        request |= {"top_k": top_k, "dtype": dtype, "index": index}
        with all_processes(group) as processes, closing(BuildFolder(folder)) as files:
            progress = processes.first(lambda: files.begin(request, definition(views)))
            builder = Builder(folder, progress, processes, options)
            with evaluation_mode((teacher, views.output)), torch.no_grad():
                builder.run(teacher, views, loader)
            written = processes.gather(builder.writer.counts)
            counts = {name: count for each in written for name, count in each.items()}
            processes.first(lambda: files.finish(progress.mark, counts))
        return cls.open(folder)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, fingerprint: Any = None, verify: bool = False
    ) -> TeacherCache:
        """Open a finished cache.

        Args:
            path: the folder that `build` filled.
            fingerprint: the fingerprint that the cache must have; None accepts any.
            verify: read all records, and check that they are as they were written.

        Raises:
            FileNotFoundError: there is no finished cache.
            ValueError: the fingerprint differs, or a file is damaged or belongs to another cache.
        """
        folder, wanted = Path(path).absolute(), canonical(fingerprint)
        manifest = _read_manifest(folder)
        actual = manifest.get("fingerprint")
        same = wanted is None or same_json(wanted, actual)
        check_that(f"the fingerprint {wanted!r} of the cache at {folder}", same, repr(actual))
        try:
            cache = cls(folder, manifest)
        except (KeyError, TypeError, AttributeError) as error:
            what, got = f"a complete manifest of {FORMAT!r} at {folder}", f"an error with {error}"
            raise ValueError(expected(what, got, "Build the cache again.")) from None
        if verify:
            cache._shards.verify()
        return cache

    @property
    def names(self) -> tuple[str, ...]:
        """The views."""
        return tuple(self._layout.shapes)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    def __getitem__(
        self, index: Tensor | np.ndarray[Any, Any] | list[int] | int | slice
    ) -> dict[str, Tensor]:
        """Return the logits of some samples: view -> (N, ...) in float32, on the index's device.

        This waits for an index on a GPU. Read in the workers of the loader if that is too slow.

        Args:
            index: (N,) of integers, as a tensor, array, or list; a slice of the rows, all of which
                must exist; or one integer, which returns (...) for each view.

        Raises:
            TypeError: ``index`` is not made of integers.
            ValueError: ``index`` has another shape, or a record that it asks for is damaged.
            IndexError: a row is out of range or was never written.
        """
        rows = requested_rows(index, self._rows.last + 1, len(self))
        records = self._shards.take(self._rows.find(rows))
        what, advice = f"the records of these rows in {self.path}", "Build the cache again."
        check_that(what, (records["row"] == rows).all(), "others", advice)
        device = index.device if isinstance(index, Tensor) else torch.device("cpu")
        views = {
            view: expand(decode(self._layout, view, records, device), shape)
            for view, shape in self._layout.shapes.items()
        }
        if is_single(index):
            views = {view: x[0] for view, x in views.items()}
        return with_modalities(views, self._layout.modalities)

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherCache.open, (self.path,)

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.path)!r}, views={self.names}, rows={len(self)})"


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished cache."""
    path = folder / MANIFEST
    if not path.is_file():
        what, advice = f"a finished cache at {folder}", "Call `TeacherCache.build` first."
        raise FileNotFoundError(expected(what, f"no {MANIFEST}", advice))
    manifest = unseal(path.read_bytes())
    what = f"a manifest of {FORMAT!r} at {path}"
    check_that(what, manifest is not None, "something else or a damaged one")
    return manifest or {}
