"""Entries of a batch by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from msdlosses._batches._containers import Batch, is_container, items, join, rebuild
from msdlosses._checks import expected, join_names


def lookup(batch: Batch, name: str) -> Any:
    """Return the entry of that name."""
    entry: Any = batch
    for key in _path(batch, name):
        entry = dict(items(entry))[key]
    return entry


def replace(batch: Batch, name: str, value: Tensor) -> Batch:
    """Return a batch with one entry replaced. The argument does not change."""
    replaced: Batch = _replace(batch, _path(batch, name), value)
    return replaced


def entries(tree: Any, name: str = "", whole: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of all entries. Containers in `whole` count as entries."""
    if name in whole or not is_container(tree):
        yield name, tree
        return
    for key, value in items(tree):
        yield from entries(value, join(name, key), whole)


def batched_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of the tensors with at least one axis."""
    for key, entry in entries(tree, name):
        if isinstance(entry, Tensor) and entry.ndim:
            yield key, entry


def drop_entries(tree: Any, names: Collection[str], prefix: str = "") -> Any:
    """Return a batch without some of its entries. Containers that lose none stay the same."""
    inside = f"{prefix}." if prefix else ""
    if not is_container(tree) or not any(name.startswith(inside) for name in names):
        return tree
    kept = {
        key: drop_entries(value, names, join(prefix, key))
        for key, value in items(tree)
        if join(prefix, key) not in names
    }
    return rebuild(tree, kept)


def covering(name: str, names: Collection[str]) -> str | None:
    """Return which of the names is that of an entry, or of the nearest container around it."""
    if not names or name in names:
        return name if names else None
    found = [other for other in names if f"{name}.".startswith(f"{other}.")]
    # Dynamo in torch 2.6 does not know max(key=...).
    return sorted(found, key=len)[-1] if found else None


def _path(tree: Any, name: str, prefix: str = "") -> tuple[Any, ...]:
    """Return the keys that lead to an entry."""
    keys = {str(key): key for key, _ in items(tree)}
    if name in keys:
        return (keys[name],)
    held = dict(items(tree))
    # A key may itself contain dots.
    for head in sorted(keys, key=len, reverse=True):
        if name.startswith(f"{head}."):
            rest = name.removeprefix(f"{head}.")
            return (keys[head], *_path(held[keys[head]], rest, join(prefix, head)))
    known = join_names(join(prefix, key) for key in keys)
    raise KeyError(expected(f"the batch to hold the masked entry `{join(prefix, name)}`", known))


def _replace(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    held = dict(items(tree))
    held[path[0]] = _replace(held[path[0]], path[1:], value)
    return rebuild(tree, held)
