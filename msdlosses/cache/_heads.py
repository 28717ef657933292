"""The heads of hidden states: each of their tensors is stored once, under its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_that, expected
from msdlosses._linear import LinearLogits
from msdlosses.cache._files import HEAD, write_atomically
from msdlosses.cache._layout import Head, Layout, StoredTensor, bytes_of, require_file


class HeadWriter:
    """Describes the heads of a build, which must stay the same, and writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: list[tuple[Tensor, StoredTensor]] = []

    def describe(self, logits: Mapping[str, Any]) -> dict[str, Head]:
        """Return the head of each view that has hidden states."""
        heads = {v: x for v, x in logits.items() if isinstance(x, LinearLogits)}
        return {view: self._head(x) for view, x in heads.items()}

    def _head(self, logits: LinearLogits) -> Head:
        bias = None if logits.bias is None else self._stored(logits.bias)
        softcap = None if logits.softcap is None else float(logits.softcap)
        return Head(
            self._stored(logits.weight), bias, float(logits.scale), softcap, logits.shape[-1]
        )

    def _stored(self, tensor: Tensor) -> StoredTensor:
        for known, stored in self.known:
            if _equal(known, tensor):
                return stored
        stored = stored_tensor(tensor)
        self.known.append((tensor, stored))
        return stored

    def write(self, layout: Layout) -> None:
        """Write tensors that are not on disk. Processes that build together have the same ones."""
        for tensor, stored in self.known:
            path = path_of(self.folder, stored)
            if not path.exists():
                write_atomically(path, layout.header, bytes_of(tensor).data)

    def check_unchanged(self) -> None:
        """Check that nobody has changed a tensor in place during the build."""
        same = all(stored_tensor(tensor) == stored for tensor, stored in self.known)
        check_that("heads that stay the same while the teacher runs", same, "a change in place")


class Heads:
    """The heads of a finished cache, loaded when they are needed, once for each device."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self.loaded: dict[tuple[StoredTensor, torch.device], Tensor] = {}
        for stored in tensors_of(layout):
            require_file(path_of(folder, stored), layout, stored.nbytes)

    def apply(self, view: str, hidden: Tensor) -> LinearLogits:
        """Return the logits of hidden states."""
        head = self.layout.heads[view]
        weight = self._load(head.weight, hidden.device)
        bias = None if head.bias is None else self._load(head.bias, hidden.device)
        return LinearLogits(
            hidden.to(weight.dtype),
            weight,
            bias,
            scale=head.scale,
            softcap=head.softcap,
            classes=head.classes,
        )

    def _load(self, stored: StoredTensor, device: torch.device) -> Tensor:
        key = (stored, device)
        if key not in self.loaded:
            self.loaded[key] = read_tensor(self.folder, self.layout, stored).to(device)
        return self.loaded[key]

    def verify(self) -> None:
        """Check all tensors."""
        for stored in tensors_of(self.layout):
            read_tensor(self.folder, self.layout, stored)


def heads_are_intact(folder: Path, layout: Layout) -> bool:
    """Return whether an interrupted build has left its heads as they were written."""
    try:
        Heads(folder, layout).verify()
    except (ValueError, OSError):
        return False
    return True


def read_tensor(folder: Path, layout: Layout, stored: StoredTensor) -> Tensor:
    """Map a tensor, and check that it is as it was written."""
    path = path_of(folder, stored)
    # Copy-on-write, because PyTorch has no read-only tensors. Processes share what they read.
    data = np.asarray(np.memmap(path, np.uint8, "c", len(layout.header), (stored.nbytes,)))
    if hashlib.sha256(data.data).hexdigest() != stored.digest:
        raise ValueError(expected(f"an intact head in {path}", "a damaged one", "Build it again."))
    return torch.from_numpy(data).view(stored.torch_dtype).reshape(stored.shape)


def tensors_of(layout: Layout) -> list[StoredTensor]:
    tensors = (x for head in layout.heads.values() for x in (head.weight, head.bias))
    return [*dict.fromkeys(x for x in tensors if x is not None)]


def stored_tensor(tensor: Tensor) -> StoredTensor:
    digest = hashlib.sha256(bytes_of(tensor).data).hexdigest()
    return StoredTensor(digest, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def path_of(folder: Path, stored: StoredTensor) -> Path:
    return folder / f"{stored.digest[:16]}{HEAD}"


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether tensors are equal, at once if they share their memory."""
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    shared = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return shared or torch.equal(one, other)
