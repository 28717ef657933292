"""What views do, as digests: to see whether they have changed between two builds.

Maskers are compared by their configuration and tensors, and functions by their name, their code,
and the simple values that they use. Models and other objects that functions use are compared by
their type only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msdlosses.cache._layout import bytes_of
from msdlosses.cache._reach import cell_contents, from_library, globals_of
from msdlosses.masking import ModalityViews

SIMPLE = (bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, np.generic)
STRUCTURED = (Mapping, list, tuple, partial, MethodType, CodeType, FunctionType)
VALUES = (*SIMPLE, Tensor, np.ndarray, list, tuple, dict, set, frozenset, FunctionType, partial)
DEPTH, DEPTH_OF_OBJECTS = 8, 3
"""How far to follow references, within objects of the user less far."""


def definition(views: ModalityViews, positions: Any = None) -> dict[str, str]:
    """Return a digest of each masker and of each option that changes what is stored."""
    options = {**dict(_attributes(views)), "positions": positions}
    options.pop("views_per_forward")
    options |= {name: frozenset(options[name]) for name in ("ignore", "shared")}
    parts = {f"`{name}`": _describe(value) for name, value in options.items()}
    parts |= {f"the masker of `{m}`": _describe_module(f) for m, f in views.maskers.items()}
    return {
        name: hashlib.sha256("\n".join(lines).encode()).hexdigest() for name, lines in parts.items()
    }


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module holds apart from what every module has."""
    common = vars(nn.Module()).keys()
    yield from ((name, value) for name, value in vars(module).items() if name not in common)


def _describe_module(module: nn.Module) -> Iterator[str]:
    yield _name(type(module))
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for name, value in (*_attributes(module), *tensors):
        yield name
        yield from _describe(value)
    for name, child in module.named_children():
        yield name
        yield from _describe_module(child)


def _describe(value: Any, depth: int = DEPTH) -> Iterator[str]:
    """Describe a value, line by line."""
    yield _name(type(value))
    if depth == 0 or isinstance(value, nn.Module):
        return
    if isinstance(value, SIMPLE):
        yield repr(value)
    elif isinstance(value, Tensor | np.ndarray):
        yield from _describe_tensor(torch.as_tensor(value))
    elif isinstance(value, type | ModuleType) or from_library(value):
        yield _name(value)
    elif isinstance(value, set | frozenset):
        yield from sorted("\n".join(_describe(item, depth - 1)) for item in value)
    else:
        inner = depth - 1 if isinstance(value, STRUCTURED) else min(depth - 1, DEPTH_OF_OBJECTS)
        for part in _parts(value):
            yield from _describe(part, inner)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from (part for item in value.items() for part in item)
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, FunctionType):
        yield from (_name(value), value.__code__, value.__defaults__, value.__kwdefaults__)
        yield from cell_contents(value)
        yield from (v for v in globals_of(value).values() if isinstance(v, VALUES))
    else:
        yield from (getattr(value, "__qualname__", None), getattr(value, "__dict__", None))


def _describe_tensor(value: Tensor) -> Iterator[str]:
    digest = hashlib.sha256(bytes_of(value).data).hexdigest()
    yield f"{value.dtype} {tuple(value.shape)} {digest}"


def _name(value: Any) -> str:
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    return f"{module}.{name or value.__name__}"
