"""What an object refers to: to find the modules of a teacher and the sampler of a loader."""

from __future__ import annotations

import dis
import functools
import gc
import inspect
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEPTH = 8
LARGEST, MOST = 1000, 100_000
"""Entries of a container, and objects, to look at."""
ATOMS = (str, bytes, int, float, complex, type(None), type, Tensor)
LIBRARIES = ("torch", "numpy")
"""Packages whose functions hold no modules of the user."""


def reachable(start: Any, leaves: Callable[[Any], bool] = lambda _: False) -> Iterator[Any]:
    """Yield an object and what it refers to, the nearest first, but nothing behind leaves."""
    seen, level = {id(start)}, [start]
    for _ in range(DEPTH):
        following = []
        for value in level:
            yield value
            for child in () if leaves(value) else _children(value):
                if not isinstance(child, ATOMS) and id(child) not in seen and len(seen) < MOST:
                    seen.add(id(child))
                    following.append(child)
        level = following


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*islice(value.values(), LARGEST)]
    if isinstance(value, list | tuple | set | frozenset):
        return [*islice(value, LARGEST)]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, GeneratorType):
        return inspect.getgeneratorlocals(value).values()
    return [] if isinstance(value, ModuleType) else _of_object(value)


def _of_function(function: FunctionType) -> list[Any]:
    if from_library(function):
        return []
    used = globals_of(function).values()
    # Such as `models.teacher`, of a Python module that the function uses.
    modules = [vars(value) for value in used if isinstance(value, ModuleType)]
    names = [name for code in _codes(function.__code__) for name in code.co_names]
    attributes = [module.get(name) for module in modules for name in names]
    defaults = [function.__defaults__, function.__kwdefaults__]
    return [*cell_contents(function), *defaults, *used, *attributes, vars(function)]


def _of_object(value: Any) -> list[Any]:
    types = type(value).__mro__
    slots = [name for t in types for name in _slots(t)]
    # Objects of C, such as `enumerate(loader)`, tell only the garbage collector what they hold.
    of_python = slots or hasattr(value, "__dict__")
    values = [] if of_python else [*islice(gc.get_referents(value), LARGEST)]
    values += getattr(value, "__dict__", {}).values()
    values += [getattr(value, name) for name in slots if hasattr(value, name)]
    values += [v for t in types for v in vars(t).values() if isinstance(v, nn.Module)]
    if callable(value) and not isinstance(value, nn.Module):
        values.append(getattr(type(value).__call__, "__func__", type(value).__call__))
    return values


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else slots


def from_library(value: Any) -> bool:
    """Return whether a function is one of torch or NumPy."""
    module = getattr(value, "__module__", None) or ""
    return isinstance(value, FunctionType) and module.split(".")[0] in LIBRARIES


def globals_of(function: FunctionType) -> dict[str, Any]:
    """Return the global variables that a function uses."""
    instructions = (i for code in _codes(function.__code__) for i in dis.get_instructions(code))
    names = dict.fromkeys(i.argval for i in instructions if i.opname == "LOAD_GLOBAL")
    variables = function.__globals__
    return {name: variables[name] for name in names if name in variables}


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def cell_contents(function: FunctionType) -> list[Any]:
    """Return the variables of enclosing functions that a function uses."""
    cells = function.__closure__ or ()
    return [value for cell in cells for value in _content(cell)]


def _content(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that is not set yet
        return []
