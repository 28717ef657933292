"""Nested batches: mappings of tensors, of further mappings, and of lists.

The name of an entry is its path in the batch, joined by dots, such as `text.tokens`. A tensor with
at least one dimension is batched along its first axis, unless it is shared by all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import check_that, check_type, expected, join_names
from msdlosses._masks import unsqueeze_right

Batch = Mapping[str, Any]

# Tuples of types, because Dynamo in torch 2.6 cannot trace unions.
SEQUENCES = (list, tuple)
NESTED = (Mapping, list, tuple)
SEPARATELY = "Set views_per_forward=1 to run the views separately."


def lookup(batch: Batch, name: str) -> Any:
    """Return the entry of that name."""
    entry: Any = batch
    for key in _path(batch, name):
        entry = entry[key]
    return entry


def replace(batch: Batch, name: str, value: Tensor) -> Batch:
    """Return a batch with one entry replaced. The argument does not change."""
    replaced: Batch = _replace(batch, _path(batch, name), value)
    return replaced


def batched_tensors(
    tree: Any, name: str = "", skip: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of batched tensors."""
    if name in skip:
        return
    if isinstance(tree, Tensor) and tree.ndim:
        yield name, tree
    for key, value in _items(tree):
        yield from batched_tensors(value, _join(name, key), skip)


def size_and_device(batch: Any, skip: Collection[str]) -> tuple[int, torch.device]:
    """Return the number of samples in a batch and the device of its first tensor."""
    check_type("batch", batch, Mapping, "a mapping")
    tensors = dict(batched_tensors(batch, skip=skip))
    check_that("`batch` to hold a batched tensor", tensors)
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if len(tensor) != len(tensors[first]):
            got = f"{len(tensors[first])} for `{first}` and {len(tensor)} for `{name}`"
            advice = "Name entries that are not batched in `shared` or `ignore`."
            raise ValueError(expected("batched entries of equal length", got, advice))
    return len(tensors[first]), tensors[first].device


def drop_entries(batch: Batch, names: Collection[str], prefix: str = "") -> Batch:
    """Return a batch without some of its entries."""
    return {
        key: drop_entries(value, names, _join(prefix, key)) if isinstance(value, Mapping) else value
        for key, value in batch.items()
        if _join(prefix, key) not in names
    }


def map_batched(
    function: Callable[[Tensor], Tensor], batch: Batch, shared: Collection[str] = ()
) -> Batch:
    """Apply a function to the batched tensors, in new containers."""

    def apply(name: str, values: Sequence[Any]) -> Any:
        batched = isinstance(values[0], Tensor) and values[0].ndim and name not in shared
        return function(values[0]) if batched else values[0]

    mapped: Batch = _map(apply, [batch], skip=shared)
    return mapped


def move(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch to a device: from pinned memory to a GPU without waiting."""
    non_blocking = torch.device(device).type == "cuda"

    def to_device(_: str, values: Sequence[Any]) -> Any:
        value = values[0]
        return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value

    moved: Batch = _map(to_device, [batch])
    return moved


def stack(batches: Sequence[Batch], shared: Collection[str]) -> Batch:
    """Concatenate views of one batch along the batch axis."""

    def concatenate(name: str, values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor) and first.ndim and name not in shared:
            return torch.cat(tuple(values))
        if not all(_same(first, value) for value in values):
            raise ValueError(expected(f"one `{name}` in all views", "different values", SEPARATELY))
        return first

    if len(batches) == 1:
        return batches[0]
    stacked: Batch = _map(concatenate, batches, skip=shared, advice=SEPARATELY)
    return stacked


def select(mask: Tensor, chosen: Batch, other: Batch) -> Batch:
    """Return one batch for the samples in the mask and the other batch for the rest."""

    def where(_: str, values: Sequence[Any]) -> Any:
        outside, inside = values
        if inside is outside or not isinstance(inside, Tensor) or not inside.ndim:
            return inside
        return torch.where(unsqueeze_right(mask, inside.ndim), inside, outside)

    mixed: Batch = _map(where, [other, chosen])
    return mixed


def _map(
    function: Callable[[str, Sequence[Any]], Any],
    trees: Sequence[Any],
    name: str = "",
    skip: Collection[str] = (),
    advice: str = "A masker has to pass on all entries.",
) -> Any:
    """Apply `function(name, values)` to the leaves of nested batches with the same structure."""
    first = trees[0]
    if name in skip or not isinstance(first, NESTED):
        return function(name, trees)
    keys = [key for key, _ in _items(first)]
    for tree in trees[1:]:
        others = [key for key, _ in _items(tree)]
        if set(others) != set(keys):
            what = f"all views to hold the entries {join_names(keys)}"
            raise ValueError(expected(what, join_names(others), advice))
    mapped = {k: _map(function, [t[k] for t in trees], _join(name, k), skip, advice) for k in keys}
    return mapped if isinstance(first, Mapping) else _sequence_like(first, mapped.values())


def _path(tree: Any, name: str, prefix: str = "") -> tuple[Any, ...]:
    """Return the keys that lead to an entry."""
    keys = {str(key): key for key, _ in _items(tree)}
    if name in keys:
        return (keys[name],)
    head, _, rest = name.partition(".")
    if rest and head in keys:
        return (keys[head], *_path(tree[keys[head]], rest, _join(prefix, head)))
    known = join_names(_join(prefix, key) for key in keys)
    raise KeyError(expected(f"the batch to hold the masked entry `{_join(prefix, name)}`", known))


def _replace(tree: Any, path: Sequence[Any], value: Any) -> Any:
    if not path:
        return value
    head, *rest = path
    new = _replace(tree[head], rest, value)
    if isinstance(tree, Mapping):
        return {**tree, head: new}
    return _sequence_like(tree, [new if key == head else old for key, old in enumerate(tree)])


def _sequence_like(tree: list[Any] | tuple[Any, ...], values: Iterable[Any]) -> Any:
    """Return a list, tuple, or named tuple of the same type."""
    make = getattr(tree, "_make", type(tree))
    return make(values)


def _items(tree: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        return tree.items()
    return enumerate(tree) if isinstance(tree, SEQUENCES) else ()


def _join(prefix: str, key: Any) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def _same(one: Any, other: Any) -> bool:
    if one is other or isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    if isinstance(one, NESTED) and isinstance(other, type(one)):
        left, right = dict(_items(one)), dict(_items(other))
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    return bool(one == other)
