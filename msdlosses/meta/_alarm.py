"""The error about gradients that are not derivatives, raised without waiting for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


class Alarm:
    """Raises an error if a gradient is not the derivative of its loss.

    On a CPU it raises at once, otherwise after a copy of the flag has arrived.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, torch.Event]] = []

    def watch(self, flag: Tensor) -> None:
        """Raise the error now or in a later call of `poll`."""
        if flag.device.type == "cpu":
            _raise_if(flag)
            return
        copy = flag.to("cpu", non_blocking=True)
        event = torch.Event(flag.device)
        event.record()
        self._pending.append((copy, event))

    def poll(self) -> None:
        """Raise the error of an earlier flag, if its copy has arrived."""
        while self._pending and self._pending[0][1].query():
            flag, _ = self._pending.pop(0)
            _raise_if(flag)

    def wait(self) -> None:
        """Raise the error of an earlier flag."""
        for _, event in self._pending:
            event.synchronize()
        self.poll()


def _raise_if(flag: Tensor) -> None:
    if flag:
        raise ValueError(
            "Expected the same loss from each call of `inner`, and a gradient that is its "
            "derivative, got another one. Fetch batches outside of `inner`, and draw random "
            "numbers of Python and NumPy there too. Remove hooks that change gradients, and custom "
            "Functions whose backward is not the derivative of their forward, such as "
            "straight-through estimators."
        )
