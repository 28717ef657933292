"""Exact counts of a call: operators, bytes saved for the backward pass, and peak memory.

They are the same on every machine, so tests can assert them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = Callable[[], object]


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Counts the operators that compute, which views are not."""

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.keep = keep
        self.count = 0
        self.largest = 0
        """The number of elements of the largest tensor that was created."""
        self.created: dict[int, Tensor] = {}
        """New tensors by storage, if `keep`; kept alive, so that no storage is used again."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        inputs = {storage_id(leaf) for leaf in _tensors((args, kwargs))}
        new = [leaf for leaf in _tensors(result) if storage_id(leaf) not in inputs]
        if self.keep:  # which makes autograd copy gradients that it would otherwise take over
            self.created |= {storage_id(leaf): leaf for leaf in new}
        self.largest = max([self.largest, *(leaf.numel() for leaf in new)])
        self.count += not _is_view(function)
        return result


def count_operators(call: Call) -> int:
    """Return the number of operators that a call runs."""
    operators = Operators()
    with operators:
        call()
    return operators.count


def largest_tensor(call: Call) -> int:
    """Return the number of elements of the largest tensor that a call creates."""
    operators = Operators()
    with operators:
        call()
    return operators.largest


def saved_bytes(call: Call) -> int:
    """Return the bytes that a call creates and saves for the backward pass."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if storage_id(tensor) in operators.created:
            saved[storage_id(tensor)] = tensor
        return tensor

    with (
        Operators(keep=True) as operators,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def peak_bytes(call: Call, *, device: str = "cpu") -> int:
    """Return the bytes of tensors that a call holds at once, beyond those that existed before.

    The call must not free existing tensors, such as the gradients of an earlier call.
    """
    call()  # allocate what is allocated only once, such as the workspace of a library
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler
    events = results.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = np.cumsum([0, *(size for _, size in sorted(changes, key=lambda change: change[0]))])
    return int(held.max())


def storage_id(tensor: Tensor) -> int:
    """Identify the memory of a tensor."""
    identifier: int = tensor.untyped_storage()._cdata
    return identifier


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_view(function: Any) -> bool:
    aliases = [returned.alias_info for returned in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
