"""The state that a forward pass changes: buffers and random number generators."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from msdlosses._torch import is_compiled, own_buffers, replaced_compiled_call
from msdlosses.meta._interrupts import restoring
from msdlosses.meta._settings import SharedSetting

HOOKS_RUN_TWICE = r"Using `torch\.compile\(module\)` when there are global hooks on modules"

Buffers = dict[str, Tensor | None]


@dataclass(frozen=True)
class State:
    """The buffers of some modules and the states of some random number generators."""

    buffers: dict[nn.Module, Buffers]
    random: tuple[Tensor, ...]

    def copy(self) -> State:
        """Return the same values in buffers that a forward pass may change."""
        return State({m: _clone(buffers) for m, buffers in self.buffers.items()}, self.random)


class StateKeeper:
    """Saves and restores the state that forward passes change, so that several can start equal.

    Buffers are replaced and not written to, because the graph of an earlier pass may need them.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = {m for module in modules for m in module.modules()}
        devices = {p.device for module in modules for p in module.parameters()}
        self.generators = generators_of(devices)

    def save(self) -> State:
        """Return the current state. A later pass changes it unless another is restored first."""
        buffers = {m: dict(own_buffers(m)) for m in self.modules if own_buffers(m)}
        return State(buffers, tuple(generator.get_state() for generator in self.generators))

    def restore(self, state: State) -> None:
        """Continue from a state."""
        for module, buffers in state.buffers.items():
            own_buffers(module).update(buffers)
        self._set_random(state)

    def commit(self, state: State) -> None:
        """Write the values of a state into the buffers of the modules."""
        with torch.no_grad():
            for module, buffers in state.buffers.items():
                for name, value in buffers.items():
                    own = own_buffers(module)[name]
                    if own is None or value is None or own.shape != value.shape:
                        own_buffers(module)[name] = value
                    else:
                        own.copy_(value)
        self._set_random(state)

    def include(self, module: nn.Module, before: State) -> None:
        """Keep a module that a loss reaches for the first time, and add it to the state before."""
        for new in set(module.modules()) - self.modules:
            self.modules.add(new)
            if own_buffers(new):
                before.buffers[new] = dict(own_buffers(new))
                own_buffers(new).update(_clone(before.buffers[new]))

    def _set_random(self, state: State) -> None:
        for generator, random in zip(self.generators, state.random, strict=True):
            generator.set_state(random)


def generators_of(devices: Iterable[torch.device]) -> tuple[torch.Generator, ...]:
    """Return the random number generators of the CPU and of other devices."""
    others = (_generator(device) for device in devices if _has_generator(device))
    return (torch.default_generator, *others)


def _has_generator(device: torch.device) -> bool:
    """Return whether a device such as a GPU has its own generator; the CPU's is the default one."""
    return device.type != "cpu" and hasattr(torch.get_device_module(device), "default_generators")


def _generator(device: torch.device) -> torch.Generator:
    generator: torch.Generator = torch.get_device_module(device).default_generators[device.index]
    return generator


@dataclass
class Start:
    """The state that all passes of a step start from."""

    keeper: StateKeeper
    state: State
    dtypes: set[torch.dtype]
    """The types of the floating-point inputs of modules, and of autocast."""

    def restore(self) -> None:
        """Continue from this state, which a later pass may not change."""
        self.keeper.restore(self.state.copy())


@contextmanager
def restored_afterwards(keeper: StateKeeper, compiled: nn.Module | None = None) -> Iterator[Start]:
    """Run passes that start from a copy of the current state, and restore it afterwards.

    The passes are not compiled, except for the modules inside `compiled`: compiled code has no
    second derivative, and draws other random numbers for dropout.
    """
    start = Start(keeper, keeper.save(), set())
    observer = _Observer(start)
    with (
        restoring(partial(keeper.restore, start.state)),
        torch.enable_grad(),
        uncompiled(),
        observer.active(),
        nullcontext() if compiled is None else _compiled_inside(compiled, observer),
    ):
        start.restore()
        yield start


@SharedSetting
def uncompiled() -> AbstractContextManager[None]:
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


class _Observer:
    """Sees the calls of all modules.

    It keeps the buffers of other modules that the losses call, such as a projection or a teacher,
    and notes types.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._thread = get_ident()  # hooks on all modules also run in other threads

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if get_ident() != self._thread:
            return
        keeper = self._start.keeper
        if module not in keeper.modules:
            keeper.include(module, self._start.state)
        if torch.is_grad_enabled():  # not in a teacher
            self._start.dtypes.update(*(_types(x) for x in args if isinstance(x, Tensor)))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Observe the calls in this context."""
        _ignore_warning_about_hooks()
        self._handle = register_module_forward_pre_hook(self)
        with restoring(self._stop):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not observe the calls in this context."""
        self._stop()
        try:
            yield
        finally:
            self._handle = register_module_forward_pre_hook(self)

    def _stop(self) -> None:
        self._handle.remove()


def _types(value: Tensor) -> Iterator[torch.dtype]:
    if torch.is_autocast_enabled(value.device.type):
        yield torch.get_autocast_dtype(value.device.type)
    if value.is_floating_point() or value.is_complex():
        yield value.dtype


@contextmanager
def _compiled_inside(model: nn.Module, observer: _Observer) -> Iterator[None]:
    """Run the compiled parts of a model compiled, without hooks that would break their graphs."""

    def as_compiled(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            observer(model, args)
            with torch.compiler.set_stance("default"), observer.paused():
                return call(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for module in _outermost_compiled(model):
            stack.enter_context(replaced_compiled_call(module, as_compiled))
        yield


def has_compiled_parts(model: nn.Module) -> bool:
    """Return whether calls of a model run compiled code anywhere."""
    return any(True for _ in _outermost_compiled(model))


def _outermost_compiled(module: nn.Module) -> Iterator[nn.Module]:
    if is_compiled(module):
        yield module
        return
    for child in module.children():
        yield from _outermost_compiled(child)


def _ignore_warning_about_hooks() -> None:
    """Ignore that `torch.compile` runs these hooks twice. Adding filters twice has side effects."""
    if not any(
        message and message.pattern == HOOKS_RUN_TWICE for _, message, *_ in warnings.filters
    ):
        warnings.filterwarnings("ignore", HOOKS_RUN_TWICE, UserWarning)


def _clone(buffers: Mapping[str, Tensor | None]) -> Buffers:
    return {name: None if value is None else value.clone() for name, value in buffers.items()}
