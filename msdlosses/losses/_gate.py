"""Terms whose weight is exactly 0, which are left out whatever they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from msdlosses._checks import holds
from msdlosses._linear import LinearLogits, Logits
from msdlosses._masks import unsqueeze_right


class GradientGate:
    """Keeps terms of weight 0 out of the gradient, where 0 times infinity would be NaN.

    The logits pass the gate before their weights are known, and their gradients afterwards. For
    learned weights the gate stays open: a term of weight 0 tells how to change its weight.
    """

    def __init__(self) -> None:
        self.guarded: list[Any] = []  # tensors with `register_hook`, which torch does not type

    def guard(self, logits: Logits) -> Logits:
        """Return the logits of the next view, with a gate for their gradient."""
        # `LinearLogits` have no gradient of their own: the chunked loss keeps such terms out.
        # Hooks on intermediate results would break the graph of compiled code.
        linear = isinstance(logits, LinearLogits)
        if not linear and logits.requires_grad and not torch.compiler.is_compiling():
            plain = cast(Tensor, logits)
            logits = plain.view_as(plain)
        self.guarded.append(None if linear else logits)
        return logits

    def close(self, weights: Tensor, dims: Sequence[int]) -> Tensor | None:
        """Close the gate where weights are 0, and return where that is; None for nowhere.

        `dims` are the class axes of the views.
        """
        nonzero = weights != 0
        if weights.requires_grad or holds(nonzero):
            return None
        left_out = ~nonzero
        if not torch.compiler.is_compiling():
            for logits, zero, dim in zip(self.guarded, left_out.unbind(-1), dims, strict=True):
                if logits is not None and logits.requires_grad:
                    logits.register_hook(partial(_zero_gradient, zero, dim))
        return left_out


def _zero_gradient(zero: Tensor, dim: int, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(unsqueeze_right(zero, gradient.ndim - 1).unsqueeze(dim), 0.0)
