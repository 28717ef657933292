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


def lookup(batch: Batch, name: str) -> Any:
    """The entry of that name."""
    head, _, rest = name.partition(".")
    if name in batch:
        return batch[name]
    if rest and head in batch and isinstance(batch[head], Mapping):
        return lookup(batch[head], rest)
    raise KeyError(
        f"Expected the batch to hold `{name}`, which a masker names, got {listing(batch)}."
    )


def replace(batch: Batch, name: str, value: Tensor) -> Batch:
    """A batch with one entry exchanged; the one handed in stays as it is."""
    if name in batch:
        return {**batch, name: value}
    head, _, rest = name.partition(".")
    return {**batch, head: replace(batch[head], rest, value)}


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


def copy(batch: Batch) -> Batch:
    """The same tensors in new containers."""
    copied: Batch = _map(lambda _, values: values[0], [batch])
    return copied


def stack(batches: Sequence[Batch], shared: Collection[str]) -> Batch:
    """Views of one batch, one behind the other along the batch axis."""

    def join(name: str, values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor) and first.ndim and name not in shared:
            return torch.cat(tuple(values))
        if not all(_same(first, value) for value in values):
            raise ValueError(
                f"Expected `{name}`, which is not batched, to be alike in all views, got "
                "different values. Set views_per_forward=1 to run the views one by one."
            )
        return first

    stacked: Batch = _map(join, batches, skip=shared) if len(batches) > 1 else batches[0]
    return stacked


def where(chosen: Tensor, one: Batch, other: Batch) -> Batch:
    """One batch for the chosen samples, the other for the rest."""

    def choose(_: str, values: Sequence[Any]) -> Any:
        left, right = values
        if left is right or not isinstance(left, Tensor) or not left.ndim:
            return left
        return torch.where(column(chosen, left), left, right)

    mixed: Batch = _map(choose, [one, other])
    return mixed


def _map(
    function: Callable[[str, Sequence[Any]], Any],
    trees: Sequence[Any],
    name: str = "",
    skip: Collection[str] = (),
) -> Any:
    """`function(name, values)` for the leaves of nested batches of one structure."""
    first = trees[0]
    if name in skip or not isinstance(first, Mapping | list | tuple):
        return function(name, trees)
    keys = [key for key, _ in _items(first)]
    for tree in trees[1:]:
        found = [key for key, _ in _items(tree)]
        if set(found) != set(keys):
            raise ValueError(
                f"Expected all views to hold the entries {listing(keys)}, got {listing(found)}. "
                "Set views_per_forward=1 to run the views one by one."
            )
    mapped = {k: _map(function, [t[k] for t in trees], _join(name, k), skip) for k in keys}
    return mapped if isinstance(first, Mapping) else list(mapped.values())


def _items(tree: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        return tree.items()
    return enumerate(tree) if isinstance(tree, list | tuple) else ()


def _join(prefix: str, key: Any) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def _same(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, Tensor) and bool(one == other))
