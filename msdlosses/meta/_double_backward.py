"""The engine "double-backward": the derivative of the student's gradient along the direction."""

from __future__ import annotations

import torch

from msdlosses.meta._lookahead import Gradients, LookAhead, no_path


def differentiate_gradients(
    ahead: LookAhead, directions: Gradients, gradients: Gradients
) -> Gradients:
    """Differentiate the inner product of gradients and directions.

    The gradients are those of the inner loss, with their graph. A probe replaces them by its own.
    """
    if ahead.probe is not None:
        _, gradients = ahead.evaluate(ahead.probe, ahead.parameters, create_graph=True)
    pairs = [
        (g, direction)
        for g, direction in zip(gradients, directions, strict=True)
        if g is not None and direction is not None and g.requires_grad
    ]
    if not pairs:
        raise no_path()
    outputs, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, ahead.meta_parameters, weights, allow_unused=True)
