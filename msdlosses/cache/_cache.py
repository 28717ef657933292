"""The teacher's logits, computed once and read from disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import check_size, describe
from msdlosses.cache._build import INDEX, Builder, evaluating, together
from msdlosses.cache._records import check_rows, expand, to_device
from msdlosses.cache._shards import FORMAT, MANIFEST, Build, Shards, read_manifest
from msdlosses.masking import ModalityViews, Shuffle


class TeacherCache:
    """The teacher's logits of every view, by the sample's index: `cache[index]`.

    Make one with `build` or `open`. It is memory-mapped: only what is read is loaded, workers of
    a DataLoader share it, and pickling hands on the path alone.

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
            top_k: keep the k largest logits alone, with their classes, and what the others add
                up to: for vocabularies whose logits would not fit on a disk. **What is lost**:
                which of the other classes are likely. They are read as equally likely, classes
                at ``-inf`` among them. So distillation by a divergence of softmax is nearly right
                at a temperature of 1; at 2 and above, where the others weigh more than the
                largest, its gradient can be more wrong than right.
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
        with together(group) as ranks:
            if (folder / MANIFEST).exists():
                raise FileExistsError(
                    f"Expected no cache at {folder}, got a finished one: open it."
                )
            ranks.wait()
            if ranks.number == 0:
                names = list(views.names)
                files.begin({"fingerprint": fingerprint, "names": names, "top_k": top_k})
            ranks.wait()
            builder = Builder(files, ranks, index, top_k)
            ranks.wait()  # all have read what was there, before any adds to it
            with evaluating(teacher), torch.no_grad():
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
        records = self._shards.take(check_rows(index))
        return {
            view: expand(to_device(records[view], index.device), shape)
            for view, shape in self._shards.layout.shapes.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return TeacherCache.open, (self.path,)

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.path)!r}, views={self.names}, rows={len(self)})"


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
