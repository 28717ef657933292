"""The base class of weightings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from msdlosses._checks import check_same_names


class Weighting(nn.Module, ABC):
    """Base class of modules that weight each view of each sample.

    A subclass implements `forward`. It keeps what it learns or measures in parameters and buffers,
    so that this is saved, moved, and compiled with the model.

    Shape:
        Returns (N, K), or (K,) for the same weights for all samples.

    Example:
        >>> class Confidence(Weighting):
        ...     def forward(self, terms, teacher, target=None, *, names, valid=None):
        ...         confidence = [teacher[view].softmax(-1).amax(-1) for view in names]
        ...         return torch.stack(confidence, -1).detach()
        >>> Confidence()(torch.zeros(2, 1), {"full": torch.zeros(2, 4)}, names=("full",)).tolist()
        [[0.25], [0.25]]

    Source: [ours].
    """

    @abstractmethod
    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the weights of the terms.

        Args:
            terms: the losses, with the views as the last axis.
            teacher: logits by view. Views that are not in ``names`` are cues.
            target: the labels.
            names: the views of the terms, in order.
            valid: which samples, or positions of sequences, are valid in which view. Invalid
                entries of the other arguments may be NaN. The weight of a sample without a valid
                position in a view is not used.

        Shape:
            ``terms``: (N, K). ``valid``: (N, K) or (N, ..., K). Returns (N, K), or (K,) for the
            same weights for all samples.
        """

    if TYPE_CHECKING:  # torch declares that a call returns Any
        __call__ = forward

    def penalty(self) -> Tensor | float:
        """Return a term to add to the loss, such as the cost of a learned uncertainty."""
        return 0.0


def reorder(values: Tensor, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Return values by view in another order of the views."""
    check_same_names("a weight", names, wanted)
    if tuple(names) == tuple(wanted):
        return values
    return torch.stack([values[names.index(view)] for view in wanted])
