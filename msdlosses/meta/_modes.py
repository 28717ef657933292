"""What a pass observes and changes in the calls of PyTorch that a loss makes."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from inspect import currentframe
from types import CodeType, FrameType
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from msdlosses._torch import set_grad_enabled, set_tangents_enabled

Hook = Callable[[Tensor], Tensor | None]
Line = tuple[CodeType, int]


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


class HeldConstants(TorchFunctionMode):
    """Makes `detach` return the same values in each pass, as a gradient sees them.

    The calls of a line of code are held in their order. Lines that only a pass without gradients
    runs, such as the plain formula of a loss with a closed form, return their own values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.incomplete = False
        """Whether a pass computed numbers where gradients are disabled, which are not held."""
        self._disabled = False
        self._values: dict[Line, list[Tensor | None]] = {}
        self._left: dict[Line, deque[Tensor | None]] | None = None

    def rewind(self) -> None:
        """Return the values of the first pass from now on."""
        self._left = {line: deque(values) for line, values in self._values.items()}

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is set_grad_enabled:  # not called for the forward of custom Functions
            self._disabled = not args[0]
        if not isinstance(result, Tensor):
            return result
        if function is Tensor.detach:
            caller = cast(FrameType, cast(FrameType, currentframe()).f_back)
            return self._held((caller.f_code, caller.f_lineno), args[0], result)
        if self._disabled and result.is_floating_point():
            self.incomplete |= all(result is not arg for arg in args)  # and not in place
        return result

    def _held(self, line: Line, source: Tensor, value: Tensor) -> Tensor:
        if self._left is None:
            moves = source.requires_grad  # by the student's parameters
            self._values.setdefault(line, []).append(value.clone() if moves else None)
            return value
        left = self._left.get(line)
        held = left.popleft() if left else None
        return value if held is None or held.shape != value.shape else held.clone()


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
