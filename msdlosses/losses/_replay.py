"""The surroundings of a forward pass, for code that runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states


class ForwardContext:
    """The autocast settings and the random state of a forward pass.

    Create it before the forward pass, and call `finish` after it.

    Args:
        tensor: a tensor on the device of the forward pass.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device.type
        self.autocasts = torch.amp.is_autocast_available(self.device)
        if self.autocasts:
            self.enabled = torch.is_autocast_enabled(self.device)
            self.dtype = torch.get_autocast_dtype(self.device)
        self.devices, self.states = get_device_states(tensor)
        self.cpu = torch.get_rng_state()
        self.random = True

    def finish(self, tensor: Tensor) -> None:
        """Compare the random state with that of the start: most losses draw no numbers."""
        _, states = get_device_states(tensor)
        before, after = (self.cpu, *self.states), (torch.get_rng_state(), *states)
        self.random = not all(map(torch.equal, before, after))

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Restore these surroundings; afterwards, the present ones."""
        with torch.random.fork_rng(self.devices, self.random, device_type=self.device):
            if self.random:
                torch.set_rng_state(self.cpu)
                set_device_states(self.devices, self.states, device_type=self.device)
            with self._autocast():
                yield

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.autocasts:
            return nullcontext()
        return torch.autocast(self.device, self.dtype, self.enabled)
