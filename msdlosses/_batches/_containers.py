"""Containers of a batch: what they hold, and new ones of the same type."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import expected, join_names

Batch = Mapping[str, Any]

# Tuples of types, because Dynamo in torch 2.6 cannot trace unions.
SEQUENCES = (list, tuple)
COPYABLE = (dict, UserDict)


def is_container(value: Any) -> bool:
    """Return whether a value holds entries, and is not an entry itself."""
    if isinstance(value, Tensor):
        return False
    if is_list(value):
        return any(_has_axes(item) for item in value)
    return isinstance(value, Mapping) or _is_dataclass(value) or _is_named_tuple(value)


def is_list(value: Any) -> bool:
    """Return whether a value is a list or a tuple without names or a meaning of its own."""
    return isinstance(value, SEQUENCES) and not (
        _is_named_tuple(value) or isinstance(value, torch.Size)
    )


def items(tree: Any) -> list[tuple[Any, Any]]:
    """Return the keys and values of a container, and nothing for any other value."""
    if not is_container(tree):
        return []
    if isinstance(tree, Mapping):
        return [(key, tree[key]) for key in tree.keys()]  # noqa: SIM118 - TensorDict iterates rows
    if isinstance(tree, SEQUENCES):
        return list(enumerate(tree))
    return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]


def rebuild(tree: Any, values: Mapping[Any, Any]) -> Any:
    """Return a container of the same type with other values.

    Records, which cannot do without a field, hold None for values that are left out.
    """
    if type(tree) is dict:
        return dict(values)
    if isinstance(tree, Mapping):
        return _rebuild_mapping(tree, values)
    if _is_named_tuple(tree):
        return type(tree)(*(values.get(index) for index in range(len(tree))))
    if isinstance(tree, SEQUENCES):
        return type(tree)(values.values())
    return _set_fields(copy.copy(tree), {key: values.get(key) for key, _ in items(tree)})


def map_entries(
    function: Callable[[str, Sequence[Any]], Any],
    trees: Sequence[Any],
    *,
    whole: Collection[str] = (),
    advice: str = "A masker has to pass on all entries.",
    name: str = "",
) -> Any:
    """Apply `function(name, values)` to the entries of nested batches with the same structure.

    Containers that are named in `whole` count as entries.
    """
    first = trees[0]
    if name in whole or not is_container(first):
        return function(name, trees)
    held = [dict(items(tree)) for tree in trees]
    for other in held[1:]:
        if set(other) != set(held[0]):
            where = f"entries {join_names(held[0])}" + (f" in `{name}`" if name else "")
            raise ValueError(expected(f"all views to hold the {where}", join_names(other), advice))
    values = {
        key: map_entries(
            function, [h[key] for h in held], whole=whole, advice=advice, name=join(name, key)
        )
        for key in held[0]
    }
    return rebuild(first, values)


def join(prefix: str, key: Any) -> str:
    """Return the name of an entry in the container named `prefix`."""
    return f"{prefix}.{key}" if prefix else str(key)


def _rebuild_mapping(tree: Any, values: Mapping[Any, Any]) -> Any:
    if hasattr(tree, "batch_size"):
        return _rebuild_tensordict(tree, values)
    if not isinstance(tree, COPYABLE):
        return type(tree)(values)
    new = copy.copy(tree)  # keeps attributes, such as the default of a defaultdict
    if _is_dataclass(tree):  # a ModelOutput, which holds every value as an attribute too
        _set_fields(new, dict.fromkeys(tree.keys() - values.keys()))
    new.clear()
    for key, value in values.items():
        new[key] = value
    return new


def _rebuild_tensordict(tree: Any, values: Mapping[Any, Any]) -> Any:
    new = tree.empty()
    sizes: list[tuple[int, ...]] = [
        getattr(value, "batch_size", getattr(value, "shape", ())) for value in values.values()
    ]
    rows = [size[0] for size in sizes if len(size)]
    if rows and tree.batch_size:
        new.batch_size = (rows[0], *tree.batch_size[1:])
    for key, value in values.items():
        new[key] = value
    return new


def _set_fields(record: Any, values: Mapping[str, Any]) -> Any:
    for name, value in values.items():
        object.__setattr__(record, name, value)  # works for frozen dataclasses too
    return record


def _has_axes(value: Any) -> bool:
    """Return whether a value is, or holds, a tensor with at least one axis."""
    if isinstance(value, Tensor):
        return value.ndim > 0
    held: Iterable[Any] = value if isinstance(value, SEQUENCES) else _values(value)
    return any(_has_axes(item) for item in held)


def _values(value: Any) -> list[Any]:
    return [item for _, item in items(value)]


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
