"""Evaluation mode for a teacher that may be any callable."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, WrapperDescriptorType
from typing import Any

from torch import nn

from msdlosses.cache._reach import reachable

TRANSPARENT = (
    BuiltinFunctionType, FunctionType, MethodType, ModuleType, WrapperDescriptorType,
    partial, dict, list, set, tuple,
)  # fmt: skip


@contextmanager
def evaluation_mode(teacher: Any) -> Iterator[None]:
    """Put the modules that a teacher is, holds, or uses into evaluation mode for a while."""
    modes = {module: module.training for module in _modules_of(teacher)}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _modules_of(teacher: Any) -> Iterator[nn.Module]:
    """Yield the modules that a teacher is, holds, or uses."""
    reached = [*reachable(teacher)]
    found = [value for value in reached if isinstance(value, nn.Module)]
    if not found and not all(isinstance(value, TRANSPARENT) for value in reached):
        message = (
            "Found no modules in the teacher, which is not put into evaluation mode. Call its "
            "`eval` method, and pass a module or a function of modules to avoid this warning."
        )
        warnings.warn(message, stacklevel=4)
    for module in found:
        yield from module.modules()
