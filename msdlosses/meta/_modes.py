"""What a pass observes and changes in the calls of PyTorch that a loss makes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from msdlosses._torch import set_grad_enabled, set_tangents_enabled

Hook = Callable[[Tensor], Tensor | None]


class ForwardMode(TorchFunctionMode):
    """Stops tangents where gradients stop, and notes the types that operations return.

    `torch.no_grad` does not stop tangents by itself. Activations do not require gradients in a
    forward-mode pass, so hooks on their gradients are left out instead of raising errors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in (Tensor.register_hook, Tensor.retain_grad) and not args[0].requires_grad:
            return RemovableHandle(OrderedDict())
        result = function(*args, **(kwargs or {}))
        if function is set_grad_enabled:
            set_tangents_enabled(args[0])
        elif isinstance(result, Tensor):
            self.dtypes.add(result.dtype)
        return result


class WatchedHooks(TorchFunctionMode):
    """Makes the backward pass raise where a hook breaks the graph of the gradient."""

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is Tensor.register_hook:
            args = (args[0], _raise_if_detached(args[1]))
        return function(*args, **(kwargs or {}))


def _raise_if_detached(hook: Hook) -> Hook:
    def watched(gradient: Tensor) -> Tensor | None:
        result = hook(gradient)
        if result is not None and gradient.requires_grad and not result.requires_grad:
            # The words and type that PyTorch uses where it has no formula itself.
            raise NotImplementedError("derivative for a hook on a gradient is not implemented")
        return result

    return watched
