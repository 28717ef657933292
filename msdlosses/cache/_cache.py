"""The teacher's logits or hidden states, computed once and read from disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import (
    check_callable,
    check_choice,
    check_integer,
    check_that,
    check_type,
    expected,
)
from msdlosses.cache._build import INDEX, Builder, Options
from msdlosses.cache._definition import definition
from msdlosses.cache._evaluation import evaluation_mode
from msdlosses.cache._files import FORMAT, MANIFEST, unseal
from msdlosses.cache._fingerprint import canonical, same_json
from msdlosses.cache._folder import BuildFolder
from msdlosses.cache._index import is_single
from msdlosses.cache._layout import NUMBERS
from msdlosses.cache._processes import all_processes
from msdlosses.cache._reading import Reader
from msdlosses.cache._selection import check_mask
from msdlosses.masking import ModalityViews, Shuffle

Index = Tensor | np.ndarray[Any, Any] | list[int] | int | slice


class TeacherCache:
    """The teacher's logits on every view, indexed by sample: ``cache[index]``.

    Create one by `build` or `open`. The cache is memory-mapped: only what is read is loaded,
    workers of a DataLoader share it, and pickling it stores only the path. Each record has a
    checksum, which is verified when the record is read: damaged files raise an error.

    Of sequences it can store the positions that count, such as the tokens of an answer, without
    padding: see ``positions`` and `read`. Views that return `LinearLogits` are stored as hidden
    states, and their head once. They need much less space than logits, and are as exact as
    ``dtype`` at every temperature.

    Shape:
        ``index``: (N,) of integers. Each view: (N, ...), as the teacher returned it: a tensor in
        float32, or `LinearLogits` in the dtype of the head.

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
        self._reader = Reader(path, manifest)

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
        positions: Callable[[Any], Tensor] | None = None,
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
            positions: a function of the loader's batch that returns (N, L) of bool, such as
                ``lambda batch: batch["labels"][:, 1:] != -100``. Only these positions are stored,
                as many as each sample has, and `read` returns them.
            dtype: how to store logits or hidden states: ``"float16"``, ``"bfloat16"`` with a wider
                range, or ``"float32"``. In the first two, large logits are stored relative to the
                maximum of their position, so that their differences are kept. Logits at the lowest
                number of their dtype, by which models mask classes, are stored as ``-inf``.
            group: the processes that build together; by default all of them. They have a minute to
                meet, and then wait for each other for as long as it takes.

        Raises:
            FileExistsError: the folder holds a finished cache or other files, or another process
                is building there. Builds do not see each other on file systems without locks.
            TypeError: views, a loader, an index, logits, ``top_k``, ``positions`` or what it
                returns, or the fingerprint has the wrong type.
            KeyError: a batch lacks the index that was requested, that earlier batches had, or that
                several processes need.
            IndexError: an index is negative.
            ValueError: logits are NaN, too large for ``dtype``, or change their shape; an index is
                repeated with other logits; a masker uses other samples; the loader shuffles and its
                batches have no index; the interrupted build had other views; there are no samples,
                no classes, or no more than ``top_k`` classes; ``positions`` and logits differ in
                shape; a head changes; ``top_k`` is combined with ``positions`` or `LinearLogits`.
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
            check_that("no `top_k` with `positions`", positions is None, top_k)
        check_callable("positions", positions, optional=True)
        check_choice("dtype", dtype, [*NUMBERS])
        folder, options = Path(path).absolute(), Options(index, top_k, positions, dtype, device)
        request = {"fingerprint": canonical(fingerprint), "names": list(views.names)}
        request |= {"top_k": top_k, "dtype": dtype, "index": index}
        with all_processes(group) as processes, closing(BuildFolder(folder)) as files:
            progress = processes.first(lambda: files.begin(request, definition(views, positions)))
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
            verify: read all records and heads, and check that they are as they were written.

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
            cache._reader.verify()
        return cache

    @property
    def names(self) -> tuple[str, ...]:
        """The views."""
        return tuple(self._reader.layout.shapes)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._reader.rows)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Return the logits of some samples: view -> (N, ...), on the index's device.

        They are tensors in float32, or `LinearLogits` in the dtype of their head. This waits for an
        index on a GPU. Read in the workers of the loader if that is too slow.

        Args:
            index: (N,) of integers, as a tensor, array, or list; a slice of the rows, all of which
                must exist; or one integer, which returns (...) for each view.

        Raises:
            TypeError: ``index`` is not made of integers, or the cache holds positions.
            ValueError: ``index`` has another shape, or a record that it asks for is damaged.
            IndexError: a row is out of range or was never written.
        """
        if self._reader.layout.positions:
            raise TypeError(
                expected("`cache.read(index, mask)` for a cache of positions", "an index")
            )
        rows = self._reader.requested(index)
        device = index.device if isinstance(index, Tensor) else torch.device("cpu")
        return self._logits(self._reader.read_samples(rows, device), index)

    def read(self, index: Index, mask: Tensor) -> dict[str, Any]:
        """Return the logits at the stored positions of some samples: view -> (N, L, ...).

        Where the mask is True for the k-th time in a sample, its k-th stored position is returned,
        and zeros elsewhere: pass ``valid=`` or ``ignore_index=`` to the loss. So the padding may
        differ from that of the build. The logits are on the mask's device, which this waits for.

        Args:
            index: (N,) of integers, as for ``cache[index]``.
            mask: (N, L) of bool, or (L,) for an index of one integer.

        Raises:
            TypeError: ``index`` is not made of integers, ``mask`` is not boolean, or the cache
                holds whole samples.
            ValueError: the mask has another number of positions than were stored, or another
                shape; or a record is damaged.
            IndexError: a row is out of range or was never written.

        Example:
            >>> import tempfile
            >>> views = ModalityViews(image=lambda batch: batch, text=lambda batch: batch)
            >>> batch = {"index": torch.tensor([0]), "x": torch.tensor([[[1.0], [2.0], [3.0]]])}
            >>> with tempfile.TemporaryDirectory() as path:
            ...     cache = TeacherCache.build(lambda x: x, views, [batch], path,
            ...                                positions=lambda batch: batch["x"][..., 0] > 1)
            ...     cache.read([0], torch.tensor([[True, False, True, False]]))["full"][..., 0]
            tensor([[2., 0., 3., 0.]])
        """
        if not self._reader.layout.positions:
            raise TypeError(expected("`cache[index]` for a cache of whole samples", "`cache.read`"))
        rows, single = self._reader.requested(index), is_single(index)
        check_mask("mask", mask, len(rows), single=single)
        values = self._reader.read_positions(rows, mask.unsqueeze(0) if single else mask)
        return self._logits(values, index)

    def _logits(self, values: Mapping[str, Tensor], index: Index) -> dict[str, Any]:
        single = is_single(index)
        return self._reader.logits({v: x[0] if single else x for v, x in values.items()})

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
