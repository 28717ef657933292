"""Searching the graph of a loss for nodes that cannot be differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from msdlosses._checks import check_that


def graph_nodes(loss: Tensor) -> Iterator[Any]:
    """Yield the nodes of the loss's graph."""
    seen = {loss.grad_fn}
    nodes = [loss.grad_fn] if loss.grad_fn is not None else []
    while nodes:
        node = nodes.pop()
        yield node
        children = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= children
        nodes.extend(children)


def watch_custom_functions(loss: Tensor) -> None:
    """Make the backward pass raise where a custom Function breaks the graph of the gradient.

    A Function whose backward calls its own kernel returns a gradient without a graph. The second
    derivative through it would be silently wrong.
    """
    for node in graph_nodes(loss):
        if isinstance(node, BackwardCFunction):
            node.register_hook(_raise_if_broken(type(node).__name__.removesuffix("Backward")))


def _raise_if_broken(name: str) -> Any:
    def hook(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
        differentiable = any(g is not None and g.requires_grad for g in outputs)
        if differentiable and any(g is not None and _is_broken(g) for g in inputs):
            # The words and type that PyTorch uses where it has no formula itself.
            raise NotImplementedError(f"derivative for the backward of {name} is not implemented")

    return hook


def _is_broken(gradient: Tensor) -> bool:
    """Return whether a gradient has no graph, or one that raises, as by `once_differentiable`."""
    return gradient.grad_fn is None or gradient.grad_fn.name().endswith("::Error")


def check_no_reentrant_checkpoint(loss: Tensor) -> None:
    """Check for checkpoints that take their parameters out of the graph.

    These parameters would look as if the loss did not use them.
    """
    reentrant = any(type(n).__name__ == "CheckpointFunctionBackward" for n in graph_nodes(loss))
    check_that("checkpoints with use_reentrant=False", not reentrant, "one with use_reentrant=True")
