"""The teacher's logits, computed once and read from disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import check_integer, check_that, check_type, expected
from msdlosses.cache._build import INDEX, Builder, all_processes, evaluation_mode
from msdlosses.cache._records import as_rows, expand, to_device
from msdlosses.cache._shards import FORMAT, MANIFEST, Shards, read_manifest
from msdlosses.cache._writing import BuildFolder
from msdlosses.masking import ModalityViews, Shuffle


class TeacherCache:
    """The teacher's logits on every view, indexed by sample: ``cache[index]``.

    Create one by `build` or `open`. The cache is memory-mapped: only what is read is loaded,
    workers of a DataLoader share it, and pickling it stores only the path.

    Shape:
        ``index``: (N,) of integers. Each view: (N, ...), as the teacher returned it, in float32.

    Example:
        >>> import tempfile
        >>> views = ModalityViews(image=lambda batch: batch, text=lambda batch: batch)
        >>> batch = {"index": torch.tensor([1, 0]), "x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
        >>> with tempfile.TemporaryDirectory() as path:
        ...     cache = TeacherCache.build(lambda x: x, views, [batch], path)
        ...     cache[torch.tensor([0])]["text"]
        tensor([[3., 4.]])

    Source: [ours].
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
        """Run the teacher over the data once, in evaluation mode, and store its logits in fp16.

        Start an interrupted build again with the same fingerprint to resume it: the teacher does
        not see batches that are on disk. Without a fingerprint the teacher cannot be known to be
        the same, and everything is built again.

        Under `torch.distributed` every process of the group calls `build`, with a folder that all
        of them can access and with its own part of the data, for instance from a
        `DistributedSampler`. The batches then need an index; a sample that several processes get
        is stored once.

        Args:
            teacher: the model. Its mode is restored afterwards.
            views: the views to store.
            loader: any iterable of batch mappings, or of pairs ``(batch, target)``;
                ``tqdm(loader)`` shows progress.
            path: the folder.
            index: the entry with the row of each sample, which the teacher does not get. Without
                an entry ``"index"``, samples are numbered in the order of the loader.
            fingerprint: identifies the logits, such as by the versions of teacher and data. A later
                `build` or `open` compares it.
            device: the device to move batches to; None does not move them. Batches in pinned memory
                (``pin_memory=True`` of a DataLoader) move while the teacher is working.
            top_k: store only the k largest logits, with their classes, and the sum of the others:
                for vocabularies whose logits do not fit on a disk. **This loses** which of the
                other classes are likely. They are read as equally likely, even classes at
                ``-inf``. Distillation by a softmax divergence is then nearly right at a
                temperature of 1. At 2 and above, where the others weigh more than the largest, its
                gradient can be more wrong than right.
            group: the processes that build together; by default all of them. They wait for each
                other, so use a gloo group with a long timeout.

        Raises:
            FileExistsError: the folder holds a finished cache.
            TypeError: views, a loader, an index, or ``top_k`` has the wrong type.
            KeyError: a batch lacks the index that was requested, that earlier batches had, or that
                several processes need.
            IndexError: an index is negative.
            ValueError: logits are NaN, too large for fp16, or change their shape; an index is
                repeated; a masker uses other samples; there are no samples; or there are no more
                than ``top_k`` classes.
        """
        check_type("views", views, ModalityViews, "a ModalityViews")
        shuffled = any(isinstance(module, Shuffle) for module in views.modules())
        check_that("`views` whose maskers depend on one sample only", not shuffled, "Shuffle")
        if top_k is not None:
            check_integer("top_k", top_k, least=1)
        folder, files = Path(path), BuildFolder(Path(path))
        with all_processes(group) as processes:
            if (folder / MANIFEST).exists():
                raise FileExistsError(
                    f"{folder} already holds a finished cache. Use `TeacherCache.open` or another "
                    "path."
                )
            processes.wait()
            if processes.rank == 0:
                names = list(views.names)
                files.begin({"fingerprint": fingerprint, "names": names, "top_k": top_k})
            processes.wait()
            builder = Builder(files, processes, index, top_k)
            processes.wait()  # all have read what is on disk, before any of them adds to it
            with evaluation_mode(teacher), torch.no_grad():
                builder.run(teacher, views, loader, device)
            processes.wait()
            if processes.rank == 0:
                files.finish(fingerprint)
            processes.wait()
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, fingerprint: str | None = None) -> TeacherCache:
        """Open a finished cache.

        Args:
            path: the folder that `build` filled.
            fingerprint: the fingerprint that the cache must have; None accepts any.

        Raises:
            FileNotFoundError: there is no finished cache.
            ValueError: the fingerprint differs, or a file is truncated or belongs to another cache.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        actual = manifest.get("fingerprint")
        same = fingerprint in (None, actual)
        check_that(f"the fingerprint {fingerprint!r} of the cache at {folder}", same, repr(actual))
        try:
            return cls(folder, manifest)
        except (KeyError, TypeError, AttributeError) as error:
            what, advice = (
                f"a complete manifest of {FORMAT!r} at {folder}",
                "Build the cache again.",
            )
            raise ValueError(expected(what, f"an error with {error}", advice)) from None

    @property
    def names(self) -> tuple[str, ...]:
        """The views."""
        return tuple(self._shards.layout.shapes)

    def __len__(self) -> int:
        """Return the number of rows: the largest index plus one."""
        return self._shards.rows

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """Return the logits of some samples: view -> (N, ...) in float32, on the index's device.

        This waits for an index on a GPU. Read in the workers of the loader if that is too slow.

        Args:
            index: (N,) of integers.

        Raises:
            TypeError: ``index`` is not a tensor of integers.
            ValueError: ``index`` has another shape.
            IndexError: a row is out of range or was never written.
        """
        records = self._shards.take(as_rows(index))
        return {
            view: expand(to_device(records[view], index.device), shape)
            for view, shape in self._shards.layout.shapes.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherCache.open, (self.path,)

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.path)!r}, views={self.names}, rows={len(self)})"
