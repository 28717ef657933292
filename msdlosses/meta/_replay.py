"""Holding the weights of a loss as they were, while the student's parameters move.

Weightings read the student's outputs without a gradient. At other parameters they would return
other weights, which the gradient of the loss does not follow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from msdlosses._checks import check_that
from msdlosses._torch import tree_flatten, tree_unflatten
from msdlosses.meta._graph import graph_nodes
from msdlosses.meta._lookahead import Gradients
from msdlosses.meta._losses import Losses
from msdlosses.meta._modes import HeldConstants

Call = tuple[list[Any], Any]
"""What a call returned: values, and the structure that holds them."""


class Replay:
    """Records what a weighting returns, and returns the same values in later passes.

    A weighting may be a container whose submodules the loss calls one by one.
    """

    def __init__(self, weighting: nn.Module, *, hold_constants: bool = True) -> None:
        self.constants = HeldConstants()
        self._hold: AbstractContextManager[object] = (
            self.constants if hold_constants else nullcontext()
        )
        self._modules = list(weighting.modules())
        self._parameters = {id(p) for p in weighting.parameters()}
        self._depth = 0
        self._calls: list[Call] = []
        self._outputs: list[Tensor] = []
        self.leaves: list[Tensor] = []
        """The recorded outputs with a gradient, cut off from the weighting."""

    def recorded(self, losses: Losses) -> Losses:
        """Return the losses, to be evaluated once while their weights are recorded."""
        return losses.inside(partial(self._intercepted, self._record))

    @contextmanager
    def replayed(self, losses: Losses) -> Iterator[Losses]:
        """Provide the losses, to be evaluated once with the recorded weights in their order."""
        calls = deque(self._calls)

        def replay(output: Any) -> Any:
            _check_same(bool(calls))
            values, structure = calls.popleft()
            _check_same(_shapes(output) == _shapes(tree_unflatten(values, structure)))
            copies = [v.clone() if isinstance(v, Tensor) else v for v in values]
            return tree_unflatten(copies, structure)

        self.constants.rewind()
        yield losses.inside(partial(self._intercepted, replay))
        _check_same(not calls)

    def pull_back(self, cotangents: Gradients, parameters: Sequence[Tensor]) -> Gradients:
        """Map gradients with respect to the leaves to ones with respect to parameters."""
        pairs = [(o, c) for o, c in zip(self._outputs, cotangents, strict=True) if c is not None]
        if not pairs or not parameters:
            return [None] * len(parameters)
        outputs, weights = zip(*pairs, strict=True)
        gradients: Gradients = torch.autograd.grad(
            outputs, parameters, weights, retain_graph=True, allow_unused=True
        )
        return gradients

    @contextmanager
    def _intercepted(self, replace: Callable[[Any], Any]) -> Iterator[None]:
        """Replace the outputs of all calls that no other call of the weighting makes."""
        self._depth = 0

        def enter(module: nn.Module, args: object) -> None:
            self._depth += 1

        def leave(module: nn.Module, args: object, output: Any) -> Any:
            self._depth -= 1
            return output if self._depth else replace(output)

        with ExitStack() as stack:
            for module in self._modules:
                stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            stack.enter_context(self._hold)
            yield

    def _record(self, output: Any) -> Any:
        values, structure = tree_flatten(output)
        self._calls.append(([self._leaf(value) for value in values], structure))
        return output

    def _leaf(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        leaf = value.data.clone()  # not by `detach`, whose results are held
        if value.requires_grad:
            self._check_own(value)
            self._outputs.append(value)
            self.leaves.append(leaf.requires_grad_())
        return leaf

    def _check_own(self, output: Tensor) -> None:
        leaves = (getattr(node, "variable", None) for node in graph_nodes(output))
        own = all(leaf is None or id(leaf) in self._parameters for leaf in leaves)
        what = "outputs of `weighting` with a gradient to its own parameters only"
        advice = (
            "Detach what the student returns before passing it to `weighting`, or use another "
            "engine than 'difference'."
        )
        check_that(what, own, "one to others", advice)


def _shapes(output: Any) -> str:
    values, structure = tree_flatten(output)
    shapes = [tuple(v.shape) if isinstance(v, Tensor) else None for v in values]
    return f"{shapes} in {structure}"


def _check_same(same: bool) -> None:
    what = "the same calls of `weighting` in each call of `inner`"
    check_that(what, same, "another number or other shapes")
