"""The state that a forward pass changes: buffers and random number generators."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from msdlosses._torch import own_buffers
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


@contextmanager
def restored_afterwards(keeper: StateKeeper) -> Iterator[State]:
    """Run passes that start from a copy of the current state, and restore it afterwards.

    The passes are not compiled: compiled code has no second derivative, and draws other random
    numbers for dropout.
    """
    before = keeper.save()
    with (
        restoring(partial(keeper.restore, before)),
        torch.enable_grad(),
        uncompiled(),
        _including_others(keeper, before),
    ):
        keeper.restore(before.copy())
        yield before


@SharedSetting
def uncompiled() -> AbstractContextManager[None]:
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _including_others(keeper: StateKeeper, before: State) -> Iterator[None]:
    """Keep the buffers of other modules that the losses call, such as a projection or a teacher."""
    thread = get_ident()  # hooks on all modules also run in other threads

    def include(module: nn.Module, args: object) -> None:
        if module not in keeper.modules and get_ident() == thread:
            keeper.include(module, before)

    _ignore_warning_about_hooks()
    handle = register_module_forward_pre_hook(include)
    with restoring(handle.remove):
        yield


def _ignore_warning_about_hooks() -> None:
    """Ignore that `torch.compile` runs these hooks twice. Adding filters twice has side effects."""
    if not any(
        message and message.pattern == HOOKS_RUN_TWICE for _, message, *_ in warnings.filters
    ):
        warnings.filterwarnings("ignore", HOOKS_RUN_TWICE, UserWarning)


def _clone(buffers: Mapping[str, Tensor | None]) -> Buffers:
    return {name: None if value is None else value.clone() for name, value in buffers.items()}
