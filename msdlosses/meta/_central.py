"""The derivative of a loss along a direction, by its values at two points.

PyTorch needs no formula for it. The backward pass reaches the weighting, but not the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from msdlosses.meta._forward import Derivative
from msdlosses.meta._lookahead import Gradients, LookAhead, add
from msdlosses.meta._losses import Losses
from msdlosses.meta._norms import coarsest, norm
from msdlosses.meta._parameters import untracked
from msdlosses.meta._replay import Replay
from msdlosses.meta._sharding import local
from msdlosses.meta._state import Start

NOISE = 100
"""How many times its rounding error the value of a loss may be off."""


@dataclass(frozen=True)
class CentralDifference:
    """Compares a loss at two points, on both sides of the student's parameters.

    The distance to the parameters is a fraction of their norm: the square root of the rounding
    error. There, the errors from rounding and from curvature are both small.
    """

    ahead: LookAhead
    losses: Losses
    replay: Replay
    start: Start

    def record(self) -> None:
        """Record what the weighting returns at the start, by a pass of the loss."""
        self.start.restore()
        for _ in self.replay.recorded(self.losses)(self.ahead.model):
            pass

    def along(
        self, directions: Gradients, parameters: Sequence[Tensor] = (), widening: float = 1.0
    ) -> Derivative:
        """Return the derivative along directions, and its gradients for some parameters."""
        pairs = zip(self.ahead.parameters, directions, strict=True)
        moving = [(local(p.detach()), d) for p, d in pairs if d is not None]
        shards = self.ahead.shards
        size, speed = norm([p for p, _ in moving], shards), norm([d for _, d in moving], shards)
        dtypes = frozenset({*self.start.dtypes, *(d.dtype for _, d in moving)})
        rounding = coarsest(dtypes)
        distance = widening * rounding**0.5 * torch.where(size > 0, size, 1.0)
        step = torch.where(speed > 0, distance / speed, 0.0)
        ahead, gradients_ahead = self._evaluate(directions, step, parameters)
        behind, gradients_behind = self._evaluate(directions, -step, parameters)
        rate = speed / (2 * distance)
        value = (ahead - behind).sum() * rate
        noise = NOISE * rounding * ahead.abs().sum() * rate
        gradients = _subtract(gradients_ahead, gradients_behind, rate / self.ahead.loss_scale)
        return Derivative(value, self._pull_back(gradients, parameters), dtypes, noise)

    def _evaluate(
        self, directions: Gradients, step: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Return the losses at a point, and their gradients for the weights and parameters."""
        wanted = (*self.replay.leaves, *parameters)
        values: list[Tensor] = []
        gradients: Gradients = [None] * len(wanted)
        with self._moved(directions, step), self.replay.replayed(self.losses) as losses:
            for loss in losses(self.ahead.model):
                values.append(loss.detach())
                if parameters and loss.requires_grad:
                    scaled = loss * self.ahead.loss_scale
                    some = torch.autograd.grad(scaled, wanted, allow_unused=True)
                    gradients = add(gradients, some)
        return torch.stack(values), gradients

    def _pull_back(self, gradients: Gradients, parameters: Sequence[Tensor]) -> Gradients:
        """Add the gradients of the weights to those of parameters that the loss uses itself."""
        count = len(self.replay.leaves)
        return add(self.replay.pull_back(gradients[:count], parameters), gradients[count:])

    @contextmanager
    def _moved(self, directions: Gradients, step: Tensor) -> Iterator[None]:
        """Move the student from the start, without its graph."""
        ahead = self.ahead
        pairs = [(p, d) for p, d in zip(ahead.parameters, directions, strict=True) if d is not None]
        parameters = [p for p, _ in pairs]
        values = [local(p.detach()) + step.to(d) * d for p, d in pairs]
        self.start.restore()
        with (
            ahead.temporary_values(parameters, values),
            untracked(ahead.parameters, ahead.model, ahead.meta_parameters),
        ):
            yield


def _subtract(left: Gradients, right: Gradients, factor: Tensor) -> Gradients:
    pairs = zip(left, right, strict=True)
    return [None if a is None or b is None else (a - b) * factor.to(a) for a, b in pairs]
