"""Weights that are set by hand or searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from msdlosses._checks import check_number, check_that
from msdlosses._linear import Logits
from msdlosses.weighting._base import Weighting, reorder


class FixedWeighting(Weighting):
    """One weight per view, set by hand or found by a search.

    Args:
        by_view: view -> weight, as keywords. Use ``FixedWeighting(**{"full": 1, "~image": 0.5})``
            for names that are not identifiers.

    Shape:
        Returns (K,): one weight per view.

    Raises:
        TypeError: a weight is not a number.
        ValueError: there is no weight, or one is negative or not finite.
        KeyError: when called, a view has no weight or a weight has no view.

    Example:
        >>> weighting = FixedWeighting(full=1.0, image=1.0, text=0.25)
        >>> weighting(torch.zeros(2, 3), {}, names=("full", "image", "text"))
        tensor([1.0000, 1.0000, 0.2500])

    Source: [paper] "weighting approaches"; one weight for all samples: [ours].
    """

    def __init__(self, **by_view: float) -> None:
        super().__init__()
        check_that("a weight for at least one view", by_view)
        for view, weight in by_view.items():
            check_number(view, weight, "[0, inf)")
        self.names = tuple(by_view)
        self.weights: Tensor
        self.register_buffer("weights", torch.tensor([float(w) for w in by_view.values()]))

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Logits],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return reorder(self.weights, self.names, names)

    def extra_repr(self) -> str:
        return ", ".join(self.names)
