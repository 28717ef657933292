"""The losses of a step, as functions of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from torch import Tensor, nn

from msdlosses._checks import check_callable, check_that, describe, expected

Loss = Callable[[nn.Module], Tensor]


class Losses:
    """One loss or several losses to sum, each a function of the model."""

    def __init__(self, name: str, losses: Loss | Sequence[Loss]) -> None:
        self.name = name
        self.functions = tuple(losses) if isinstance(losses, Sequence) else (losses,)
        check_that(f"`{name}` to be at least one function", self.functions)
        for function in self.functions:
            check_callable(name, function)

    def __call__(self, model: nn.Module) -> Iterator[Tensor]:
        """Yield the losses, so that the graph of one can be freed before the next."""
        for function in self.functions:
            loss: object = function(model)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise TypeError(expected(f"a scalar tensor from `{self.name}`", describe(loss)))
            yield loss.reshape(()) if loss.ndim else loss

    def inside(self, context: Callable[[], AbstractContextManager[object]]) -> Losses:
        """Return the same losses, each evaluated inside a context."""

        def evaluate(function: Loss, model: nn.Module) -> Tensor:
            with context():
                return function(model)

        return Losses(self.name, [partial(evaluate, function) for function in self.functions])

    def __len__(self) -> int:
        return len(self.functions)
