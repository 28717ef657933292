"""The state that a forward pass changes: buffers and random number generators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msdlosses._torch import own_buffers

Buffers = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class State:
    """The buffers of some modules and the states of some random number generators."""

    buffers: tuple[Buffers, ...]
    random: tuple[Tensor, ...]

    def copy(self) -> State:
        """Return the same values in buffers that a forward pass may change."""
        copies = [
            {name: None if value is None else value.clone() for name, value in buffers.items()}
            for buffers in self.buffers
        ]
        return State(tuple(copies), self.random)


class StateKeeper:
    """Saves and restores the state that forward passes change, so that several can start equal.

    Buffers are replaced and not written to, because the graph of an earlier pass may need them.
    """

    def __init__(self, *modules: nn.Module) -> None:
        every = dict.fromkeys(m for module in modules for m in module.modules())
        self.modules = tuple(module for module in every if own_buffers(module))
        devices = {p.device for module in modules for p in module.parameters()}
        generators = [_generator(device) for device in devices if _has_generator(device)]
        self.generators = (torch.default_generator, *generators)

    def save(self) -> State:
        """Return the current state. A later pass changes it unless another is restored first."""
        buffers = tuple(dict(own_buffers(module)) for module in self.modules)
        return State(buffers, tuple(generator.get_state() for generator in self.generators))

    def restore(self, state: State) -> None:
        """Continue from a state."""
        for module, buffers in zip(self.modules, state.buffers, strict=True):
            own_buffers(module).update(buffers)
        self._set_random(state)

    def commit(self, state: State) -> None:
        """Write the values of a state into the buffers of the modules."""
        with torch.no_grad():
            for module, buffers in zip(self.modules, state.buffers, strict=True):
                for name, value in buffers.items():
                    own = own_buffers(module)[name]
                    if own is None or value is None or own.shape != value.shape:
                        own_buffers(module)[name] = value
                    else:
                        own.copy_(value)
        self._set_random(state)

    def _set_random(self, state: State) -> None:
        for generator, random in zip(self.generators, state.random, strict=True):
            generator.set_state(random)


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
    try:
        keeper.restore(before.copy())
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            yield before
    finally:
        keeper.restore(before)
