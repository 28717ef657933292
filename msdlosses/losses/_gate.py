"""Terms whose weight is exactly 0, which are left out whatever they are."""

from __future__ import annotations

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
        self.left_out: Tensor | None = None

    def guard(self, column: int, logits: Logits, dim: int) -> Logits:
        """Return the logits of a view, with a gate for their gradient."""
        # `LinearLogits` have no gradient of their own: the chunked loss keeps such terms out.
        # Hooks on intermediate results would break the graph of compiled code.
        if isinstance(logits, LinearLogits) or torch.compiler.is_compiling():
            return logits
        if not logits.requires_grad:
            return logits
        guarded: Any = logits.view_as(logits)  # torch does not type the next method
        guarded.register_hook(partial(self._pass_gradient, column, dim))
        return cast(Tensor, guarded)

    def close(self, weights: Tensor) -> Tensor | None:
        """Close the gate where weights are 0, and return where that is; None for nowhere."""
        nonzero = weights != 0
        if not weights.requires_grad and not holds(nonzero):
            self.left_out = ~nonzero
        return self.left_out

    def _pass_gradient(self, column: int, dim: int, gradient: Tensor) -> Tensor | None:
        if self.left_out is None:
            return None
        mask = unsqueeze_right(self.left_out[..., column], gradient.ndim - 1).unsqueeze(dim)
        return gradient.masked_fill(mask, 0.0)
