"""What a forward pass moves besides its output: buffers, and the random state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Buffers = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class State:
    """The buffers of some modules, and the state of some generators of random numbers."""

    buffers: tuple[Buffers, ...]
    random: tuple[Tensor, ...]

    def copy(self) -> State:
        """The same values in buffers that a pass may move."""
        copies = [
            {name: None if value is None else value.clone() for name, value in buffers.items()}
            for buffers in self.buffers
        ]
        return State(tuple(copies), self.random)


class Memory:
    """Takes and puts back the state that passes move, so that each can start from the same.

    Buffers are exchanged, not overwritten: the graph of an earlier pass may hold on to them.
    """

    def __init__(self, *modules: nn.Module) -> None:
        found = dict.fromkeys(m for module in modules for m in module.modules())
        self.modules = tuple(module for module in found if module._buffers)
        devices = {p.device for module in modules for p in module.parameters()}
        self.generators = (torch.default_generator, *map(_generator, _with_generators(devices)))

    def take(self) -> State:
        """The state as it is; a later pass moves it unless another is put in its place."""
        buffers = tuple(dict(module._buffers) for module in self.modules)
        return State(buffers, tuple(generator.get_state() for generator in self.generators))

    def put(self, state: State) -> None:
        """Go on from that state."""
        for module, buffers in zip(self.modules, state.buffers, strict=True):
            module._buffers.update(buffers)
        for generator, random in zip(self.generators, state.random, strict=True):
            generator.set_state(random)

    def settle(self, state: State) -> None:
        """Take over the values of a state, in the buffers that are there."""
        with torch.no_grad():
            for module, buffers in zip(self.modules, state.buffers, strict=True):
                for name, value in buffers.items():
                    own = module._buffers[name]
                    if own is None or value is None or own.shape != value.shape:
                        module._buffers[name] = value
                    elif own is not value:
                        own.copy_(value)
        for generator, random in zip(self.generators, state.random, strict=True):
            generator.set_state(random)


def _with_generators(devices: set[torch.device]) -> list[torch.device]:
    """CUDA and its like; `cpu` has the default generator."""
    kinds = {d: None if d.type == "cpu" else torch.get_device_module(d) for d in devices}
    return [d for d, module in kinds.items() if hasattr(module, "default_generators")]


def _generator(device: torch.device) -> torch.Generator:
    generator: torch.Generator = torch.get_device_module(device).default_generators[device.index]
    return generator


@contextmanager
def rehearsed(memory: Memory) -> Iterator[State]:
    """Passes that start from a copy of the state, uncompiled, and after which it is put back.

    A compiled loss has no second derivative, and one with dropout draws other masks.
    """
    before = memory.take()
    try:
        memory.put(before.copy())
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            yield before
    finally:
        memory.put(before)
