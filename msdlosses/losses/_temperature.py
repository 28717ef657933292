"""A temperature that is learned against the student."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from msdlosses._checks import check_number, check_that, check_type, describe, expected
from msdlosses._formulas.logits import Temperature

MARGIN = 0.01
"""The share of the range, in logarithms, that a temperature which is set keeps from each bound.

At a bound the gradient would vanish.
"""


class LearnedTemperature(nn.Module):
    """A temperature within bounds, whose gradient is reversed.

    An optimizer that minimizes the loss then maximizes it over the temperature, so that the
    student meets harder targets. Minimized, the temperature would run to 0, and the loss with it.
    """

    def __init__(self, start: Temperature, bounds: tuple[float, float]) -> None:
        super().__init__()
        _check_bounds(bounds)
        low, high = (float(bound) for bound in bounds)
        self.bounds = low, high
        # One axis, because `fully_shard` does not take scalars.
        self.position = nn.Parameter(torch.empty(1))
        self.set(start)

    def forward(self) -> Tensor:
        """Return the temperature, (), with a reversed gradient."""
        low, high = self.bounds
        temperature = low * (high / low) ** torch.sigmoid(self.position).squeeze()
        return 2 * temperature.detach() - temperature

    def set(self, temperature: Temperature) -> None:
        """Set the temperature."""
        _check_start(temperature, self.bounds)
        low, high = self.bounds
        share = torch.as_tensor(temperature / low).log() / math.log(high / low)
        with torch.no_grad():
            self.position.copy_(share.clamp(MARGIN, 1 - MARGIN).logit())

    def extra_repr(self) -> str:
        return f"bounds={self.bounds}"


def _check_bounds(bounds: Any) -> None:
    what = "`learn_temperature` to be bounds (low, high)"
    check_type("learn_temperature", bounds, (tuple, list), "bounds (low, high)")
    check_that(what, len(bounds) == 2, bounds)
    for bound in bounds:
        check_number("learn_temperature", bound, "(0, inf)")
    check_that(f"{what} with low < high", bounds[0] < bounds[1], bounds)


def _check_start(temperature: Temperature, bounds: tuple[float, float]) -> None:
    if isinstance(temperature, Tensor):
        one = temperature.numel() == 1
        check_that("one `temperature` to learn", one, describe(temperature))
    low, high = bounds
    if not low <= float(temperature) <= high:
        raise ValueError(expected(f"`temperature` in [{low:g}, {high:g}]", float(temperature)))
