"""Nested batches: mappings of tensors, of further mappings, of lists.

An entry's name is its path in the batch, joined by dots: `text.tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import listing
from msdlosses.functional import column

Batch = Mapping[str, Any]

# Tuples of types, not unions, which torch.compile of torch 2.6 can't read.
SEQUENCES = (list, tuple)
NESTED = (Mapping, list, tuple)
ONE_BY_ONE = "Set views_per_forward=1 to run the views one by one."


def lookup(batch: Batch, name: str) -> Any:
    """The entry of that name."""
    found: Any = batch
    for key in _path(batch, name):
        found = found[key]
    return found


def replace(batch: Batch, name: str, value: Tensor) -> Batch:
    """A batch with one entry exchanged; the one handed in stays as it is."""
    replaced: Batch = _exchange(batch, _path(batch, name), value)
    return replaced


def leaves(tree: Any, name: str = "", skip: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """The names and values of the batched tensors: those of one dimension or more."""
    if name in skip:
        return
    if isinstance(tree, Tensor) and tree.ndim:
        yield name, tree
    for key, value in _items(tree):
        yield from leaves(value, _join(name, key), skip)


def drop(batch: Batch, names: Collection[str], prefix: str = "") -> Batch:
    """A batch without some of its entries."""
    return {
        key: drop(value, names, _join(prefix, key)) if isinstance(value, Mapping) else value
        for key, value in batch.items()
        if _join(prefix, key) not in names
    }


def copy(batch: Batch, shared: Collection[str]) -> Batch:
    """The same values in containers and batched tensors of its own."""

    def clone(name: str, values: Sequence[Any]) -> Any:
        batched = isinstance(values[0], Tensor) and values[0].ndim and name not in shared
        return values[0].clone() if batched else values[0]

    copied: Batch = _map(clone, [batch], skip=shared)
    return copied


def move(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device; to a GPU without waiting, where it is in pinned memory."""
    launch = torch.device(device).type == "cuda"

    def to(_: str, values: Sequence[Any]) -> Any:
        value = values[0]
        return value.to(device, non_blocking=launch) if isinstance(value, Tensor) else value

    moved: Batch = _map(to, [batch])
    return moved


def narrow(batch: Batch, start: int, stop: int | None, shared: Collection[str] = ()) -> Batch:
    """Some samples that follow each other."""

    def cut(name: str, values: Sequence[Any]) -> Any:
        value = values[0]
        batched = isinstance(value, Tensor) and value.ndim and name not in shared
        return value[start:stop] if batched else value

    narrowed: Batch = _map(cut, [batch], skip=shared)
    return narrowed


def expand(batch: Batch, size: int) -> Batch:
    """One sample as many times as there are samples, without a copy."""

    def repeat(_: str, values: Sequence[Any]) -> Any:
        value = values[0]
        batched = isinstance(value, Tensor) and value.ndim
        return value.expand(size, *value.shape[1:]) if batched else value

    expanded: Batch = _map(repeat, [batch])
    return expanded


def stack(batches: Sequence[Batch], shared: Collection[str]) -> Batch:
    """Views of one batch, one behind the other along the batch axis."""

    def join(name: str, values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor) and first.ndim and name not in shared:
            return torch.cat(tuple(values))
        if not all(_same(first, value) for value in values):
            raise ValueError(
                f"Expected `{name}`, which is not batched, to be alike in all views, got "
                f"different values. {ONE_BY_ONE}"
            )
        return first

    if len(batches) == 1:
        return batches[0]
    stacked: Batch = _map(join, batches, skip=shared, advice=ONE_BY_ONE)
    return stacked


def where(chosen: Tensor, one: Batch, other: Batch) -> Batch:
    """One batch for the chosen samples, the other for the rest."""

    def choose(_: str, values: Sequence[Any]) -> Any:
        right, left = values
        if left is right or not isinstance(left, Tensor) or not left.ndim:
            return left
        return torch.where(column(chosen, left), left, right)

    mixed: Batch = _map(choose, [other, one])
    return mixed


def _map(
    function: Callable[[str, Sequence[Any]], Any],
    trees: Sequence[Any],
    name: str = "",
    skip: Collection[str] = (),
    advice: str = "Maskers have to hand on all entries.",
) -> Any:
    """`function(name, values)` for the leaves of nested batches of one structure."""
    first = trees[0]
    if name in skip or not isinstance(first, NESTED):
        return function(name, trees)
    keys = [key for key, _ in _items(first)]
    for tree in trees[1:]:
        found = [key for key, _ in _items(tree)]
        if set(found) != set(keys):
            raise ValueError(
                f"Expected all views to hold the entries {listing(keys)}, got {listing(found)}. "
                f"{advice}"
            )
    mapped = {k: _map(function, [t[k] for t in trees], _join(name, k), skip, advice) for k in keys}
    return mapped if isinstance(first, Mapping) else _like(first, mapped.values())


def _path(tree: Any, name: str, prefix: str = "") -> tuple[Any, ...]:
    """The keys that lead to an entry."""
    keys = {str(key): key for key, _ in _items(tree)}
    if name in keys:
        return (keys[name],)
    head, _, rest = name.partition(".")
    if rest and head in keys:
        return (keys[head], *_path(tree[keys[head]], rest, _join(prefix, head)))
    raise KeyError(
        f"Expected the batch to hold `{_join(prefix, name)}`, which a masker names, "
        f"got {listing(_join(prefix, key) for key in keys)}."
    )


def _exchange(tree: Any, path: Sequence[Any], value: Any) -> Any:
    if not path:
        return value
    head, *rest = path
    new = _exchange(tree[head], rest, value)
    if isinstance(tree, Mapping):
        return {**tree, head: new}
    return _like(tree, [new if key == head else old for key, old in enumerate(tree)])


def _like(tree: list[Any] | tuple[Any, ...], values: Iterable[Any]) -> Any:
    """A list, tuple or named tuple of the same kind."""
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
        mine, others = dict(_items(one)), dict(_items(other))
        return mine.keys() == others.keys() and all(_same(mine[k], others[k]) for k in mine)
    return bool(one == other)
