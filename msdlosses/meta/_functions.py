"""Forward mode for custom Functions without one, by differences of their forward.

This is accurate enough to tell whether their backward is the derivative of their forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from msdlosses.meta._state import generators_of

ROUNDING = 1e-5
"""The error of the differences, relative and at most, without half precision."""
PARTS = ("forward", "setup_context", "jvp")
_lock = RLock()


class _Call(NamedTuple):
    """A call of a forward, to be repeated nearby with the same random numbers."""

    forward: Callable[..., Any]
    inputs: tuple[Any, ...]
    generators: tuple[torch.Generator, ...]
    random: tuple[Tensor, ...]

    def shifted(self, step: Tensor, tangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
        for generator, state in zip(self.generators, self.random, strict=True):
            generator.set_state(state)
        context: Any = FunctionCtx()
        context.needs_input_grad = (False,) * len(self.inputs)
        pairs = zip(self.inputs, tangents, strict=True)
        outputs = self.forward(context, *(x if t is None else x + step * t for x, t in pairs))
        return outputs if isinstance(outputs, tuple) else (outputs,)


@contextmanager
def with_forward_mode(functions: Iterable[type[Function]]) -> Iterator[None]:
    """Give custom Functions a forward mode, as long as they have none."""
    with _lock, ExitStack() as stack:
        for function in functions:
            stack.callback(_replace, function, _own_parts(function))
            _replace(function, _replacements(function))
        yield


def _own_parts(function: type[Function]) -> dict[str, Any]:
    """Return what a class defines itself; its bases may define the rest."""
    return {name: vars(function).get(name) for name in PARTS}


def _replace(function: type[Function], parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        if part is not None:
            setattr(function, name, part)
        elif name in vars(function):
            delattr(function, name)


def lacks_forward_mode(function: type[Function]) -> bool:
    """Return whether a custom Function, which is not one of PyTorch, has no forward mode."""
    return function.jvp is Function.jvp and not function.__module__.startswith("torch.")


def _replacements(function: type[Function]) -> dict[str, Any]:
    """Return a forward that remembers its inputs, and a `jvp` that repeats it at two points."""
    forward = _in_one_part(function)

    def remembering_forward(ctx: Any, *inputs: Any) -> Any:
        devices = {x.device for x in inputs if isinstance(x, Tensor)}
        generators = generators_of(devices)
        plain = tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)
        states = tuple(generator.get_state() for generator in generators)
        ctx.msdlosses_call = _Call(forward, plain, generators, states)
        outputs = forward(ctx, *inputs)
        if isinstance(outputs, tuple):
            return tuple(_unaliased(output) for output in outputs)
        return _unaliased(outputs)

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        derivatives = _central_differences(ctx.msdlosses_call, tangents)
        return derivatives if len(derivatives) > 1 else derivatives[0]

    return {
        "forward": staticmethod(remembering_forward),
        "setup_context": Function.setup_context,
        "jvp": staticmethod(jvp),
    }


def _in_one_part(function: type[Function]) -> Callable[..., Any]:
    """Return a forward that takes the context, also for Functions with a `setup_context`."""
    forward, setup_context = function.forward, function.setup_context
    if setup_context is Function.setup_context:
        return forward

    def combined(ctx: Any, *inputs: Any) -> Any:
        outputs = forward(*inputs)
        setup_context(ctx, inputs, outputs)
        return outputs

    return combined


@torch.no_grad()
def _central_differences(
    call: _Call, tangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    pairs = [(x, t) for x, t in zip(call.inputs, tangents, strict=True) if t is not None]
    if any(torch.finfo(x.dtype).bits < 32 for x, _ in pairs):
        raise RuntimeError("Differences are not accurate in half precision.")
    epsilon = max(torch.finfo(x.dtype).eps for x, _ in pairs)
    size, speed = (_largest(tensors) for tensors in zip(*pairs, strict=True))
    step = epsilon ** (1 / 3) * size / speed
    ahead, behind = call.shifted(step, tangents), call.shifted(-step, tangents)
    return tuple(
        (a - b) / (2 * step) if isinstance(a, Tensor) and a.is_floating_point() else None
        for a, b in zip(ahead, behind, strict=True)
    )


def _largest(tensors: Sequence[Tensor]) -> Tensor:
    tiny = torch.finfo(tensors[0].dtype).tiny
    return torch.stack([t.abs().amax() for t in tensors]).amax().clamp(min=tiny)


def _unaliased(output: Any) -> Any:
    """Copy an output that may be a view of an input, whose derivative would have to be one too."""
    return output.clone() if isinstance(output, Tensor) else output
